"""Amortized guides: everything follows from the mean field at the network's output."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import check_guide, check_mean, exact_bernoulli_gradient

X = jnp.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.2]])


class Logits(nn.Module):
    width: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width, param_dtype=self.dtype)(x)


class Mixed(nn.Module):
    """Parameters of a nested guide with three families."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.tanh(nn.Dense(5)(x))

        def head(*shape):
            return nn.Dense(int(np.prod(shape)))(hidden.reshape(-1)).reshape(shape)

        return {
            "b": {"logits": head(3)},
            "inner": ({"loc": head(3, 2), "log_scale": head(3, 2) - 1.0},),
            "c": {"logits": head(3, 4)},
        }


MIXED = bbvi.Amortized(
    {
        "b": bbvi.Bernoulli((3,)),
        "inner": (bbvi.Normal((3, 2), bbvi.supports.positive),),
        "c": bbvi.Categorical(4, (3,)),
    },
    Mixed(),
)
BINARY = bbvi.Amortized({"b": bbvi.Bernoulli((3, 2))}, Logits())


def log_joint(x, z, theta):
    """Pairs of binary latents, one for each datum, with a learned field."""
    b = z["b"].astype(x.dtype)
    return jnp.sum(b * x) + jnp.sum((1.5 + theta) * b[:, 0] * b[:, 1]) - 0.3 * jnp.sum(b) ** 2


@pytest.mark.parametrize("guide", [BINARY, MIXED], ids=["binary", "mixed"])
def test_parts_of_the_guide_agree(guide):
    check_guide(guide, X, num_samples=2000)


def test_parts_of_a_reparameterized_guide_agree():
    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return {"loc": nn.Dense(1)(x)[:, 0], "log_scale": nn.Dense(1)(x)[:, 0]}

    guide = bbvi.Amortized(bbvi.Normal((3,)), Encoder())
    assert guide.reparameterized
    assert not MIXED.reparameterized
    check_guide(guide, X, num_samples=2000)


def test_everything_is_that_of_the_mean_field_at_the_output():
    phi = MIXED.init(jax.random.key(0), X)
    free, noise = MIXED.free_params(phi, X), MIXED.base_noise(jax.random.key(1))
    output = MIXED.network.apply(phi, X)
    by_site = MIXED.mean_field.site_params(free)
    for name, found in (("inner.0", output["inner"][0]), ("c", output["c"])):
        jax.tree.map(np.testing.assert_array_equal, by_site[name], found)
    z = MIXED.sample(noise, phi, X)
    jax.tree.map(np.testing.assert_array_equal, z, MIXED.mean_field.sample(noise, free, None))
    assert MIXED.log_prob(phi, X, z) == MIXED.mean_field.log_prob(free, None, z)
    local = [dataclasses.replace(site, is_local=True) for site in MIXED.mean_field.sites()]
    assert MIXED.sites() == tuple(local)
    assert set(MIXED.logits(phi, X)) == {"b", "c"}
    np.testing.assert_array_equal(MIXED.logits(phi, X)["c"], output["c"]["logits"])


def test_a_lone_array_may_be_returned_bare_or_in_its_place():
    class InPlace(nn.Module):
        @nn.compact
        def __call__(self, x):
            return {"b": {"logits": nn.Dense(2)(x)}}

    in_place = bbvi.Amortized({"b": bbvi.Bernoulli((3, 2))}, InPlace())
    alone = bbvi.Amortized(bbvi.Bernoulli((3, 2)), Logits())
    phi = BINARY.init(jax.random.key(0), X)
    logits = BINARY.logits(phi, X)["b"]
    np.testing.assert_array_equal(logits, BINARY.network.apply(phi, X))
    np.testing.assert_array_equal(in_place.logits(phi, X)["b"], logits)
    np.testing.assert_array_equal(alone.logits(phi, X)["latents"], logits)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "estimator",
    [
        bbvi.ScoreFunction(4, signal="component"),
        bbvi.VarGrad(4),
        bbvi.LocalExpectation(4),
    ],
    ids=["component", "vargrad", "local"],
)
def test_gradients_follow_from_the_free_ones_by_the_chain_rule(estimator):
    guide = bbvi.Amortized({"b": bbvi.Bernoulli((3, 2))}, Logits(dtype=jnp.float64))
    x, theta = jnp.asarray(X, jnp.float64), jnp.array(0.2)
    amortized = bbvi.Problem(log_joint, guide)
    params = amortized.init(jax.random.key(0), x, theta)
    free = bbvi.Problem(log_joint, guide.mean_field)
    at_output, pullback = jax.vjp(lambda phi: guide.free_params(phi, x), params.guide)
    noise = estimator.draw(jax.random.key(1), amortized)

    def grads(problem, params):
        state = estimator.init(problem, params, x)
        return estimator.estimate(noise, problem, params, x, state)[0]

    found, wanted = grads(amortized, params), grads(free, bbvi.Params(at_output, theta))
    assert found.loss.dtype == jnp.float64
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-12)
    np.testing.assert_allclose(found.grads.model, wanted.grads.model, rtol=1e-12)
    through = pullback(wanted.grads.guide)[0]
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(through)) > 0.01
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        found.grads.guide,
        through,
    )


