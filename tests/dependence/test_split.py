"""The factors of a log joint sum to it, and their derivatives to its derivatives, exactly."""

import inspect
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

from bbvi.dependence.split import FREE, additive_factors
from bbvi.dependence.split_inline import inline_calls, label

NUM_DATA, NUM_STEPS, NUM_GROUPS = 20, 7, 3
random = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


class Case(NamedTuple):
    """A log joint, its data, shapes and types of its latents, and the factors expected."""

    log_joint: object
    x: object
    z: dict  # name -> shape of reals, or (shape, number of categories)
    factors: list  # shapes, in any order; () includes what is free of the latents
    theta: object = None

    def draw(self, seed):
        """Latents at random."""
        draws = np.random.default_rng(seed)

        def one(spec):
            if spec and isinstance(spec[0], tuple):
                return jnp.asarray(draws.integers(0, spec[1], spec[0]), jnp.int32)
            return jnp.asarray(draws.normal(size=spec))

        return {name: one(spec) for name, spec in self.z.items()}

    @property
    def data(self):
        """Data and learned parameters, if there are any, in double precision."""
        model_args = () if self.theta is None else (self.theta,)
        return jax.tree.map(jnp.asarray, (self.x, *model_args))


def normal(value, mean=0.0, scale=1.0):
    """A log density, without its constant."""
    return -0.5 * ((value - mean) / scale) ** 2 - jnp.log(scale)


GROUP = random.integers(0, NUM_GROUPS, NUM_DATA).astype(np.int32)
CASES = {}


def case(x, z, factors, theta=None):
    """Register a log joint under its name."""

    def register(log_joint):
        CASES[log_joint.__name__] = Case(log_joint, x, z, factors, theta)
        return log_joint

    return register


series = random.normal(size=NUM_STEPS)
points = random.normal(size=NUM_DATA)
mixture = {"mu": (NUM_GROUPS,), "c": ((NUM_DATA,), NUM_GROUPS)}
path = {"s": (NUM_STEPS,)}
MIXED = [(NUM_GROUPS,), (NUM_DATA,), (NUM_DATA,)]


@case(series, path, [(), (NUM_STEPS - 1,), (NUM_STEPS,), ()])
def slices(x, z):
    s = z["s"]
    return normal(s[0]) + jnp.sum(normal(s[1:], s[:-1])) + jnp.sum(normal(x, s))


@case(points, mixture, MIXED)
def gathers(x, z):
    log_weights = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    return (
        jnp.sum(-0.5 * z["mu"] ** 2)
        + jnp.sum(log_weights[z["c"]])
        + jnp.sum(-0.5 * (x - z["mu"][z["c"]]) ** 2)
    )


@case((points, GROUP), {"a": (NUM_GROUPS,)}, [(NUM_GROUPS,), (NUM_DATA,)])
def one_hot_matmul(x, z):
    y, group = x
    mean = jax.nn.one_hot(group, NUM_GROUPS) @ z["a"]
    return jnp.sum(-0.5 * z["a"] ** 2) - 0.5 * jnp.sum((y - mean) ** 2)


@case((points, GROUP), {"a": (NUM_GROUPS,)}, [(NUM_DATA,)])
def vmapped(x, z):
    return jnp.sum(jax.vmap(lambda y, g: -0.5 * (y - z["a"][g]) ** 2)(*x))


@case((points, GROUP), {"a": (NUM_GROUPS,)}, [(NUM_DATA,)])
def mapped(x, z):
    return jnp.sum(jax.lax.map(lambda yg: -0.5 * (yg[0] - z["a"][yg[1]]) ** 2, x))


@case(series, path, [(NUM_STEPS,), (NUM_STEPS,), (), ()])
def scan_carry(x, z):
    def step(carry, inputs):
        last, log_p = carry
        s, y = inputs
        return (s, log_p + jnp.cos(s - last) - jnp.exp(y - s) + 0.25 * y), None

    (_, log_p), _ = jax.lax.scan(step, (z["s"][0], -jnp.square(z["s"][0])), (z["s"], x))
    return log_p


