"""Networks of Flax: what they compute, written out, and what they refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bbvi
from bbvi.networks import MLP, Convolutional, NnxNetwork

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)


def normalized(h, axes, eps=1e-6):
    mean, variance = h.mean(axes, keepdims=True), h.var(axes, keepdims=True)
    return (h - mean) / np.sqrt(variance + eps)


def layer_norm(h, params):
    return normalized(h, -1) * params["scale"] + params["bias"]


def group_norm(h, params):
    """Two groups of neighbouring channels, over all pixels of an image."""
    grouped = h.reshape(len(h), -1, 2, h.shape[-1] // 2)
    return normalized(grouped, (1, 3)).reshape(h.shape) * params["scale"] + params["bias"]


def any_params(network, x):
    """Parameters of the network's shapes, none of which is zero or one."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape), shapes)


NORMALIZATIONS = {
    None: lambda h, _: h,
    nn.LayerNorm(): layer_norm,
    nn.GroupNorm(num_groups=2): group_norm,
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=["none", "layer", "group"])
@pytest.mark.parametrize("is_residual", [False, True])
def test_mlp_written_out(normalization, is_residual):
    network = MLP(
        (6, 6, 4),
        output=3,
        activation=jnp.tanh,
        normalization=normalization,
        is_residual=is_residual,
    )
    x = jnp.asarray(X, float)
    variables = any_params(network, x)
    params, h = variables["params"], np.asarray(x)
    for i in range(3):
        dense = params[f"Dense_{i}"]
        norm = params.get(f"{type(normalization).__name__}_{i}")
        affine = h @ dense["kernel"] + dense["bias"]
        out = np.tanh(NORMALIZATIONS[normalization](affine, norm))
        h = h + out if is_residual and i == 1 else out  # the others change the width
    wanted = h @ params["head"]["kernel"] + params["head"]["bias"]
    found = network.apply(variables, x)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def convolved(x, kernel, bias, stride):
    """The sum over a 3 by 3 window, for every window of the image framed with zeros."""
    size = [-(-n // stride) for n in x.shape[1:3]]
    total = [max((m - 1) * stride + 3 - n, 0) for m, n in zip(size, x.shape[1:3], strict=True)]
    padded = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
    out = np.zeros((len(x), *size, kernel.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("nhwc,hwcd->nd", window, kernel) + bias
    return out


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=["none", "layer", "group"])
def test_convolutional_written_out(normalization):
    network = Convolutional(
        (2, 4, 4), (1, 2, 1), output=3, normalization=normalization, is_residual=True
    )
    x = jnp.asarray(IMAGES, float)
    variables = any_params(network, x)
    params, h = variables["params"], np.asarray(x)[..., None]
    for i, stride in enumerate((1, 2, 1)):
        layer = params[f"Conv_{i}"]
        norm = params.get(f"{type(normalization).__name__}_{i}")
        affine = convolved(h, layer["kernel"], layer["bias"], stride)
        out = np.maximum(NORMALIZATIONS[normalization](affine, norm), 0)
        h = h + out if i == 2 else out
    assert h.shape == (3, 3, 2, 4)
    wanted = h.reshape(3, -1) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(network.apply(variables, x), wanted, rtol=1e-10)
    np.testing.assert_array_equal(
        network.apply(variables, x[..., None]), network.apply(variables, x)
    )


def test_mlp_flattens_rows_and_reads_integers():
    network = MLP((), output=2)
    pixels = jnp.asarray(IMAGES > 0, jnp.uint8)
    params = network.init(jax.random.key(0), pixels)
    kernel = params["params"]["head"]["kernel"]
    wanted = (IMAGES > 0).reshape(3, -1) @ np.asarray(kernel)
    np.testing.assert_allclose(network.apply(params, pixels), wanted, rtol=1e-5, atol=1e-6)
    assert network.apply(params, pixels).dtype == jnp.zeros(()).dtype


def test_weights_start_at_unit_gain():
    """LeCun's start: the variance of a unit is the mean square of what it reads."""
    params = MLP((), output=2000).init(jax.random.key(0), jnp.ones((1, 500)))["params"]["head"]
    kernel = np.asarray(params["kernel"])
    assert kernel.size * abs(kernel.var() * 500 - 1) < 5 * np.sqrt(2 * kernel.size)
    np.testing.assert_array_equal(params["bias"], 0)


@pytest.mark.parametrize(
    ("network", "x"),
    [
        (MLP((16, 16), output=3, normalization=nn.LayerNorm(), is_residual=True), X),
        (Convolutional((4,), (2,), output=3, normalization=nn.GroupNorm(2)), IMAGES),
    ],
    ids=["mlp", "convolutional"],
)
def test_computed_in_bfloat16_from_float32_to_float32(network, x):
    x, half = jnp.asarray(x), network.clone(dtype=jnp.bfloat16)
    params = half.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.zeros(()).dtype}
    products = [
        equation
        for equation in jax.make_jaxpr(half.apply)(params, x).eqns
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert len(products) >= 2
    for equation in products:
        assert {var.aval.dtype for var in equation.invars} == {jnp.dtype("bfloat16")}
    assert half.apply(params, x).dtype == jnp.float32

    def loss(params, network):
        return jnp.sum(jnp.sin(network.apply(params, x)))

    found, wanted = (
        jnp.concatenate([g.ravel() for g in jax.tree.leaves(jax.grad(loss)(params, n))])
        for n in (half, network)
    )
    # Eight bits of significand, hence errors of about 2^-9 at each of a few roundings.
    error = float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))
    assert 1e-5 < error < 0.03


def test_a_named_leaf_is_read():
    x = {"image": {"pixels": jnp.asarray(X)}, "label": jnp.arange(5)}
    alone, named = MLP((6,), output=2), MLP((6,), output=2, leaf="image.pixels")
    params = alone.init(jax.random.key(0), X)
    jax.tree.map(np.testing.assert_array_equal, params, named.init(jax.random.key(0), x))
    np.testing.assert_array_equal(named.apply(params, x), alone.apply(params, X))
    for network in (alone, MLP((6,), output=2, leaf="pixels")):
        with pytest.raises(ValueError, match=r"image.pixels: float32.*leaf='image.pixels'"):
            network.apply(params, x)


NETWORKS = {
    "mlp": (lambda: MLP((8, 8), normalization=nn.LayerNorm()), X),
    "convolutional": (lambda: Convolutional((2,), (2,), normalization=nn.GroupNorm(2)), IMAGES),
    "nnx": (lambda: NnxNetwork(build), X),
}


def build(rngs):
    return nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.tanh, nnx.Linear(8, 4, rngs=rngs))


