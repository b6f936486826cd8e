import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
import models
from bbvi.estimators.score_function import Coefficient
from bbvi.testing import (
    bernoulli_problem,
    check_estimator,
    check_mean,
    exact_bernoulli_gradient,
    replicate_gradients,
)
from tests.estimators.oracles import (
    LEVEL,
    LOG_Z,
    MU,
    THETA,
    M,
    S,
    T,
    bernoulli_signal_problem,
    check_variance,
    estimate,
    gauss_hermite,
    gaussian_problem,
    gaussian_signal,
    leave_one_out_variance,
    normal_signal_problem,
    signal_problem,
)

REINFORCE = bbvi.ScoreFunction(1, bbvi.NoBaseline())
REPLICATES = 200_000


@dataclasses.dataclass(frozen=True)
class Warmed(bbvi.ScoreFunction):
    """Starts from the state its baseline reaches after some steps."""

    def init(self, problem, params, x):
        @jax.jit
        def step(state, key):
            return self.estimate(self.draw(key, problem), problem, params, x, state)[1]

        state = super().init(problem, params, x)
        for i in range(10):
            state = step(state, jax.random.key(100 + i))
        return state


@pytest.mark.parametrize(("num_samples", "decay"), [(1, 0.9), (4, 0.0)])
def test_warm_moving_average_is_unbiased(num_samples, decay):
    check_estimator(Warmed(num_samples, bbvi.MovingAverage(decay)), replicates=60_000)


def test_moving_average_is_unbiased_along_a_run():
    """The state is random too: each replicate is a chain, as in a fit; its last step counts."""
    problem, params = bernoulli_problem()
    estimator = bbvi.ScoreFunction(1, bbvi.MovingAverage(0.5))

    def last(key):
        def step(state, noise):
            estimate, state = estimator.estimate(noise, problem, params, None, state)
            return state, estimate.grads

        start = estimator.init(problem, params, None)
        noise = jax.vmap(lambda key: estimator.draw(key, problem))(jax.random.split(key, 4))
        _, grads = jax.lax.scan(step, start, noise)
        return ravel_pytree(jax.tree.map(lambda leaf: leaf[-1], grads))[0]

    keys = jax.random.split(jax.random.key(3), 40_000)
    gradients = jax.jit(lambda keys: jax.lax.map(last, keys, batch_size=1000))(keys)
    check_mean(gradients, ravel_pytree(exact_bernoulli_gradient(problem, params, None))[0])


@pytest.mark.parametrize("estimator", [bbvi.ScoreFunction(4), bbvi.VarGrad(4)], ids=repr)
def test_zero_at_the_posterior(estimator, key):
    problem, params = gaussian_problem(loc=M, scale=T)
    noise = estimator.draw(key, problem)
    grads = estimate(estimator, problem, params, noise).grads
    np.testing.assert_allclose(grads.guide.normal, 0, atol=2e-6)


@pytest.mark.parametrize("estimator", [bbvi.ScoreFunction(4), bbvi.VarGrad(4)], ids=repr)
def test_adding_a_constant_changes_nothing(estimator, key):
    problem, params = gaussian_problem()
    shifted = dataclasses.replace(problem, log_joint=lambda x, z: problem.log_joint(x, z) + 100.0)
    noise = estimator.draw(key, problem)
    here, there = (
        estimate(estimator, p, params, noise).grads.guide.normal for p in (problem, shifted)
    )
    np.testing.assert_allclose(there, here, atol=1e-3)


# Exact variances. With e ~ N(0, 1), h = (e / s, e^2 - 1) are the scores of (mu, log s).


def test_variance_without_baseline():
    """Var f h for f = a0 + a1 e + a2 e^2, by normal moments up to the eighth."""
    a0, a1, a2 = gaussian_signal()
    exact = [
        ((a0 + 3 * a2) ** 2 + 6 * a2**2 + 2 * a1**2) / S**2,
        2 * (a0 + 5 * a2) ** 2 + 24 * a2**2 + 10 * a1**2,
    ]
    np.testing.assert_allclose(exact, [2.6292, 7.9443], rtol=1e-4)
    problem, params = gaussian_problem()
    gradients = replicate_gradients(
        jax.random.key(1), REINFORCE, problem, params, None, 2 * REPLICATES
    )
    check_variance(gradients, exact)


def test_variance_without_baseline_at_the_posterior():
    """The signal is then log Z, a constant, yet the gradient is not zero: (log Z)^2 Var h."""
    problem, params = gaussian_problem(loc=M, scale=T)
    gradients = replicate_gradients(jax.random.key(1), REINFORCE, problem, params, None, REPLICATES)
    check_variance(gradients, [LOG_Z**2 / T**2, 2 * LOG_Z**2])