@case(series, path, [(NUM_STEPS,), (NUM_STEPS,), ()])
def scan_outputs(x, z):
    def step(last, inputs):
        s, y = inputs
        return s, jnp.cos(s - last) - jnp.exp(y - s) + 0.25 * y

    _, terms = jax.lax.scan(step, 0.0, (z["s"], x), reverse=True)
    return jnp.sum(jnp.arange(1.0, NUM_STEPS + 1) * terms)


@case(random.normal(size=(NUM_STEPS, 4)), {"s": (NUM_STEPS, 4)}, [(NUM_STEPS, 4), (NUM_STEPS, 4)])
def batched_scan(x, z):
    def log_p(x, s):
        def step(carry, inputs):
            last, total = carry
            s, y = inputs
            return (s, total - (s - last) ** 2 - jnp.exp(y - s)), None

        return jax.lax.scan(step, (0.0, 0.0), (s, x))[0][1]

    return jnp.sum(jax.vmap(log_p, in_axes=1)(x, z["s"]))


@case(series, path, [(NUM_STEPS,), ()])
def fori_loop(x, z):
    return jax.lax.fori_loop(0, NUM_STEPS, lambda t, p: p + jnp.cos(z["s"][t]) - x[t], 0.0)


@case(np.ones(40), {"s": (40,)}, [(), (40,), (39,), ()])
def python_loop(x, z):
    log_p = -0.5 * z["s"][0] ** 2
    for t in range(40):
        log_p -= jnp.cos(z["s"][t] - x[t]) + 0.5 * jnp.log(2 * jnp.pi)
        if t:
            log_p += jnp.sin(z["s"][t] - z["s"][t - 1])
    return log_p


@case(
    points,
    {"mu": (NUM_GROUPS,), "log_scale": (), "c": ((NUM_DATA,), NUM_GROUPS)},
    [(), (), (NUM_GROUPS,), (NUM_DATA,), (NUM_DATA,), ()],
)
def with_distrax(x, z):
    return (
        distrax.Independent(distrax.Normal(jnp.zeros(NUM_GROUPS), 3.0), 1).log_prob(z["mu"])
        + distrax.Normal(0.0, 1.0).log_prob(z["log_scale"])
        + jnp.sum(distrax.Categorical(logits=jnp.zeros((NUM_DATA, NUM_GROUPS))).log_prob(z["c"]))
        + jnp.sum(distrax.Normal(z["mu"][z["c"]], jnp.exp(z["log_scale"])).log_prob(x))
    )


@case(
    (points, GROUP),
    {"a": (NUM_GROUPS,), "b": (), "log_scale": ()},
    [(), (), (1,), (NUM_GROUPS,), (NUM_DATA,), ()],
)
def with_numpyro(x, z):
    def model(y, group):
        b = numpyro.sample("b", dist.Normal(0.0, 2.0))
        log_scale = numpyro.sample("log_scale", dist.Normal())
        with numpyro.plate("groups", NUM_GROUPS):
            a = numpyro.sample("a", dist.Normal(b, 1.0))
        with numpyro.plate("data", NUM_DATA):
            numpyro.sample("y", dist.Normal(a[group], jnp.exp(log_scale)), obs=y)

    return log_density(model, x, {}, z)[0]


missing = np.where(np.arange(NUM_DATA) % 4 == 0, np.nan, points)


@case(missing, {"a": (NUM_DATA,)}, [(NUM_DATA,), (NUM_DATA,), ()])
def missing_data(x, z):
    is_seen = ~jnp.isnan(x)
    return jnp.sum(jnp.where(is_seen, x * z["a"] - jnp.exp(z["a"]) + 2.0 * x, 0.0))


