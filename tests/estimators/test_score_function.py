import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
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
        state = super().init(problem, params, x)
        for i in range(10):
            noise = self.draw(jax.random.key(100 + i), problem)
            state = self.estimate(noise, problem, params, x, state)[1]
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

    exact = ravel_pytree(jax.grad(loss)(params))[0]
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