def log_joint(x, z):
    """Every latent is N(mean of its row, 1)."""
    rows = x.reshape(len(x), -1).mean(axis=1, keepdims=True)
    return -0.5 * jnp.sum((z["z"] - jnp.broadcast_to(rows, z["z"].shape)) ** 2)


def run(guide, x, key=0, init_params=None, num_steps=50):
    return bbvi.fit(
        log_joint,
        guide,
        jnp.asarray(x),
        key=jax.random.key(key),
        estimator=bbvi.Reparameterization(2),
        optimizer=optax.adam(1e-2),
        num_steps=num_steps,
        init_params=init_params,
        progress=False,
    )


@pytest.mark.parametrize(("make", "x"), NETWORKS.values(), ids=NETWORKS)
def test_equal_networks_do_not_compile_again(make, x):
    assert make() == make()
    assert hash(make()) == hash(make())

    def guide():
        return bbvi.Amortized({"z": bbvi.Normal((len(x), 2))}, make())

    run(guide(), x)
    compiled = []

    def listen(event, duration, **_):
        if event.endswith(("backend_compile_duration", "jaxpr_to_mlir_module_duration")):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(guide(), x, key=1)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_batches_train_the_network_for_all_rows():
    """The optimum is affine in the row: location its mean, scale one."""
    x = X[:, :1]
    guide = bbvi.Amortized({"z": bbvi.Normal((5, 2))}, MLP(()))
    result = bbvi.fit(
        log_joint,
        guide,
        jnp.asarray(x),
        key=jax.random.key(0),
        estimator=bbvi.Reparameterization(4, entropy="stick_the_landing"),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 1000)),
        num_steps=1000,
        batch_size=2,
        progress=False,
    )
    loc, log_scale = guide.free_params(result.params.guide, x).normal
    np.testing.assert_allclose(loc.reshape(5, 2), np.tile(x, 2), atol=2e-3)
    np.testing.assert_allclose(log_scale, 0, atol=2e-3)