@case((points, GROUP), {"a": (NUM_DATA,)}, [(NUM_DATA,), (NUM_DATA,)])
def segment_sum(x, z):
    y, group = x
    sums = jax.ops.segment_sum(jnp.exp(z["a"]) - jnp.cos(z["a"] - y), group, NUM_GROUPS)
    return jnp.sum(sums * jnp.array([1.0, 2.0, 3.0]))


@case(points, {"mu": (NUM_GROUPS,)}, [(NUM_GROUPS,), (NUM_DATA,), (NUM_DATA,)])
def marginal_mixture(x, z):
    log_weights = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    terms = log_weights[None] - 0.5 * (x[:, None] - z["mu"][None]) ** 2
    return jnp.sum(-0.5 * z["mu"] ** 2) + jnp.sum(jax.scipy.special.logsumexp(terms, axis=1))


@case((random.normal(size=(6, 6)), random.normal(size=6)), {"s": (6,)}, [(6,), (6,)])
def quadratic_form(x, z):
    coupling, field = x
    return z["s"] @ coupling @ z["s"] + field @ z["s"]


@case(points, {"s": ((NUM_STEPS,), 2)}, [(NUM_STEPS - 1,), (NUM_STEPS,), (NUM_STEPS,)])
def integer_sums(x, z):
    s = z["s"]
    return 0.3 * jnp.sum((2 * s[1:] - 1) * (2 * s[:-1] - 1)) - 0.7 * jnp.sum(s) + jnp.sum(s == 1)


@case(points, {"tau": (), "v": (NUM_DATA,)}, [(NUM_DATA,), (NUM_DATA,), ()])
def scaled_sums(x, z):
    tau, v = z["tau"], z["v"]
    return jnp.exp(tau) * jnp.sum(jnp.cos(v) + x) + jnp.sum(jnp.sin(v)) / (2.0 + tau**2)


@case(points, {"a": (NUM_DATA,)}, [(NUM_DATA,), ()])
def conditional(x, z):
    is_large = z["a"][0] > 0
    dense = jax.lax.cond(is_large, lambda a: jnp.sum(a**2), lambda a: jnp.sum(-(a**3)), z["a"])
    return dense + jnp.sum(jnp.cos(z["a"] - x))


@jax.custom_jvp
def straight_through(a):
    return jnp.sum(jnp.round(a))


straight_through.defjvps(lambda tangent, _, a: jnp.sum(tangent))


@jax.custom_vjp
def clipped(a):
    return 2.0 * a


clipped.defvjp(lambda a: (2.0 * a, None), lambda _, ct: (jnp.clip(ct, -0.1, 0.1),))


@case(points, {"a": (NUM_DATA,)}, [(), (NUM_DATA,)])
def own_derivatives(x, z):
    return straight_through(z["a"] - x) + jnp.sum(clipped(z["a"]))


@case(
    points,
    {"a": (NUM_DATA,)},
    [(NUM_DATA,), (NUM_DATA,), ()],
    theta={"scale": np.array(0.0), "w": np.linspace(-1.0, 1.0, NUM_DATA)},
)
def learned(x, z, theta):
    """A weight that is zero has a derivative all the same."""
    fit = theta["scale"] * jnp.sum(jnp.cos(z["a"] - x)) + theta["w"] @ jnp.square(z["a"])
    return fit - 0.5 * jnp.sum(theta["w"] ** 2)


def sum_of_factors(log_joint):
    """The log joint, put together again."""

    def value(x, z, *model_args):
        return sum(
            jnp.sum(array) for array in additive_factors(log_joint, x, z, *model_args).arrays
        )

    return value


def with_gradients(function, x, z, *model_args):
    """Its value and its derivatives in the floating latents and the parameters."""
    real = {name: leaf for name, leaf in z.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}

    def value(real, model_args):
        return function(x, z | real, *model_args)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(real, model_args)


def assert_same(got, expected, rtol=1e-12):
    """Equal up to rounding, relative to the largest number there is."""
    scale = max(1.0, *(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale), got, expected
    )


