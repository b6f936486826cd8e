"""Reweighted wake-sleep, by enumeration of all outcomes and by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators import default_estimator
from bbvi.estimators.base import Cost
from tests.estimators.multi_sample import (
    ENUMERABLE,
    Given,
    all_gradients,
    check_components_are_separate,
    check_steps,
    coupled,
    normal_moments,
)
from tests.estimators.oracles import estimate, gaussian_problem


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("problem", ENUMERABLE)
def test_mean_is_the_self_normalised_one(problem, num_samples):
    """Against the definition: E[-sum_k w~_k grad log q] and E[-sum_k w~_k grad log p]."""
    case = ENUMERABLE[problem]()
    outcomes = case.outcomes(num_samples)
    probabilities = case.probabilities(case.params, outcomes)
    log_p, log_q = case.by_draw(case.params, outcomes)
    shares = jnp.exp(log_p - log_q)
    shares = shares / shares.sum(axis=1, keepdims=True)

    def surrogate(params):
        log_p, log_q = case.by_draw(params, outcomes)
        return -probabilities @ jnp.sum(shares * (log_p + log_q), axis=(1, 2))

    exact = ravel_pytree(jax.grad(surrogate)(case.params))[0]
    gradient, _ = case.moments(bbvi.ReweightedWakeSleep(num_samples), bbvi.ForwardKl(num_samples))
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose(gradient, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_bias_is_one_over_the_draws():
    """One Bernoulli, whose K draws matter by their number of ones only: K times the bias settles.

    KL(p || q) has the derivative q - p in the logit of q.
    """
    p, q = 0.85, 0.4
    guide = Given({"b": bbvi.Bernoulli()})
    params = guide.init(jax.random.key(0), None)
    logit = jnp.log(q) - jnp.log1p(-q)
    params = bbvi.Params(params._replace(families={"b": {"logits": logit}}))
    log_p = np.log([1 - p, p])
    biases = {}
    for size in (5, 10, 20, 40, 80):
        problem = bbvi.Problem(lambda x, z: jnp.asarray(log_p)[z["b"]], guide, bbvi.ForwardKl(size))
        ones = np.arange(size + 1)
        draws = jnp.asarray(ones[:, None] > np.arange(size), jnp.int32)
        log_binomial = np.cumsum(np.log(np.r_[1, (size - ones[:-1]) / ones[1:]]))
        weights = np.exp(log_binomial + ones * np.log(q) + (size - ones) * np.log1p(-q))
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-10)
        estimator = bbvi.ReweightedWakeSleep(size)
        gradient = all_gradients(estimator, problem, params, {"b": draws})[:, 0]
        biases[size] = size * (weights @ gradient - (q - p))
    assert biases[5] > 0.3  # towards zero
    np.testing.assert_allclose(biases[80], biases[40], rtol=0.05)
    np.testing.assert_allclose(biases[40], biases[20], rtol=0.1)


@pytest.mark.usefixtures("x64")
def test_no_variance_in_the_guide_at_the_posterior():
    problem, params = gaussian_problem(loc=0.3, scale=1.2, objective=bbvi.ForwardKl(4))
    noise = problem.base_noise(jax.random.key(0), 8)
    grads = estimate(bbvi.ReweightedWakeSleep(8), problem, params, noise).grads
    np.testing.assert_allclose(grads.guide.normal, 0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_model_gradient_is_that_of_iwae():
    wake, _ = normal_moments(bbvi.ReweightedWakeSleep(2), bbvi.ForwardKl(2))
    iwae, _ = normal_moments(bbvi.Reparameterization(2), bbvi.Iwae(2))
    assert abs(iwae[2]) > 0.05
    np.testing.assert_allclose(wake[2], iwae[2], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_components_are_separate():
    check_components_are_separate(bbvi.ReweightedWakeSleep(4), bbvi.ForwardKl(4))
    check_components_are_separate(bbvi.ReweightedWakeSleep(4), bbvi.ForwardKl(2))


def test_steps():
    case = coupled()
    check_steps(bbvi.ReweightedWakeSleep(4), case.make(bbvi.ForwardKl(2)), case.params)


CORRELATION = 0.8


@pytest.mark.parametrize(
    ("objective", "variance"),
    [(bbvi.ForwardKl(256), 1.0), (bbvi.Elbo(), 1 - CORRELATION**2)],
    ids=["forward", "reverse"],
)
def test_fits_cover_mass_or_seek_modes(objective, variance):
    """A mean field for a correlated Gaussian: marginal variances, or conditional ones."""
    precision = np.linalg.inv(np.array([[1.0, CORRELATION], [CORRELATION, 1.0]]))

    def log_joint(x, z):
        return -0.5 * (z["z"] - x) @ jnp.asarray(precision, jnp.float32) @ (z["z"] - x)

    guide = bbvi.MeanField({"z": bbvi.Normal((2,))})
    result = bbvi.fit(
        log_joint,
        guide,
        jnp.array([0.5, -1.0]),
        key=jax.random.key(0),
        objective=objective,
        init_params=guide.params_at({"z": jnp.zeros(2)}, 0.8),
        num_steps=3000,
        progress=False,
    )
    site = guide.site_params(result.params.guide)["z"]
    np.testing.assert_allclose(site["loc"], [0.5, -1.0], atol=0.1)
    np.testing.assert_allclose(jnp.exp(2 * site["log_scale"]), variance, rtol=0.12)


def test_bias_is_declared():
    estimator = bbvi.ReweightedWakeSleep(8)
    assert estimator.is_biased
    assert repr(estimator) == "ReweightedWakeSleep(num_samples=8) [biased]"
    assert estimator.cost == Cost(values=8)


def test_default_for_the_forward_divergence():
    case = coupled()
    problem = case.make(bbvi.ForwardKl(20))
    assert default_estimator(problem, case.params, None) == bbvi.ReweightedWakeSleep(40)
    problem, params = gaussian_problem(objective=bbvi.ForwardKl())
    assert default_estimator(problem, params, None) == bbvi.ReweightedWakeSleep(32)


# Errors.


@pytest.mark.parametrize("objective", [bbvi.Elbo(), bbvi.Iwae(4), bbvi.Chi(2, 4)], ids=repr)
def test_other_objectives_are_refused(objective):
    problem, params = gaussian_problem(objective=objective)
    with pytest.raises(ValueError, match=r"ReweightedWakeSleep is for bbvi.ForwardKl\(\), got "):
        bbvi.ReweightedWakeSleep(4).validate(problem, params, None)


def test_groups_are_checked():
    problem, params = gaussian_problem(objective=bbvi.ForwardKl(3))
    with pytest.raises(ValueError, match=r"groups of 3, but ReweightedWakeSleep draws"):
        bbvi.ReweightedWakeSleep(4).validate(problem, params, None)
