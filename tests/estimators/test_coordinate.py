"""One control-variate coefficient per parameter, estimated from the other draws."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.coordinate import sum_of_others
from bbvi.testing import (
    bernoulli_problem,
    check_estimator,
    check_mean,
    exact_bernoulli_gradient,
    replicate_gradients,
)
from tests.estimators.oracles import (
    LOG_Z,
    MU,
    M,
    S,
    T,
    check_variance,
    estimate,
    gauss_hermite,
    gaussian_problem,
    gaussian_signal,
    normal_signal_problem,
)


@pytest.mark.parametrize("signal", ["blanket", "full"])
def test_unbiased(signal):
    check_estimator(bbvi.CoordinateControlVariate(8, signal))


def mixed_problem():
    """Normals and Bernoullis in a chain, with a learned parameter."""

    def log_joint(x, z, theta):
        u, b = z["u"], z["b"]
        prior = -0.5 * jnp.sum(u**2) + theta * jnp.sum(b)
        return prior + jnp.sum(u[1:] * u[:-1]) / 3 + jnp.sum(b * jnp.sin(u)) - theta**2

    return log_joint, jnp.array(0.4)


@pytest.mark.parametrize("signal", ["blanket", "full"])
def test_with_two_draws_it_is_leave_one_out(signal, key):
    """The coefficient of either draw is then the other draw's signal."""
    log_joint, theta = mixed_problem()
    guide = bbvi.MeanField({"u": bbvi.Normal((3,)), "b": bbvi.Bernoulli((3,))})
    problem = bbvi.Problem(log_joint, guide)
    with jax.enable_x64(True):
        params = problem.init(jax.random.key(1), None, theta)
        noise = problem.base_noise(key, 2)
        ours, theirs = (
            estimate(estimator, problem, params, noise)
            for estimator in (
                bbvi.CoordinateControlVariate(2, signal),
                bbvi.ScoreFunction(2, signal=signal),
            )
        )
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-11)


def test_parameters_shared_by_all_latents(key):
    """A full covariance: one block, each parameter with a coefficient of its own."""
    guide = bbvi.FullRank({"z": bbvi.Normal((3,))})
    problem = bbvi.Problem(lambda x, z: -jnp.sum(jnp.cosh(z["z"])) + z["z"][0] * z["z"][1], guide)
    with jax.enable_x64(True):
        params = problem.init(jax.random.key(1), None)
        noise = problem.base_noise(key, 2)
        ours, theirs = (
            estimate(estimator, problem, params, noise).grads.guide
            for estimator in (bbvi.CoordinateControlVariate(2), bbvi.ScoreFunction(2))
        )
        got, wanted = ravel_pytree(ours)[0], ravel_pytree(theirs)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def all_outcomes(num_draws):
    """Base noise for every value of ``num_draws`` draws of three Bernoullis, and the values."""
    bits = np.array(list(itertools.product([0, 1], repeat=3 * num_draws)))
    bits = bits.reshape(-1, num_draws, 3)
    return (jnp.zeros((len(bits), num_draws, 0)), {"b": jnp.where(bits == 1, 0.0, 1.0)}), bits


def exact_mean(estimator, problem, params):
    """Mean of the estimate by summing over every outcome of three draws."""
    noise, bits = all_outcomes(3)
    probs = jax.nn.sigmoid(params.guide.families["b"]["logits"])
    chance = jnp.prod(jnp.where(bits == 1, probs[None, None], 1 - probs[None, None]), axis=(1, 2))

    def gradient(noise):
        return ravel_pytree(estimator.estimate(noise, problem, params, None, ())[0].grads)[0]

    return chance @ jax.jit(jax.vmap(gradient))(noise)


@dataclasses.dataclass(frozen=True)
class InSample(bbvi.Estimator):
    """The coefficient as it was proposed, from all draws; guide parameters only."""

    is_pathwise = False

    def estimate(self, noise, problem, params, x, state):
        z = problem.sample(noise, params, x)
        log_weights = problem.log_p(params, x, z) - problem.log_q(params, x, z)
        score = jax.vmap(lambda draw: jax.grad(problem.guide.log_prob)(params.guide, x, draw))(z)

        def gradient(h):
            f = log_weights.reshape(-1, *[1] * (h.ndim - 1))
            best = jnp.sum(f * h**2, axis=0) / jnp.sum(h**2, axis=0)
            return -jnp.mean(h * (f - best[None]), axis=0)

        grads = bbvi.Params(
            jax.tree.map(gradient, score), jax.tree.map(jnp.zeros_like, params.model)
        )
        return bbvi.Estimate(problem.objective(log_weights), grads, log_weights), state


@pytest.mark.parametrize("signal", ["blanket", "full"])
def test_unbiased_by_enumeration(signal):
    """Every outcome of three draws of three Bernoullis: exact up to rounding; in-sample is not."""
    with jax.enable_x64(True):
        problem, params = bernoulli_problem()
        exact = ravel_pytree(exact_bernoulli_gradient(problem, params, None))[0]
        estimator = bbvi.CoordinateControlVariate(3, signal)
        np.testing.assert_allclose(exact_mean(estimator, problem, params), exact, rtol=1e-9)
        bias = (exact_mean(InSample(3), problem, params) - exact)[:3]
    assert np.abs(bias).max() > 0.05 * np.abs(exact).max()


def test_in_sample_coefficients_are_found_out():
    problem, params = gaussian_problem()
    exact = np.array([(MU - M) / T**2, S**2 / T**2 - 1])

    def check(estimator):
        gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 60_000)
        check_mean(gradients, exact)

    check(bbvi.CoordinateControlVariate(4))
    with pytest.raises(AssertionError, match="biased"):
        check(InSample(4))