def shapes(factors):
    return sorted(array.shape for array in factors.arrays)


@pytest.fixture(params=CASES)
def model(request):
    return CASES[request.param]


def test_value_and_gradients_are_those_of_the_log_joint(model):
    x, *model_args = model.data
    for seed in range(2):
        z = model.draw(seed)
        got = with_gradients(sum_of_factors(model.log_joint), x, z, *model_args)
        expected = with_gradients(model.log_joint, x, z, *model_args)
        if model.log_joint is missing_data:  # JAX: 0 times NaN
            assert jnp.isnan(expected[1][0]["a"][0])
            got, expected = got[0], expected[0]
        assert_same(got, expected)


def test_factors_are_not_reduced(model):
    x, *model_args = model.data
    factors = additive_factors(model.log_joint, x, model.draw(0), *model_args)
    assert len(factors.labels) == len(factors.arrays)
    assert shapes(factors) == sorted(model.factors)


def test_jit_and_vmap_agree_with_single_calls(model):
    x, *model_args = model.data
    draws = [model.draw(seed) for seed in range(3)]
    single = [model.log_joint(x, z, *model_args) for z in draws]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    function = sum_of_factors(model.log_joint)
    batched = jax.jit(
        jax.vmap(lambda z, x, *args: function(x, z, *args), (0,) + (None,) * len(model.data))
    )
    assert_same(batched(stacked, x, *model_args), jnp.stack(single))


# Linear functions of e = exp(a) - cos(a), [3, 4].
LINEAR_IN_E = {
    "add": lambda e: e + e[0, 0],
    "sub": lambda e: 2.0 - e,
    "neg": lambda e: -e,
    "div": lambda e: e / jnp.arange(1.0, 13).reshape(3, 4),
    "sum": lambda e: jnp.sum(e, axis=1),
    "mean": lambda e: jnp.mean(e, axis=0),
    "reshape": lambda e: e.reshape(2, 6),
    "transpose": lambda e: e.T,
    "squeeze": lambda e: jnp.squeeze(e[None, :, :, None]),
    "broadcast": lambda e: jnp.broadcast_to(e[None], (2, 3, 4)),
    "rev": lambda e: e[::-1],
    "concatenate": lambda e: jnp.concatenate([e, e[:1], jnp.ones((2, 4))]),
    "stack": lambda e: jnp.stack([e, 3 * e]),
    "unstack": lambda e: jnp.unstack(e)[1],
    "tile": lambda e: jnp.tile(e, (2, 1)),
    "pad": lambda e: jax.lax.pad(e, 1.5, [(1, -1, 0), (0, 2, 1)]),
    "cumsum": lambda e: jnp.cumsum(e, axis=1),
    "split": lambda e: jnp.split(e, 2, axis=1)[0],
    "slice": lambda e: e[1:, ::2],
    "cast": lambda e: e.astype(jnp.float32).astype(jnp.float64),
    "copy": lambda e: jnp.copy(e),
    "window": lambda e: jax.lax.reduce_window(e, 0.0, jax.lax.add, (2, 2), (1, 1), "VALID"),
    "mul": lambda e: jnp.arange(12.0).reshape(3, 4) * e,
    "size-1 mul": lambda e: jax.lax.mul(e, jnp.arange(3.0)[:, None]),
    "size-1 add": lambda e: jax.lax.add(e[:, :1], jnp.ones((3, 4))) + e,
    "matmul": lambda e: jnp.arange(6.0).reshape(2, 3) @ e,
    "conv": lambda e: jnp.convolve(e.ravel(), jnp.array([1.0, 2.0, 3.0])),
    "gather": lambda e: e[jnp.array([0, 2, 2, 0])],
    "gather clip": lambda e: e.at[jnp.array([0, 9])].get(mode="clip"),
    "gather zero": lambda e: e.at[jnp.array([0, 9])].get(mode="fill", fill_value=0.0),
    "dynamic_slice": lambda e: jax.lax.dynamic_slice(e, (2, 1), (2, 2)),
    "dynamic_update_slice": lambda e: jax.lax.dynamic_update_slice(e, jnp.ones((1, 2)), (1, 1)),
    "scatter-add": lambda e: jnp.ones((3, 4)).at[jnp.array([0, 0, 2])].add(e),
    "scatter-add clip": lambda e: jnp.zeros((2, 4)).at[jnp.array([0, 1, 7])].add(e, mode="clip"),
    "scatter-add drop": lambda e: jnp.zeros((2, 4)).at[jnp.array([0, 1, 7])].add(e, mode="drop"),
    "select": lambda e: jnp.where(jnp.arange(12).reshape(3, 4) % 2 == 0, e, -1.0),
    "jit": lambda e: jax.jit(lambda e: 2 * e + 1)(e),
    "remat": lambda e: jax.checkpoint(lambda e: 2 * e + 1)(e),
}


