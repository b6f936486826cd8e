import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import (
    bernoulli_problem,
    check_mean,
    exact_bernoulli_gradient,
    replicate_gradients,
)
from tests.estimators.oracles import check_variance, normal_signal_problem

SIGNAL = jnp.array([1.0, -2.0, 6.0, 0.5])


@dataclasses.dataclass(frozen=True)
class Line:
    """The least a network can be: an intercept and a slope."""

    scale: float = 0.1

    def init(self, key, x):
        return self.scale * jax.random.normal(key, (2,))

    def apply(self, params, x):
        return params[0] + params[1] * x


class Dense(nn.Module):
    """From data ``[N, K]``, an output ``[N]``."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(x)))[:, 0]


def warm(baseline, signals):
    """The baseline's state after steps that saw these signals."""
    state = baseline.init((), 2.0)
    for signal in signals:
        _, state = baseline(state, jnp.asarray(signal), 2.0)
    return state


@pytest.mark.parametrize(
    "baseline",
    [
        bbvi.NoBaseline(),
        bbvi.LeaveOneOut(),
        bbvi.MovingAverage(0.0),
        bbvi.MovingAverage(0.9),
        bbvi.LearnedBaseline(),
        bbvi.LearnedBaseline(Line()),
    ],
    ids=repr,
)
def test_never_sees_its_own_sample(baseline):
    """The diagonal of the Jacobian is zero: what makes the gradient unbiased."""
    state = warm(baseline, [SIGNAL + 1.0, SIGNAL - 3.0])
    jacobian = jax.jacobian(lambda signal: baseline(state, signal, 2.0)[0])(SIGNAL)
    np.testing.assert_allclose(jnp.diag(jacobian), 0, atol=1e-6)


def test_none_is_zero():
    values, state = bbvi.NoBaseline()((), SIGNAL, None)
    np.testing.assert_array_equal(values, jnp.zeros(4))
    assert state == ()


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_leave_one_out_is_the_mean_of_the_others(offset):
    signal = SIGNAL + offset
    values, _ = bbvi.LeaveOneOut()((), signal, None)
    wanted = [np.delete(np.asarray(signal, np.float64), s).mean() for s in range(4)]
    np.testing.assert_allclose(values, wanted, rtol=2e-7, atol=1e-6)
    assert bbvi.LeaveOneOut.min_samples == 2