def test_networks_differ_by_what_they_compute():
    network = MLP((8,), output=2)
    for other in (
        MLP((9,), output=2),
        MLP((8,), output=3),
        MLP((8,), output=2, activation=jnp.tanh),
        MLP((8,), output=2, normalization=nn.LayerNorm()),
        MLP((8,), output=2, dtype=jnp.bfloat16),
        Convolutional((8,), (1,), output=2),
    ):
        assert network != other
    assert NnxNetwork(build) != NnxNetwork(lambda rngs: build(rngs))


def test_nnx_equals_linen_with_the_same_weights():
    sites = {"z": bbvi.Normal((5, 2))}
    linen = bbvi.Amortized(sites, MLP((8,), activation=jnp.tanh))
    other = bbvi.Amortized(sites, NnxNetwork(build))
    phi = linen.init(jax.random.key(0), X)
    own = other.init(jax.random.key(0), X)
    same = {"layers": {0: phi["params"]["Dense_0"], 2: phi["params"]["head"]}}
    assert jax.tree.structure(own) == jax.tree.structure(same)
    assert all(type(leaf) is not nnx.Param for leaf in jax.tree.leaves(own))
    np.testing.assert_array_equal(
        linen.free_params(phi, X).normal, other.free_params(same, X).normal
    )
    fits = run(linen, X, init_params=phi), run(other, X, init_params=same)
    np.testing.assert_allclose(fits[0].history.loss, fits[1].history.loss, rtol=1e-5)
    found = [
        guide.free_params(result.params.guide, X).normal
        for guide, result in zip((linen, other), fits, strict=True)
    ]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(found[0] - linen.free_params(phi, X).normal).max()) > 0.1


def test_restarts_of_an_nnx_network_differ():
    guide = bbvi.Amortized({"z": bbvi.Normal((5, 2))}, NnxNetwork(build))
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key: guide.init(key, X))(keys)
    alone = guide.init(keys[1], X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b), together, alone)
    kernels = together["layers"][0]["kernel"]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0.1


class Stateful(nnx.Module):
    def __init__(self, extra, rngs):
        self.linear = nnx.Linear(4, 2, rngs=rngs)
        self.extra = extra

    def __call__(self, x):
        return self.extra(self.linear(x)) if callable(self.extra) else self.linear(x)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda rngs: nnx.BatchNorm(2, rngs=rngs), r"extra.mean \(BatchStat\).*nnx.LayerNorm"),
        (
            lambda rngs: nnx.BatchNorm(2, use_running_average=True, rngs=rngs),
            r"extra.mean \(BatchStat\)",
        ),
        (
            lambda rngs: nnx.Dropout(0.5, rngs=rngs),
            r"extra.rngs.count \(RngCount\).*deterministic=True and without rngs",
        ),
        (lambda rngs: nnx.data(jnp.ones(3)), r"extra \(.*\).*constant arrays in __call__"),
    ],
    ids=["batch", "running_average", "dropout", "constant"],
)
def test_nnx_state_is_refused(extra, message):
    network = NnxNetwork(lambda rngs: Stateful(extra(rngs), rngs))
    with pytest.raises(ValueError, match=message):
        bbvi.Amortized({"z": bbvi.Bernoulli((5, 2))}, network).init(jax.random.key(0), X)