class TwoHeads(nn.Module):
    """Logits of two sites from one hidden layer."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.tanh(nn.Dense(3)(x.reshape(1, -1)))[0]
        small = nn.initializers.normal(0.1)
        return {name: {"logits": nn.Dense(2, kernel_init=small)(hidden)} for name in "ab"}


def test_adaptive_signal_with_shared_parameters_is_unbiased():
    """All sites read the same network: they learn one coefficient, from past steps."""

    def log_joint(x, z):
        a, b = (z[name].astype(x.dtype) for name in "ab")
        return -jnp.sum(x[0] * a) + 3 * (a[0] * b[0] - a[1] * b[1]) + 0.2 * jnp.sum(x[1] * b)

    sites = {"a": bbvi.Bernoulli((2,)), "b": bbvi.Bernoulli((2,))}
    problem = bbvi.Problem(log_joint, bbvi.Amortized(sites, TwoHeads()))
    # Near the optimum, where the rest of the terms is worth having as a control variate.
    init, descend = bbvi.make_step(log_joint, problem.guide, optimizer=optax.adam(0.1))
    first = init(jax.random.key(0), X)
    near = jax.jit(lambda s: jax.lax.fori_loop(0, 300, lambda _, s: descend(s, X)[0], s))(first)
    estimator = bbvi.ScoreFunction(4)

    def step(state, key, params):
        noise = estimator.draw(key, problem)
        estimate, state = estimator.estimate(noise, problem, params, X, state)
        return state, estimate.grads

    run = jax.jit(lambda s, keys: jax.lax.scan(lambda s, key: step(s, key, near.params), s, keys))
    for seed in range(4):
        keys = jax.random.split(jax.random.key(seed), 300)
        state, _ = run(estimator.init(problem, near.params, X), keys)
        coefficients = {name: float(s.coefficient.value()) for name, s in state.items()}
        assert coefficients["a"] == coefficients["b"] > 0.5

    # Where the gradient is large, to have the power.
    def gradient(key):
        return ravel_pytree(step(state, key, first.params)[1])[0]

    keys = jax.random.split(jax.random.key(2), 20_000)
    gradients = jax.jit(lambda keys: jax.lax.map(gradient, keys, batch_size=1000))(keys)
    check_mean(gradients, ravel_pytree(exact_bernoulli_gradient(problem, first.params, X))[0])


def test_fit_equals_that_of_free_parameters():
    """z_n ~ N(0, 1) and x_n | z_n ~ N(z_n, 1/2): the posterior mean is linear in x_n."""

    class Affine(nn.Module):
        @nn.compact
        def __call__(self, x):
            log_scale = self.param("log_scale", nn.initializers.zeros, ())
            loc = nn.Dense(1)(x[:, None])[:, 0]
            return {"loc": loc, "log_scale": jnp.full_like(loc, log_scale)}

    def log_joint(x, z):
        normal = jax.scipy.stats.norm
        return normal.logpdf(z).sum() + normal.logpdf(x, z, jnp.sqrt(0.5)).sum()

    x, site = jnp.array([-1.0, 0.4, 2.0, 0.1]), bbvi.Normal((4,))
    fits = [
        bbvi.fit(
            log_joint,
            guide,
            x,
            key=jax.random.key(0),
            estimator=bbvi.Reparameterization(4, entropy="stick_the_landing"),
            optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 1000)),
            num_steps=1000,
            progress=False,
        )
        for guide in (bbvi.Amortized(site, Affine()), bbvi.MeanField(site))
    ]
    amortized, free = fits
    found = amortized.problem.guide.free_params(amortized.params.guide, x).normal
    np.testing.assert_allclose(found, free.params.guide.normal, atol=1e-4)
    np.testing.assert_allclose(found[0], x / 1.5, atol=1e-4)
    np.testing.assert_allclose(found[1], 0.5 * np.log(1 / 3), atol=1e-4)
    evidence = jax.scipy.stats.norm.logpdf(x, 0.0, jnp.sqrt(1.5)).sum()
    for result in fits:
        np.testing.assert_allclose(result.elbo(jax.random.key(1), 100).value, evidence, atol=1e-4)


def test_jit_and_vmap_over_parameters():
    phis = jax.vmap(lambda key: BINARY.init(key, X))(jax.random.split(jax.random.key(0), 5))
    noise = BINARY.base_noise(jax.random.key(1))

    def density(phi):
        return BINARY.sample_and_log_prob(noise, phi, X)[1]

    batched = jax.jit(jax.vmap(density))(phis)
    looped = [density(jax.tree.map(lambda leaf, i=i: leaf[i], phis)) for i in range(5)]
    np.testing.assert_allclose(batched, jnp.stack(looped), rtol=1e-5)
    assert np.ptp(batched) > 0.01


def test_trained_parameters_fit_data_of_another_size():
    phi = BINARY.init(jax.random.key(0), X)
    assert BINARY.resized(1) == bbvi.Amortized({"b": bbvi.Bernoulli((1, 2))}, Logits())
    np.testing.assert_allclose(
        BINARY.resized(1).logits(phi, X[1:2])["b"], BINARY.logits(phi, X)["b"][1:2], rtol=1e-6
    )
    told = bbvi.Amortized(TOLD, bbvi.networks.MLP((4,)))
    phi = told.init(jax.random.key(0), X[:1])
    assert told.resized(2).network == told.network
    jax.tree.map(
        lambda few, all_rows: np.testing.assert_allclose(few, all_rows[:2], rtol=1e-5),
        told.resized(2).mean_field.site_params(told.resized(2).free_params(phi, X[:2])),
        told.mean_field.site_params(told.free_params(phi, X)),
    )


TOLD = {
    "c": bbvi.Categorical(4, (3,)),
    "a": (bbvi.Normal((3, 2)), bbvi.Normal((3, 3), bbvi.supports.simplex)),
    "m": bbvi.NormalMixture(2, (3,)),
}


def test_a_network_is_told_its_output_and_starts_where_the_mean_field_does():
    guide = bbvi.Amortized(TOLD, bbvi.networks.MLP((4,)))
    assert guide.network == bbvi.networks.MLP((4,), output=2 * 2 + 2 * 2 + 4 + 3 * 2)
    phi = guide.init(jax.random.key(0), X)
    again = guide.init(jax.random.key(2), X)["params"]["head"]["bias"]
    assert 0.01 < float(jnp.abs(phi["params"]["head"]["bias"] - again).max()) < 1.0
    phi["params"]["head"]["kernel"] = jnp.zeros((4, guide.network.output))
    found = guide.mean_field.site_params(guide.free_params(phi, X))
    start = guide.mean_field.init(jax.random.key(1), None)
    assert float(jnp.abs(found["a.0"]["loc"]).max()) < 0.5
    np.testing.assert_allclose(found["a.0"]["log_scale"], np.log(0.1), rtol=1e-6)
    for name in ("logits", "log_scale"):
        np.testing.assert_allclose(found["m"][name], start.families["m"][name], rtol=1e-6)
    np.testing.assert_allclose(
        np.diff(found["m"]["loc"]), np.diff(start.families["m"]["loc"]), rtol=1e-5
    )


def test_one_array_holds_the_parameters_of_a_row_side_by_side():
    class Columns(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.tile(jnp.arange(18.0), (3, 1)) + 100 * jnp.arange(3.0)[:, None]

    guide = bbvi.Amortized(TOLD, Columns())
    found = guide.mean_field.site_params(guide.free_params({}, X))
    rows = 100 * np.arange(3)[:, None]
    for name, entry, columns in (
        ("a.0", "loc", [0, 1]),
        ("a.0", "log_scale", [2, 3]),
        ("a.1", "loc", [4, 5]),
        ("a.1", "log_scale", [6, 7]),
        ("c", "logits", [8, 9, 10, 11]),
        ("m", "loc", [12, 13]),
        ("m", "log_scale", [14, 15]),
        ("m", "logits", [16, 17]),
    ):
        np.testing.assert_array_equal(found[name][entry], rows + np.array([columns]))


@pytest.mark.parametrize(
    "sites",
    [
        {"z": bbvi.Normal((3,)), "w": bbvi.Normal()},
        {"z": bbvi.Normal((3,)), "w": bbvi.Normal((4,))},
        {"z": bbvi.Normal((3,)), "w": bbvi.Normal((3,), bbvi.supports.ordered)},
    ],
    ids=["scalar", "other_rows", "joint_rows"],
)
def test_sites_without_common_rows_are_refused_to_a_network_that_is_told(sites):
    with pytest.raises(ValueError, match=r"same number of rows, that of the data, got \{'w'"):
        bbvi.Amortized(sites, bbvi.networks.MLP(()))


def test_an_output_that_is_not_the_sites_is_refused():
    with pytest.raises(ValueError, match=r"MLP has output=3, but.*4 parameters for each row"):
        bbvi.Amortized({"z": bbvi.Normal((3, 2))}, bbvi.networks.MLP((), output=3))


def test_the_number_of_rows_must_be_that_of_the_data():
    guide = bbvi.Amortized({"z": bbvi.Normal((4, 2))}, bbvi.networks.MLP(()))
    phi = guide.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"output: float\d+\[3, 4\].*for n rows.*resized\(n\)"):
        guide.free_params(phi, X)


def test_a_transposed_output_is_refused():
    class Transposed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x).T

    guide = bbvi.Amortized({"z": bbvi.Normal((3, 2))}, Transposed())
    with pytest.raises(ValueError, match=r"float\d+\[4, 3\].*one array \[3, 4\] of them by row"):
        guide.free_params(guide.init(jax.random.key(0), X), X)


def test_product_with_global_latents():
    guide = bbvi.Product(BINARY, bbvi.MeanField({"scale": bbvi.LogNormal()}))
    check_guide(guide, X, num_samples=2000)
    phi = guide.init(jax.random.key(0), X)
    assert set(guide.logits(phi, X)) == {"b"}


def test_guides_compare_by_value():
    again = bbvi.Amortized({"b": bbvi.Bernoulli((3, 2))}, Logits())
    assert again == BINARY
    assert hash(again) == hash(BINARY)
    assert bbvi.Amortized({"b": bbvi.Bernoulli((3, 2))}, Logits(3)) != BINARY
    assert repr(BINARY).startswith("Amortized({'b': Bernoulli(shape=(3, 2))}, Logits(")


@pytest.mark.parametrize("network", [Logits, lambda x: x, None, nn.Dense(2, use_bias=[1])])
def test_what_is_not_a_network_is_refused(network):
    with pytest.raises(TypeError, match=r"network must (have init|be hashable)"):
        bbvi.Amortized({"b": bbvi.Bernoulli((3, 2))}, network)


@pytest.mark.parametrize(
    ("sites", "width", "message"),
    [
        ({"b": bbvi.Bernoulli((3, 4))}, 2, r"float\d+\[3, 2\]}, but.*b.logits: float\d+\[3, 4\]"),
        ({"b": bbvi.Bernoulli((5, 2))}, 2, r"Shapes of sites include the batch axis"),
        ({"z": bbvi.Normal((3, 2))}, 2, r"needs? {z.loc: float\d+\[3, 2\], z.log_scale: float"),
    ],
)
def test_output_that_does_not_fit_is_refused(sites, width, message):
    guide = bbvi.Amortized(sites, Logits(width))
    phi = guide.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=message):
        guide.free_params(phi, X)
    with pytest.raises(ValueError, match=message):
        bbvi.fit(lambda x, z: 0.0, guide, X, num_steps=1, progress=False)


def test_integer_output_is_refused():
    class Rounded(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x).astype(jnp.int32)

    guide = bbvi.Amortized(bbvi.Bernoulli((3, 2)), Rounded())
    phi = guide.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"output: int32\[3, 2\]"):
        guide.free_params(phi, X)


@pytest.mark.parametrize("use_running_average", [True, False])
def test_state_besides_parameters_is_refused(use_running_average):
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=use_running_average)(nn.Dense(2)(x))

    with pytest.raises(ValueError, match=r"besides its parameters, \['batch_stats'\]"):
        bbvi.Amortized(bbvi.Bernoulli((3, 2)), Normalised()).init(jax.random.key(0), X)


def test_dropout_is_refused():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(2)(x))

    guide = bbvi.Amortized(bbvi.Bernoulli((3, 2)), Noisy())
    phi = guide.init(jax.random.key(0), X)
    with pytest.raises(Exception, match=r"calls network.apply\(params, x\) and nothing else"):
        guide.free_params(phi, X)