def test_leave_one_out_of_two_swaps():
    values, _ = bbvi.LeaveOneOut()((), jnp.array([3.0, -1.0]), None)
    np.testing.assert_allclose(values, [-1.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_moving_average_is_that_of_the_past(decay):
    rng = np.random.default_rng(0)
    signals = rng.normal(2.0, 1.0, (6, 3)).astype(np.float32)
    baseline = bbvi.MovingAverage(decay)
    state = baseline.init((), None)
    for step, signal in enumerate(signals):
        values, state = baseline(state, jnp.asarray(signal), None)
        shares = decay ** np.arange(step)[::-1]
        past = shares @ signals[:step].mean(axis=1) / shares.sum() if step else 0.0
        np.testing.assert_allclose(values, np.full(3, past), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_moving_average_of_a_constant_is_that_constant(decay):
    """Storing the bias-corrected value, a bug seen elsewhere, would make it grow or shrink."""
    baseline = bbvi.MovingAverage(decay)
    state = baseline.init((), None)
    first, state = baseline(state, jnp.full(2, 5.0), None)
    np.testing.assert_array_equal(first, [0.0, 0.0])
    for _ in range(20):
        values, state = baseline(state, jnp.full(2, 5.0), None)
        np.testing.assert_allclose(values, [5.0, 5.0], rtol=1e-5)


def test_moving_average_compiles_and_keeps_its_dtype():
    baseline = bbvi.MovingAverage(0.9)
    state = warm(baseline, [SIGNAL])
    values, after = jax.jit(baseline)(state, SIGNAL, None)
    np.testing.assert_allclose(values, jnp.full(4, SIGNAL.mean()), rtol=1e-6)
    assert [leaf.dtype for leaf in after] == [leaf.dtype for leaf in state]
    assert [leaf.weak_type for leaf in after] == [False, False]


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_decay_is_checked(decay):
    with pytest.raises(ValueError, match=r"MovingAverage decay must be in \[0, 1\), got"):
        bbvi.MovingAverage(decay)


def learned_by_hand(signals, rate):
    """Values and constants of a learned baseline under gradient descent, in NumPy."""
    mean, variance, weight, centre, scale = 0.0, 0.0, 0.0, 0.0, 1.0
    constants, values = np.zeros(signals.shape[2:]), []
    for signal in signals:
        values.append(centre + scale * constants)
        mean, variance = 0.9 * mean + 0.1 * signal.mean(), 0.9 * variance + 0.1 * signal.var()
        weight = 0.9 * weight + 0.1
        centre, scale = mean / weight, np.sqrt(max(variance / weight, 1.0))
        constants = constants + rate * (((signal - centre) / scale).mean(axis=0) - constants)
    return np.stack(values)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_learned_constants_descend_the_squared_error(shape):
    """Step by step: the value is that of before, in units of the past's mean and deviation."""
    signals = np.random.default_rng(0).normal(30.0, 5.0, (8, 4, *shape)).astype(np.float32)
    baseline = bbvi.LearnedBaseline(optimizer=optax.sgd(0.2))
    state = baseline.init(shape, None)
    for signal, wanted in zip(signals, learned_by_hand(signals, 0.2), strict=True):
        values, state = baseline(state, jnp.asarray(signal), None)
        np.testing.assert_allclose(values, np.broadcast_to(wanted, signal.shape), rtol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e5])
@pytest.mark.parametrize("network", [None, Line(), Dense()], ids=["constants", "line", "flax"])
def test_learned_baseline_finds_the_mean_signal_of_every_block(network, size):
    """Without noise nothing of the signal is left; the default rate serves signals of any size."""
    x = jnp.linspace(-1.0, 1.0, 5)
    wanted = size * (3.0 + 2.0 * x)
    data = x[:, None] if isinstance(network, Dense) else x
    baseline = bbvi.LearnedBaseline(network)

    def step(state, _):
        values, state = baseline(state, jnp.broadcast_to(wanted, (2, 5)), data)
        return state, values

    _, values = jax.jit(lambda: jax.lax.scan(step, baseline.init((5,), data), length=2000))()
    np.testing.assert_array_equal(values[-1][0], values[-1][1])
    np.testing.assert_allclose(values[-1][0], wanted, atol=0.02 * size)


def test_learned_baseline_is_unbiased_along_a_run():
    """The state is random too: each replicate is a chain, as in a fit; its last step counts."""
    problem, params = bernoulli_problem()
    x = jnp.array([0.5, -1.0, 2.0])
    baseline = bbvi.LearnedBaseline(Line(), optimizer=optax.sgd(0.5))
    estimator = bbvi.ScoreFunction(1, baseline)

    def last(key):
        def step(state, noise):
            estimate, state = estimator.estimate(noise, problem, params, x, state)
            return state, estimate.grads

        noise = jax.vmap(lambda key: estimator.draw(key, problem))(jax.random.split(key, 3))
        _, grads = jax.lax.scan(step, estimator.init(problem, params, x), noise)
        return ravel_pytree(jax.tree.map(lambda leaf: leaf[-1], grads))[0]

    keys = jax.random.split(jax.random.key(3), 100_000)
    gradients = jax.jit(lambda keys: jax.lax.map(last, keys, batch_size=1000))(keys)
    exact = ravel_pytree(exact_bernoulli_gradient(problem, params, x))[0]
    check_mean(gradients, exact, power=0.25)  # updating before use would halve the gradient


@dataclasses.dataclass(frozen=True)
class Trained(bbvi.LearnedBaseline):
    """Starts from what it learns in 300 steps of 1000 draws of a given signal."""

    signal: tuple = ()

    def init(self, shape, x):
        def step(state, signal):
            return super(Trained, self).__call__(state, signal, x)[::-1]

        start = super().init(shape, x)
        return jax.lax.scan(step, start, jnp.broadcast_to(jnp.array(self.signal), (300, 1000)))[0]


def test_a_trained_constant_has_the_variance_of_the_mean_baseline():
    """f = (z - k)^2 minus its mean: the variance in mu is 8 d^2 + 10 s^2, with d = mu - k."""
    mu, s, k = 1.0, 1.5, -0.7
    exact = 8 * (mu - k) ** 2 + 10 * s**2
    np.testing.assert_allclose(exact, 45.62, rtol=1e-4)
    nodes = np.random.default_rng(0).normal(size=500)
    standardized = np.concatenate([nodes, -nodes]) / nodes.std()
    standardized /= np.sqrt(np.mean(standardized**2))  # mean 0 and variance 1 exactly
    baseline = Trained(signal=tuple((mu + s * standardized - k) ** 2))
    problem, params = normal_signal_problem(lambda z: (z - k) ** 2, mu, s)
    estimator = bbvi.ScoreFunction(1, baseline)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 200_000)
    check_variance(gradients[:, 0], exact)


def test_learned_baselines_compare_by_value():
    first, second = (bbvi.LearnedBaseline(Dense(), optax.adam(0.1)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    others = [
        bbvi.LearnedBaseline(Dense()),
        bbvi.LearnedBaseline(None, optax.adam(0.1)),
        bbvi.LearnedBaseline(Dense(), optax.adam(0.1), seed=1),
    ]
    assert len({first, *others}) == 4
    assert dataclasses.replace(first, seed=1) == others[2]


def test_a_second_fit_with_an_equal_baseline_is_not_traced():
    traces = []

    def log_joint(x, z):
        traces.append(1)
        return jnp.sum(z["b"] * x[:, 0])

    def losses():
        result = bbvi.fit(
            log_joint,
            bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
            jnp.array([[2.0], [0.0], [-2.0]]),
            key=jax.random.key(0),
            estimator=bbvi.ScoreFunction(4, bbvi.LearnedBaseline(Dense(), optax.adam(1e-2))),
            num_steps=20,
            progress=False,
        )
        return result.history.loss

    first, before = losses(), len(traces)
    np.testing.assert_array_equal(losses(), first)
    assert len(traces) == before > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"network": lambda x: x}, TypeError, "network must have init"),
        ({"network": Dense}, TypeError, "an instance of a flax.linen module"),
        ({"network": Line([0.1])}, TypeError, "network must be hashable"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be an optax.GradientTransformation"),
        ({"seed": -1}, ValueError, "seed must be an int >= 0, got -1"),
        ({"seed": 0.5}, ValueError, "seed must be an int >= 0, got 0.5"),
    ],
)
def test_bad_learned_baselines_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        bbvi.LearnedBaseline(**options)


@pytest.mark.parametrize("shape", [(), (4,), (1, 3)])
def test_a_network_of_the_wrong_shape_is_refused(shape):
    baseline = bbvi.LearnedBaseline(Line())
    message = r"broadcasts to the site's blocks \(.*\), got shapes \[\(2, 3\)\]"
    with pytest.raises(ValueError, match=message):
        baseline.init(shape, jnp.ones((2, 3)))


def test_a_network_of_integers_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Counter(Line):
        def apply(self, params, x):
            return jnp.zeros((), int)

    with pytest.raises(ValueError, match="must return one floating-point array"):
        bbvi.LearnedBaseline(Counter()).init((), None)


def test_a_network_with_running_statistics_is_refused():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(2)(x))[:, 0].sum()

    with pytest.raises(ValueError, match=r"LearnedBaseline has variables .* \['batch_stats'\]"):
        bbvi.LearnedBaseline(Normalised()).init((), jnp.ones((4, 3)))