def test_nnx_dropout_must_be_deterministic():
    def guide(*, deterministic):
        dropout = nnx.Dropout(0.5, deterministic=deterministic)
        network = NnxNetwork(lambda rngs: Stateful(dropout, rngs))
        return bbvi.Amortized({"z": bbvi.Bernoulli((5, 2))}, network)

    phi = guide(deterministic=True).init(jax.random.key(0), X)
    wanted = X @ np.asarray(phi["linear"]["kernel"])
    np.testing.assert_allclose(
        guide(deterministic=True).logits(phi, X)["z"], wanted, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(Exception, match=r"calls network.apply\(params, x\) and nothing else"):
        guide(deterministic=False).logits(phi, X)


@pytest.mark.parametrize("use_running_average", [True, False])
def test_batch_normalization_is_refused(use_running_average):
    network = MLP((8,), normalization=nn.BatchNorm(use_running_average=use_running_average))
    with pytest.raises(ValueError, match=r"besides its parameters, \['batch_stats'\]"):
        bbvi.Amortized({"z": bbvi.Normal((5, 2))}, network).init(jax.random.key(0), X)


DECODERS = {
    "mlp": MLP((8, 8), output=4, normalization=nn.LayerNorm(), is_residual=True),
    "bfloat16": MLP((8,), output=4, dtype=jnp.bfloat16),
    "convolutional": Convolutional((2,), (2,), output=4, normalization=nn.GroupNorm(2)),
    "nnx": NnxNetwork(
        lambda rngs: nnx.Sequential(
            nnx.Linear(6, 8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        )
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_keep_the_data_independent(name):
    """Each datum is a component of the log joint of its own, seen through the network."""
    decoder, shape = DECODERS[name], (5, 2, 3) if name == "convolutional" else (5, 6)

    def log_joint(x, z, theta):
        return -0.5 * jnp.sum(z**2) - 0.5 * jnp.sum((x - decoder.apply(theta, z)) ** 2)

    problem = bbvi.Problem(log_joint, bbvi.MeanField(bbvi.Normal(shape)))
    theta = decoder.init(jax.random.key(0), jnp.zeros((1, *shape[1:])))
    params = problem.init(jax.random.key(1), X, theta)
    assert problem.components(params, X).num_components == 5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MLP(200), TypeError, r"MLP widths must be a tuple such as \(200, 200\), got 200"),
        (lambda: MLP([20, 20]), TypeError, "must be a tuple"),
        (lambda: MLP((20, 0)), ValueError, r"MLP widths must hold positive ints, got \(20, 0\)"),
        (lambda: MLP((), output=0), ValueError, "MLP output must hold positive ints"),
        (lambda: MLP((2,), normalization=nn.LayerNorm), TypeError, r"such as nn.LayerNorm\(\)"),
        (lambda: Convolutional((4, 4), (2,)), ValueError, r"2 layers.*strides=\(2,\)"),
        (lambda: Convolutional((4,), (1,), 0), ValueError, "kernel_size must hold positive ints"),
        (lambda: NnxNetwork(3), TypeError, r"a function build\(rngs\), got 3"),
    ],
)
def test_what_is_no_architecture_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("network", "x", "error", "message"),
    [
        (MLP((8,)), X, ValueError, r"MLP does not know the size of its output: give output="),
        (MLP((8, 7), output=1, is_residual=True), X, ValueError, "make two in a row alike"),
        (MLP((8,), output=1), 1.0, ValueError, r"rows of data \[N, ...\], got a scalar"),
        (Convolutional((8,), (1,), output=1), X, ValueError, r"images.*got shape \(5, 4\)"),
        (NnxNetwork(lambda rngs: None), X, TypeError, "must return an nnx.Module, got None"),
    ],
)
def test_what_does_not_fit_the_architecture_is_refused(network, x, error, message):
    with pytest.raises(error, match=message):
        network.init(jax.random.key(0), x)