@pytest.mark.parametrize("name", LINEAR_IN_E)
def test_weights_pass_what_is_linear(name):
    def log_joint(x, z):
        out = LINEAR_IN_E[name](jnp.exp(z["a"]) - jnp.cos(z["a"]))
        return jnp.sum(out * jnp.sin(1.0 + jnp.arange(out.size)).reshape(out.shape))

    z = {"a": jnp.asarray(random.normal(size=(3, 4)))}
    factors = additive_factors(log_joint, None, z)
    assert [array.shape for array in factors.arrays[:2]] == [(3, 4), (3, 4)]
    assert [text[:3] for text in factors.labels[:2]] == ["exp", "cos"]
    assert factors.labels[2:] in ([], [FREE])
    # A cast to float32 in between is left out.
    tolerance = 1e-6 if name == "cast" else 1e-12
    got = with_gradients(sum_of_factors(log_joint), None, z)
    assert_same(got, with_gradients(log_joint, None, z), tolerance)


NOT_SPLIT = {
    "product": lambda a: jnp.prod(a),
    "maximum": lambda a: jnp.max(a),
    "square of a sum": lambda a: jnp.sum(a) ** 2,
    "logsumexp": lambda a: jnp.log(jnp.sum(jnp.exp(a))),
    "cond": lambda a: jax.lax.cond(a[0] > 0, jnp.sum, jnp.max, a),
    "while": lambda a: jax.lax.while_loop(
        lambda c: c[0] < 4, lambda c: (c[0] + 1, c[1] + a[c[0]]), (0, 0.0)
    )[1],
    "decaying carry": lambda a: jax.lax.scan(lambda p, v: (0.9 * p + v, None), 0.0, a)[0],
    "carry that is read": lambda a: jax.lax.scan(lambda p, v: (p + p * v, None), 1.0, a)[0],
    "subtracted carry": lambda a: jax.lax.scan(lambda p, v: (v - p, None), 1.0, a)[0],
    "chosen entry": lambda a: a[jnp.argmax(a)],
    "derivative stopped": lambda a: jax.lax.stop_gradient(jnp.sum(a)),
    "cast to integers": lambda a: jnp.sum(a).astype(int).astype(float),
    "associative scan of one": lambda a: jax.lax.associative_scan(jnp.multiply, a[:1])[0],
    "top-k": lambda a: jax.lax.top_k(a, 2)[0][1],
}


@pytest.mark.parametrize("name", NOT_SPLIT)
def test_what_is_not_linear_stays_one_factor(name):
    def log_joint(x, z):
        return 3.0 * NOT_SPLIT[name](z["a"])

    z = {"a": jnp.asarray(random.normal(size=4))}
    factors = additive_factors(log_joint, None, z)
    (array,) = factors.arrays
    assert array.size == 1
    assert_same(jnp.sum(array), log_joint(None, z))
    if name != "while":
        got = with_gradients(sum_of_factors(log_joint), None, z)
        assert_same(got, with_gradients(log_joint, None, z))