def test_variance_on_a_parabola():
    """f = (z - k)^2 with d = mu - k: Mohamed et al. (2020), figure 2, in closed form."""
    mu, s, k = 1.0, 1.5, -0.7
    d = mu - k
    by_mu = d**4 / s**2 + 14 * d**2 + 15 * s**2
    by_s = 2 * d**4 / s**2 + 60 * d**2 + 74 * s**2
    np.testing.assert_allclose([by_mu, by_s], [77.922, 347.32], rtol=1e-4)
    problem, params = normal_signal_problem(lambda z: (z - k) ** 2, mu, s)
    gradients = replicate_gradients(jax.random.key(1), REINFORCE, problem, params, None, REPLICATES)
    check_variance(gradients, [by_mu, s**2 * by_s])


def test_variance_on_a_cosine():
    """f = cos(k z): here the pathwise gradient has nine times the variance of this one."""
    mu, s, k = 1.0, 1.5, 2.0
    decay = np.exp(-(k**2) * s**2 / 2)
    mean = -k * decay * np.sin(k * mu)
    exact = (1 + decay**4 * (1 - 4 * k**2 * s**2) * np.cos(2 * k * mu)) / (2 * s**2) - mean**2
    np.testing.assert_allclose(exact, 0.22181, rtol=1e-4)
    problem, params = normal_signal_problem(lambda z: jnp.cos(k * z), mu, s)
    gradients = replicate_gradients(jax.random.key(1), REINFORCE, problem, params, None, REPLICATES)
    check_variance(gradients[:, 0], exact)


@pytest.mark.parametrize(("num_samples", "tabled"), [(2, 36.62), (4, 13.707), (10, 4.869)])
def test_leave_one_out_variance_on_a_parabola(num_samples, tabled):
    mu, s, k = 1.0, 1.5, -0.7
    nodes, weights = gauss_hermite()
    f = (mu + s * nodes - k) ** 2
    scores = [nodes / s, nodes**2 - 1]
    exact = [leave_one_out_variance(f, score, weights, num_samples) for score in scores]
    np.testing.assert_allclose(exact[0], tabled, rtol=1e-4)
    problem, params = normal_signal_problem(lambda z: (z - k) ** 2, mu, s)
    gradients = replicate_gradients(
        jax.random.key(1),
        bbvi.ScoreFunction(num_samples),
        problem,
        params,
        None,
        500_000 // num_samples,
    )
    check_variance(gradients, exact)


def test_leave_one_out_variance_of_the_elbo():
    nodes, weights = gauss_hermite()
    a0, a1, a2 = gaussian_signal()
    f = a0 + a1 * nodes + a2 * nodes**2
    exact = [leave_one_out_variance(f, h, weights, 5) for h in (nodes / S, nodes**2 - 1)]
    np.testing.assert_allclose(exact, [0.37134, 1.2127], rtol=1e-4)
    problem, params = gaussian_problem()
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.ScoreFunction(5), problem, params, None, REPLICATES
    )
    check_variance(gradients, exact)


def test_bernoulli_variance_without_baseline():
    """p ((1 - theta) f(1) + theta f(0))^2 with p = theta (1 - theta), for the logit."""
    p = THETA * (1 - THETA)
    exact = p * ((1 - THETA) * (1 - LEVEL) ** 2 + THETA * LEVEL**2) ** 2
    np.testing.assert_allclose(exact, 0.015594, rtol=1e-4)
    problem, params = bernoulli_signal_problem()
    gradients = replicate_gradients(jax.random.key(1), REINFORCE, problem, params, None, REPLICATES)
    check_variance(gradients[:, 0], exact)
    check_mean(gradients, np.array([-(1 - 2 * LEVEL) * p]), power=0.5)


@pytest.mark.parametrize(("k", "tabled"), [(2, 6.09e-4), (3, 2.59e-4), (6, 8.54e-5)])
def test_bernoulli_leave_one_out_variance(k, tabled):
    """The gradient is 1 - 2 level times the sample variance of b, whose variance is classical."""
    p, slope = THETA * (1 - THETA), 1 - 2 * LEVEL
    exact = slope**2 / k * (p * (1 - 3 * p) - (k - 3) / (k - 1) * p**2)
    np.testing.assert_allclose(exact, tabled, rtol=2e-3)
    problem, params = bernoulli_signal_problem()
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.ScoreFunction(k), problem, params, None, REPLICATES // k
    )
    check_variance(gradients[:, 0], exact)
    check_mean(gradients, np.array([-slope * p]))


