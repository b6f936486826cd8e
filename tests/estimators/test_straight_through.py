"""Straight-through: what it expects, bias and all, by exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi.estimators.base import Cost
from tests.estimators.coupled import (
    batch_problem,
    check_precision,
    check_steps,
    exact_moments,
    nested_problem,
)
from tests.estimators.first_order import (
    check_refused,
    curved_problem,
    enumerate_draws,
    exact_gradient,
    one_hot_problem,
    signal_at,
    uniform_quadrature,
)
from tests.estimators.oracles import LEVEL, THETA, bernoulli_signal_problem

P = THETA * (1 - THETA)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [1, 2])
def test_moments_of_a_parabola(num_samples):
    """The slope 2 (b - t) at the draw: bias p (2 theta - 1), variance 4 p^3 / S."""
    problem, params = bernoulli_signal_problem()
    estimator = bbvi.StraightThrough(num_samples)
    mean, variance = exact_moments(estimator, uniform_quadrature, problem, params)
    np.testing.assert_allclose(mean, -2 * (THETA - LEVEL) * P, rtol=1e-12)
    bias = -mean - (1 - 2 * LEVEL) * P
    np.testing.assert_allclose(bias, P * (2 * THETA - 1), rtol=1e-12)
    np.testing.assert_allclose(variance, 4 * P**3 / num_samples, rtol=1e-12)
    assert round(4 * P**3, 6) == 0.037044


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", [curved_problem, one_hot_problem])
def test_expected_value(make):
    """The mean slope at a draw, times the Jacobian of the guide's mean; theta's is not biased."""
    problem, params = make()
    ((name, family),) = params.guide.families.items()
    z = enumerate_draws(problem, params)
    _, slopes = jax.vmap(signal_at(problem, params))(jax.tree.map(lambda leaf: 1.0 * leaf, z))
    weights = jnp.exp(problem.log_q(params, None, z))
    mean_slope = jnp.tensordot(weights, slopes[name], axes=1)
    to_mean = jax.nn.softmax if mean_slope.ndim > 1 else jax.nn.sigmoid
    jacobian = jax.jacobian(to_mean)(family["logits"])
    expected = -jnp.tensordot(mean_slope, jacobian, axes=mean_slope.ndim).ravel()
    mean, _ = exact_moments(bbvi.StraightThrough(1), uniform_quadrature, problem, params)
    exact = exact_gradient(problem, params)
    np.testing.assert_allclose(mean[: expected.size], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean[expected.size :], exact[expected.size :], rtol=0, atol=1e-12)
    assert np.abs(expected - exact[: expected.size]).max() > 0.1


@pytest.mark.usefixtures("x64")
def test_unbiased_where_the_log_joint_is_linear_in_each_latent():
    for problem, params, x in (batch_problem(), (*nested_problem(), None)):
        mean, _ = exact_moments(bbvi.StraightThrough(1), uniform_quadrature, problem, params, x)
        np.testing.assert_allclose(mean, exact_gradient(problem, params, x), rtol=0, atol=1e-12)


def test_loss_is_the_bound_at_the_draws(key):
    problem, params = curved_problem()
    estimator = bbvi.StraightThrough(3)
    estimate, _ = estimator.estimate(estimator.draw(key, problem), problem, params, None, ())
    z = enumerate_draws(problem, params)
    possible = problem.log_p(params, None, z) - problem.log_q(params, None, z)
    distance = jnp.abs(estimate.log_weights[:, None] - possible[None])
    assert float(distance.min(axis=1).max()) < 1e-5
    np.testing.assert_allclose(estimate.loss, -estimate.log_weights.mean(), rtol=1e-6)


def test_steps():
    for problem in (batch_problem(), nested_problem(), one_hot_problem()):
        check_steps(bbvi.StraightThrough(1), *problem)
    check_precision(bbvi.StraightThrough(3), batch_problem)


def test_it_says_that_it_is_biased():
    assert bbvi.StraightThrough(3).is_biased
    assert repr(bbvi.StraightThrough(3)) == "StraightThrough(num_samples=3) [biased]"
    assert bbvi.StraightThrough(3).cost == Cost(values=0, gradients=3)


def test_wrong_configuration():
    with pytest.raises(ValueError, match="num_samples must be an int >= 1, got 0"):
        bbvi.StraightThrough(0)


def test_refused_problems():
    check_refused(bbvi.StraightThrough(2))