def check(log_joint, x, z, expected_shapes):
    """Value, gradients and shapes at one point."""
    x, z = jax.tree.map(jnp.asarray, (x, z))
    assert shapes(additive_factors(log_joint, x, z)) == sorted(expected_shapes)
    got = with_gradients(sum_of_factors(log_joint), x, z)
    expected = with_gradients(log_joint, x, z)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(expected))
    assert_same(got, expected)


def test_terms_free_of_the_latents_count_under_weights_that_are_not():
    def log_joint(x, z):
        return jnp.exp(z["tau"]) * (jnp.sum(jnp.cos(z["v"])) + jnp.sum(x) + 3.0)

    z = {"tau": np.array(0.3), "v": np.arange(5.0)}
    check(log_joint, np.arange(4.0), z, [(5,), (), ()])


def test_sums_are_found_behind_constants_and_loops():
    def log_joint(x, z):
        total = jax.lax.fori_loop(0, 5, lambda t, p: p + jnp.sin(z["v"][t]), 0.0)
        return jnp.exp(z["tau"]) * (-0.5 * jnp.sum(z["v"] ** 2)) + total / z["tau"]

    check(log_joint, None, {"tau": np.array(0.3), "v": np.arange(5.0)}, [(5,), (5,)])


def test_slices_of_latents_are_not_padded():
    def log_joint(x, z):
        return sum(x[t] * z["s"][t] for t in range(4)) + jnp.sum(z["s"][1:3])

    x, z = np.array([1.0, 2.0, 3.0, 4.0]), {"s": np.arange(4.0)}
    check(log_joint, x, z, [(1,), (1,), (1,), (1,), (2,)])


def test_integer_accumulator():
    def log_joint(x, z):
        count = jax.lax.fori_loop(0, 4, lambda t, n: n + (z["s"][t] > 0), 0)
        halves = jax.lax.fori_loop(0, 4, lambda t, n: (n + z["s"][t]).astype(int), 0)
        return 0.5 * count + 0.25 * halves

    check(log_joint, None, {"s": np.array([0.7, -1.0, 2.6, 0.9])}, [(4,), ()])


def test_what_a_mask_hides_may_be_nan():
    def log_joint(x, z):
        largest = jnp.maximum(z["a"], x["y"])  # NaN, though its derivative is a number
        scaled = z["scale"] * jnp.sum(jnp.where(x["seen"], jnp.cos(z["a"]) + x["y"], 0.0))
        return jnp.sum(jnp.where(x["seen"], largest, 0.0)) + scaled

    x = {"y": np.array([np.nan, 1.0, np.inf, 2.0]), "seen": np.array([False, True, False, True])}
    z = {"a": np.linspace(-1.0, 1.5, 4), "scale": np.array(0.7)}
    check(log_joint, x, z, [(4,), (4,), (4,)])


def test_rows_a_mask_hides_may_be_nan():
    def log_joint(x, z):
        return jnp.sum(jnp.where(x["seen"], x["design"] @ z["w"], 0.0))

    design = np.ones((4, 2))
    design[0] = np.nan
    x = jax.tree.map(jnp.asarray, {"design": design, "seen": np.arange(4) > 0})
    z = {"w": jnp.array([1.0, 2.0])}
    factors = additive_factors(log_joint, x, z)
    assert shapes(factors) == [(4,)]
    assert_same(factors.arrays[0], jnp.array([0.0, 3.0, 3.0, 3.0]))


def test_division_by_zero_under_a_mask():
    def log_joint(x, z):
        ratio = jnp.sum(jnp.where(x > 0, jnp.cos(z["a"]) / x, 0.0))
        return ratio + jnp.where(False, jnp.sum(z["a"]) / 0.0, 0.0)

    x, z = jnp.array([0.0, 1.0, 2.0]), {"a": jnp.arange(3.0)}
    assert_same(sum_of_factors(log_joint)(x, z), log_joint(x, z))