def test_gamma_score_variance():
    """f = z under Gamma(a, b), per log b and, at b = 1, log a."""
    a, b = 2.5, 1.7
    trigamma = float(jax.scipy.special.polygamma(1, a + 2))
    by_rate = (a * (a + 1) * (a + 6) - a**2) / b**4
    by_shape = a * (a + 1) * (trigamma + (1 / a + 1 / (a + 1)) ** 2) - 1
    np.testing.assert_allclose([by_rate, by_shape], [8.157, 5.2906], rtol=1e-4)
    guide = bbvi.MeanField({"z": bbvi.Gamma()})
    init = guide.init(jax.random.key(0), None)
    for rate, column, exact in ((b, 1, b**2 * by_rate), (1.0, 0, a**2 * by_shape)):
        gamma = {"log_concentration": jnp.log(a), "log_rate": jnp.log(rate)}
        at = init._replace(families={"z": gamma})
        problem, params = signal_problem(lambda z: z["z"], guide, at)
        gradients = replicate_gradients(
            jax.random.key(1), REINFORCE, problem, params, None, REPLICATES
        )
        check_variance(gradients[:, column], exact)


# Black boxes.


@pytest.mark.parametrize("estimator", [bbvi.ScoreFunction(8), bbvi.VarGrad(8)], ids=repr)
def test_log_joint_in_numpy(estimator):
    """A log joint computed outside JAX, beside a differentiable term with a learned parameter."""

    def score(b):
        b = np.asarray(b)
        return np.float32(1.5) * b[..., 0] * b[..., 1] - np.float32(2) * b[..., 1] * b[..., 2]

    def log_joint(x, z, theta):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        outside = jax.pure_callback(score, shape, z["b"], vmap_method="expand_dims")
        return outside + jnp.dot(theta, z["b"]) - jnp.logaddexp(jnp.sum(theta), 0.0)

    reference, params = bernoulli_problem()
    problem = bbvi.Problem(log_joint, reference.guide)
    estimator.validate(problem, params, None)
    default = bbvi.estimators.default_estimator(problem, params, None)
    assert isinstance(default, bbvi.ScoreFunction)
    exact = ravel_pytree(exact_bernoulli_gradient(reference, params, None))[0]
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 20_000)
    check_mean(gradients, exact)


@pytest.mark.parametrize("estimator", [bbvi.ScoreFunction(8), bbvi.VarGrad(8)], ids=repr)
def test_continuous_log_joint_in_numpy(estimator):
    def log_joint(x, z):
        def outside(z):
            return np.float32(-0.5 / T**2) * (np.asarray(z) - np.float32(M)) ** 2

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(outside, shape, z["z"], vmap_method="expand_dims")

    gaussian, params = gaussian_problem()
    problem = dataclasses.replace(gaussian, log_joint=log_joint)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 20_000)
    check_mean(gradients, np.array([(MU - M) / T**2, S**2 / T**2 - 1]))


def test_steps_in_the_log_joint():
    """A log joint with jumps has a score-function gradient: E floor(z), by the normal CDF."""
    problem = bbvi.Problem(lambda x, z: jnp.floor(z["z"]), bbvi.MeanField({"z": bbvi.Normal()}))
    params = gaussian_problem()[1]
    assert isinstance(bbvi.estimators.default_estimator(problem, params, None), bbvi.ScoreFunction)

    def loss(params):
        loc, log_scale = params.guide.normal[:, 0]
        thresholds = jnp.arange(1.0, 12.0)
        above = jax.scipy.stats.norm.sf(thresholds, loc, jnp.exp(log_scale))
        below = jax.scipy.stats.norm.cdf(1 - thresholds, loc, jnp.exp(log_scale))
        return -(jnp.sum(above) - jnp.sum(below) + log_scale)

    exact = ravel_pytree(jax.jit(jax.grad(loss))(params))[0]
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.ScoreFunction(8), problem, params, None, 20_000
    )
    check_mean(gradients, exact)


# Errors.


def test_leave_one_out_needs_two_draws():
    with pytest.raises(ValueError, match="LeaveOneOut needs num_samples >= 2, got 1"):
        bbvi.ScoreFunction(1)


def test_baseline_must_be_one():
    with pytest.raises(TypeError, match=r"baseline must be a bbvi.Baseline, got 0.9"):
        bbvi.ScoreFunction(4, 0.9)