def fitted_variance(f, score, weights, num_samples):
    """The least variance a coefficient can leave, and with the one that S - 1 draws give.

    To second order in 1/S: a = a* + mean of phi over the others, phi = h^2 (f - a*) / E h^2, adds
    [E h^2 E phi^2 + (E h phi)^2] / (S (S - 1)).
    """
    best = weights @ (f * score**2) / (weights @ score**2)
    least = weights @ (score**2 * (f - best) ** 2) - (weights @ (f * score)) ** 2
    phi = score**2 * (f - best) / (weights @ score**2)
    excess = (weights @ score**2) * (weights @ phi**2) + (weights @ (score * phi)) ** 2
    return least, (least + excess / (num_samples - 1)) / num_samples


@pytest.mark.usefixtures("optimized")
def test_variance_of_the_elbo():
    num_samples = 256
    nodes, weights = gauss_hermite()
    a0, a1, a2 = gaussian_signal()
    f = a0 + a1 * nodes + a2 * nodes**2
    by_mu, by_scale = (
        fitted_variance(f, h, weights, num_samples) for h in (nodes / S, nodes**2 - 1)
    )
    closed_form = [(6 * a2**2 + 2 * a1**2) / S**2, 24 * a2**2 + 10 * a1**2]
    np.testing.assert_allclose([by_mu[0], by_scale[0]], closed_form, rtol=1e-9)
    np.testing.assert_allclose(closed_form, [1.1960, 3.3642], rtol=1e-4)
    problem, params = gaussian_problem()
    estimator = bbvi.CoordinateControlVariate(num_samples)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 40_000)
    check_variance(gradients, [by_mu[1], by_scale[1]])


@pytest.mark.usefixtures("optimized")
def test_variance_on_a_parabola():
    """f = (z - k)^2: the best coefficients d^2 + 3 s^2 and d^2 + 5 s^2 differ in one block."""
    mu, s, k, num_samples = 1.0, 1.5, -0.7, 256
    d = mu - k
    nodes, weights = gauss_hermite()
    f = (d + s * nodes) ** 2
    by_mu, by_scale = (
        fitted_variance(f, h, weights, num_samples) for h in (nodes / s, nodes**2 - 1)
    )
    closed_form = [8 * d**2 + 6 * s**2, s**2 * (40 * d**2 + 24 * s**2)]
    np.testing.assert_allclose([by_mu[0], by_scale[0]], closed_form, rtol=1e-9)
    np.testing.assert_allclose(closed_form, [36.62, s**2 * 169.6], rtol=1e-4)
    problem, params = normal_signal_problem(lambda z: (z - k) ** 2, mu, s)
    estimator = bbvi.CoordinateControlVariate(num_samples)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 40_000)
    check_variance(gradients, [by_mu[1], by_scale[1]])


def test_zero_at_the_posterior(key):
    problem, params = gaussian_problem(loc=M, scale=T)
    estimator = bbvi.CoordinateControlVariate(4)
    first = estimate(estimator, problem, params, estimator.draw(key, problem))
    np.testing.assert_allclose(first.grads.guide.normal, 0, atol=2e-6)
    np.testing.assert_allclose(first.log_weights, LOG_Z, atol=1e-5)


def test_adding_a_constant_changes_nothing(key):
    problem, params = gaussian_problem()
    shifted = dataclasses.replace(problem, log_joint=lambda x, z: problem.log_joint(x, z) + 100.0)
    estimator = bbvi.CoordinateControlVariate(4)
    noise = estimator.draw(key, problem)
    here, there = (
        estimate(estimator, p, params, noise).grads.guide.normal for p in (problem, shifted)
    )
    np.testing.assert_allclose(there, here, atol=1e-3)


@pytest.mark.parametrize("largest", [1.0, 1e12])
def test_sums_of_others(largest):
    """Where one draw dominates, the others' sum keeps its precision."""
    values = np.random.default_rng(0).uniform(1.0, 2.0, (5, 2)).astype(np.float32)
    values[2] = largest
    wanted = [np.delete(values.astype(np.float64), s, axis=0).sum(axis=0) for s in range(5)]
    np.testing.assert_allclose(sum_of_others(jnp.asarray(values)), wanted, rtol=1e-6)


def test_a_score_of_zero_has_no_coefficient():
    """Saturated Bernoullis: no draw moves the logit, and nothing is divided by zero."""
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((2,))})
    problem = bbvi.Problem(lambda x, z: 3.0 * jnp.sum(z["b"]), guide)
    params = problem.init(jax.random.key(0), None)
    params.guide.families["b"]["logits"] = jnp.array([200.0, -200.0])
    noise = problem.base_noise(jax.random.key(1), 4)
    grads = estimate(bbvi.CoordinateControlVariate(4), problem, params, noise).grads
    np.testing.assert_array_equal(grads.guide.families["b"]["logits"], [0.0, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "from the others and needs num_samples >= 2, got 1"),
        ({"signal": "adaptive"}, r"signal must be one of \('blanket', 'full'\), got 'adaptive'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bbvi.CoordinateControlVariate(**options)


def test_other_objectives_are_refused():
    problem, params = gaussian_problem(objective=bbvi.Iwae(2))
    with pytest.raises(ValueError, match="CoordinateControlVariate estimates the gradient of"):
        bbvi.CoordinateControlVariate(4).validate(problem, params, None)