def test_unmasked_infinities_stay():
    def log_joint(x, z):
        return jnp.sum(jnp.log(z["a"]))

    z = {"a": jnp.array([0.0, 1.0])}
    (array,) = additive_factors(log_joint, None, z).arrays
    assert array.tolist() == [-np.inf, 0.0]


def test_weights_that_are_zero_keep_their_derivatives():
    def log_joint(x, z):
        return jnp.sum(jnp.where(x > 0, jnp.cos(z["a"]), 0.0)) * z["scale"]

    z = {"a": np.linspace(-1.0, 1.5, 4), "scale": np.array(0.0)}
    check(log_joint, np.array([0.0, 1.0, 1.0, 0.0]), z, [(4,)])


def test_index_out_of_bounds_filled_with_a_constant():
    def log_joint(x, z):
        return jnp.sum(z["a"].at[jnp.array([0, 9])].get(mode="fill", fill_value=5.0))

    check(log_joint, None, {"a": np.arange(3.0)}, [(2,)])


def test_bitcast_changes_the_rank():
    def log_joint(x, z):
        return jnp.sum(jax.lax.bitcast_convert_type(z["a"], jnp.float32).astype(jnp.float64))

    z = {"a": jnp.arange(1.0, 4.0)}
    factors = additive_factors(log_joint, None, z)
    assert shapes(factors) == [(3, 2)]
    assert_same(jnp.sum(factors.arrays[0]), log_joint(None, z))


@pytest.mark.parametrize("is_left", [True, False])
def test_integers_are_contracted_with_floats(is_left):
    """JAX contracts them without a cast; a weight for an integer must still be a float."""

    def log_joint(x, z, theta):
        b = jnp.dot(theta, z["b"]) if is_left else jnp.dot(z["b"], theta)
        return b + jnp.dot(x.astype(int) @ z["b"], theta)

    x, z, theta = jnp.eye(3) * 2, {"b": jnp.array([1, 0, 2])}, jnp.array([0.3, -0.2, 0.5])
    factors = additive_factors(log_joint, x, z, theta)
    assert sum(array.sum() for array in factors.arrays) == pytest.approx(3 * 1.3)
    gradient = jax.grad(lambda t: sum_of_factors(log_joint)(x, z, t))(theta)
    np.testing.assert_allclose(gradient, [3.0, 0.0, 6.0], rtol=1e-6)


def test_empty_arrays():
    def log_joint(x, z):
        return jnp.sum(jnp.exp(z["a"][2:])) + jnp.sum(jnp.exp(z["a"]))

    check(log_joint, None, {"a": np.arange(2.0)}, [(0,), (2,)])


def test_loops_in_loops():
    def log_joint(x, z):
        def row(total, inputs):
            y, s = inputs
            inside, ends = jax.lax.scan(lambda p, v: (p + jnp.cos(v), jnp.sin(v * y)), 0.0, s)
            return total + inside - y, ends

        total, ends = jax.lax.scan(row, 1.0, (x, z["s"]))
        return total + jnp.sum(jnp.where(x[:, None] > 0, ends, 0.0))

    z = {"s": random.normal(size=(3, 4))}
    check(log_joint, np.array([1.0, -1.0, 2.0]), z, [(3, 4), (3, 4), ()])


def test_state_and_total_of_one_loop():
    def log_joint(x, z):
        def step(carry, v):
            state, total = carry
            state = jnp.tanh(state + v)
            return (state, total - state**2), state

        (last, total), states = jax.lax.scan(step, (x, 0.0), z["s"])
        return total + jnp.exp(last) + jnp.prod(states)

    check(log_joint, np.array(0.5), {"s": random.normal(size=4)}, [(4,), (), ()])