# Rao-Blackwellized signals. A chain of Bernoullis, five additive terms, none of them reads all.


def chain(x, z):
    s = 2.0 * z["s"] - 1.0
    return 0.7 * jnp.sum(s[1:] * s[:-1]) + 0.3 * jnp.sum(s) + 0.5 * z["t"] * s[0]


def chain_problem():
    guide = bbvi.MeanField({"s": bbvi.Bernoulli((3,)), "t": bbvi.Bernoulli()})
    problem = bbvi.Problem(chain, guide)
    params = problem.init(jax.random.key(0), None)
    logits = {"s": {"logits": jnp.array([0.4, -0.7, 0.2])}, "t": {"logits": jnp.array(0.6)}}
    return problem, params._replace(guide=params.guide._replace(families=logits))


def with_coefficient(state, value):
    """The state whose learned coefficient is ``value``."""
    learned = Coefficient(jnp.asarray(-value), jnp.ones(()), jnp.zeros(()))
    return {name: site._replace(coefficient=learned) for name, site in state.items()}


def grads_at(estimator, problem, params, noise, value):
    state = with_coefficient(estimator.init(problem, params, None), value)
    return estimator.estimate(noise, problem, params, None, state)[0].grads


@functools.partial(jax.jit, static_argnames="estimator")
def chain_gradients(estimator, noise, value):
    """Raveled gradients [R, P] of the chain, one for each of R noises."""
    problem, params = chain_problem()
    grads = jax.vmap(lambda noise: grads_at(estimator, problem, params, noise, value))(noise)
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(grads)


@functools.cache
def exact_chain_gradient():
    """By enumeration, in double precision."""
    with jax.enable_x64(True):
        problem, params = chain_problem()
        return ravel_pytree(exact_bernoulli_gradient(problem, params, None))[0]