def test_a_log_joint_free_of_its_latents():
    factors = additive_factors(lambda x, z: jnp.sum(x) - 1.0, jnp.arange(3.0), {"a": jnp.ones(2)})
    assert factors.labels == [FREE]
    assert factors.arrays[0] == 2.0


def test_single_precision_and_mixed():
    def log_joint(x, z):
        return jnp.sum(jnp.exp(z)).astype(x.dtype) + jnp.sum(x)

    for dtype in (jnp.float32, jnp.float64):
        x, z = jnp.ones(3, dtype), jnp.arange(4, dtype=jnp.float32)
        factors = additive_factors(log_joint, x, z)
        assert [array.dtype for array in factors.arrays] == [dtype, dtype]
        np.testing.assert_allclose(sum_of_factors(log_joint)(x, z), log_joint(x, z), rtol=1e-6)


def test_data_of_every_kind():
    def log_joint(x, z):
        noise = jax.random.normal(x["key"], (3,))
        return jnp.sum(jnp.cos(z["a"] - noise)) * x["count"]

    def x():
        return {"key": jax.random.key(0), "count": 3, "nothing": None, "flag": np.array([True])}

    z = {"a": jnp.arange(3.0)}
    assert_same(sum_of_factors(log_joint)(x(), z), log_joint(x(), z))


def test_labels_name_operation_and_line():
    def log_joint(x, z):
        first = jnp.sum(jnp.cos(z["a"]))
        return first + jax.scipy.stats.norm.logpdf(z["b"])

    source, start = inspect.getsourcelines(log_joint)
    lines = [
        start + next(i for i, text in enumerate(source) if word in text) for word in ("cos", "norm")
    ]
    labels = additive_factors(log_joint, None, {"a": jnp.ones(2), "b": jnp.array(0.5)}).labels
    assert labels[0] == f"cos at test_split.py:{lines[0]}"
    assert labels[1].endswith(f" at test_split.py:{lines[1]}")


def test_what_jax_jits_takes_the_line_of_its_call():
    def log_joint(z):
        first = jnp.sum(jnp.where(z > 0, z, 0.0))
        return first + jnp.sum(jnp.where(z < 0, z, 0.0))

    start = inspect.getsourcelines(log_joint)[1]
    equations = inline_calls(jax.make_jaxpr(log_joint)(jnp.ones(3))).jaxpr.eqns
    chosen = [label(equation) for equation in equations if equation.primitive.name == "select_n"]
    assert chosen == [f"select_n at test_split.py:{start + line}" for line in (1, 2)]


def test_labels_without_tracebacks(monkeypatch):
    (equation,) = jax.make_jaxpr(jnp.cos)(0.5).jaxpr.eqns
    monkeypatch.delattr("jax.extend.source_info_util.summarize")
    assert label(equation) == "cos"


def test_nothing_large_is_made_by_the_analysis():
    case, size = CASES["gathers"], 10**6
    z = {"mu": jax.ShapeDtypeStruct((3,), jnp.float64), "c": jax.ShapeDtypeStruct((size,), int)}
    program = jax.make_jaxpr(lambda x, z: additive_factors(case.log_joint, x, z).arrays)(
        jax.ShapeDtypeStruct((size,), jnp.float64), z
    )
    assert [aval.shape for aval in program.out_avals] == [(3,), (size,), (size,)]
    assert sum(np.size(constant) for constant in program.consts) < 10
    assert not any(
        equation.primitive.name == "broadcast_in_dim" and equation.outvars[0].aval.shape == (size,)
        for equation in program.jaxpr.eqns
    )


@pytest.mark.parametrize("log_joint", [lambda x, z: z, lambda x, z: (z[0], z[1]), lambda x, z: 1])
def test_a_log_joint_that_is_no_scalar(log_joint):
    with pytest.raises(ValueError, match=r"must return one real scalar, got .*; sum its terms"):
        additive_factors(log_joint, None, jnp.ones(2))