@pytest.mark.parametrize(
    "estimator",
    [
        bbvi.ScoreFunction(2),
        bbvi.ScoreFunction(1, bbvi.NoBaseline()),
        bbvi.ScoreFunction(2, bbvi.NoBaseline()),
        bbvi.ScoreFunction(2, bbvi.MovingAverage(0.5)),
        bbvi.ScoreFunction(2, bbvi.LearnedBaseline()),
        bbvi.ScoreFunction(2, signal="blanket"),
        bbvi.ScoreFunction(1, bbvi.NoBaseline(), "blanket"),
        bbvi.ScoreFunction(2, signal="full"),
        bbvi.PerSite({"s": bbvi.ScoreFunction(2), "t": bbvi.LocalExpectation(2)}),
        bbvi.PerSite({"s": bbvi.LocalExpectation(2), "t": bbvi.ScoreFunction(2)}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.usefixtures("x64")
def test_unbiased_for_every_coefficient(estimator, value):
    """Summed over every outcome of the draws, to rounding: no term is dropped or counted twice."""
    _, params = chain_problem()
    families = params.guide.families
    logits = jnp.append(families["s"]["logits"], families["t"]["logits"])
    bits = np.array(list(itertools.product([0, 1], repeat=4 * estimator.num_samples)))
    bits = bits.reshape(-1, estimator.num_samples, 4)
    probs = jax.nn.sigmoid(logits)[None, None]
    chance = jnp.prod(jnp.where(bits == 1, probs, 1 - probs), axis=(1, 2))
    noise = jnp.where(bits == 1, 0.0, 1.0)
    noise = (jnp.zeros((*bits.shape[:2], 0)), {"s": noise[..., :3], "t": noise[..., 3]})
    gradients = chain_gradients(estimator, noise, value)
    np.testing.assert_allclose(chance @ gradients, exact_chain_gradient(), atol=1e-12)


def test_coefficient_zero_is_the_blanket_and_one_the_full_signal(key):
    problem, params = chain_problem()
    adaptive = bbvi.ScoreFunction(5)
    noise = adaptive.draw(key, problem)
    for value, signal in ((0.0, "blanket"), (1.0, "full")):
        other = bbvi.ScoreFunction(5, signal=signal)
        wanted = estimate(other, problem, params, noise).grads
        got = jax.jit(lambda v: grads_at(adaptive, problem, params, noise, v))(value)
        np.testing.assert_allclose(ravel_pytree(got)[0], ravel_pytree(wanted)[0], atol=1e-5)


def test_blanket_signal_by_hand(key):
    """Two draws, written out: s[1] reads both its bonds and its field, t its bond with s[0]."""
    problem, params = chain_problem()
    blanket = bbvi.ScoreFunction(2, signal="blanket")
    noise = blanket.draw(key, problem)
    z = problem.sample(noise, params, None)
    s, t = 2.0 * np.asarray(z["s"], float) - 1.0, np.asarray(z["t"], float)
    logits = {name: np.asarray(p["logits"]) for name, p in params.guide.families.items()}

    def log_q(values, logit):
        return values * logit - np.log1p(np.exp(logit))

    middle = 0.7 * s[:, 1] * (s[:, 0] + s[:, 2]) + 0.3 * s[:, 1]
    middle -= log_q(np.asarray(z["s"])[:, 1], logits["s"][1])
    switch = 0.5 * t * s[:, 0] - log_q(t, logits["t"])
    got = estimate(blanket, problem, params, noise).grads.guide.families
    for signal, values, logit, found in (
        (middle, np.asarray(z["s"])[:, 1], logits["s"][1], got["s"]["logits"][1]),
        (switch, t, logits["t"], got["t"]["logits"]),
    ):
        score = values - 1 / (1 + np.exp(-logit))
        np.testing.assert_allclose(
            found, -np.mean((signal - signal[::-1]) * score), rtol=1e-4, atol=1e-6
        )


def learn(estimator, problem, params, x, num_steps):
    """The estimator's state after steps at fixed parameters."""

    def step(state, key):
        noise = estimator.draw(key, problem)
        return estimator.estimate(noise, problem, params, x, state)[1], None

    start = estimator.init(problem, params, x)
    keys = jax.random.split(jax.random.key(11), num_steps)
    return jax.jit(lambda: jax.lax.scan(step, start, keys)[0])()


def test_coefficient_is_learned():
    """The least-squares coefficient, from the exact covariances of many gradients."""
    problem, params = chain_problem()
    blanket, full = (bbvi.ScoreFunction(4, signal=signal) for signal in ("blanket", "full"))
    state = learn(bbvi.ScoreFunction(4), problem, params, None, 2000)
    local, total = (
        replicate_gradients(jax.random.key(5), e, problem, params, None, 40_000).astype(float)
        for e in (blanket, full)
    )
    rest = total - local
    # Coordinates of the raveled gradient: three logits of s, then the one of t.
    for name, columns in (("s", slice(0, 3)), ("t", slice(3, 4))):
        r, g = np.asarray(rest[:, columns]), np.asarray(local[:, columns])
        centred = g - g.mean(axis=0)
        best = np.clip(-(centred * r).sum() / (r * r).sum(), 0, 1)
        assert state[name].coefficient.value() == pytest.approx(best, abs=0.12)


def test_an_overflow_does_not_spoil_the_coefficient():
    learned = Coefficient(jnp.asarray(-0.5), jnp.ones(()), jnp.zeros(()))
    huge = {"g": jnp.array([1e30])}
    assert float(learned.update(huge, huge).value()) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["radon", "gaussian_mixture"])
@pytest.mark.usefixtures("optimized")
def test_never_worse_than_the_better_signal(name):
    """At the optimum blankets alone lose the cancellation; the coefficient keeps it."""
    target = models.get(name)
    x, guide = target.data(), target.guides["mean_field"]()
    problem = bbvi.Problem(target.log_joint, guide)
    result = bbvi.fit(target.log_joint, guide, x, key=jax.random.key(1), progress=False)
    adaptive = bbvi.ScoreFunction(8)
    state = learn(adaptive, problem, result.params, x, 300)
    variances = {}
    for signal in ("full", "blanket", "adaptive"):
        fixed = Fixed(8, signal=signal, state=state)
        gradients = replicate_gradients(jax.random.key(3), fixed, problem, result.params, x, 2000)
        unravel = ravel_pytree(result.params)[1]
        variance = guide.site_params(unravel(jnp.var(gradients, axis=0)).guide)
        variances[signal] = {n: sum(map(jnp.sum, jax.tree.leaves(v))) for n, v in variance.items()}
    for site, adaptive_variance in variances["adaptive"].items():
        better = min(variances["full"][site], variances["blanket"][site])
        assert adaptive_variance < 1.25 * better, f"{site}: {adaptive_variance} against {better}"


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed(bbvi.ScoreFunction):
    """Starts from a given state."""

    state: dict = None

    def init(self, problem, params, x):
        return self.state


def test_unknown_signal_is_refused():
    with pytest.raises(ValueError, match=r"signal must be one of .*'blanket'.* got 'local'"):
        bbvi.ScoreFunction(4, signal="local")
