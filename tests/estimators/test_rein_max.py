"""ReinMax: the trapezoid rule, by exact enumeration."""

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
    quadratic_problem,
    signal_at,
    step_problem,
    uniform_quadrature,
)
from tests.estimators.oracles import LEVEL, THETA, bernoulli_signal_problem

P = THETA * (1 - THETA)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [1, 2])
def test_moments_of_a_parabola(num_samples):
    """Half of (1 - theta) f'(1), or of theta f'(0)."""
    problem, params = bernoulli_signal_problem()
    estimator = bbvi.ReinMax(num_samples)
    mean, variance = exact_moments(estimator, uniform_quadrature, problem, params)
    np.testing.assert_allclose(mean, -(1 - 2 * LEVEL) * P, rtol=1e-12)
    exact = P * ((1 - THETA) * (1 - LEVEL) + THETA * LEVEL) ** 2
    assert round(exact, 6) == 0.056784
    np.testing.assert_allclose(variance, exact / num_samples, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_cubes_are_half_as_much_again():
    problem, params = step_problem(lambda b: b**3)
    mean, _ = exact_moments(bbvi.ReinMax(1), uniform_quadrature, problem, params)
    np.testing.assert_allclose(mean, -1.5 * P, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_unbiased_where_the_log_joint_is_quadratic():
    """Categoricals and Bernoullis with all squares and products; it is not so with slopes alone."""
    problem, params = quadratic_problem()
    exact = exact_gradient(problem, params)
    mean, _ = exact_moments(bbvi.ReinMax(1), uniform_quadrature, problem, params)
    np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-12)
    other, _ = exact_moments(bbvi.StraightThrough(1), uniform_quadrature, problem, params)
    assert np.abs(other - exact).max() > 0.1
    for problem, params, x in (batch_problem(), (*nested_problem(), None)):
        mean, _ = exact_moments(bbvi.ReinMax(1), uniform_quadrature, problem, params, x)
        np.testing.assert_allclose(mean, exact_gradient(problem, params, x), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_expected_value_for_categoricals():
    """Differences f(k) - f(l) between categories by the trapezoid rule."""
    problem, params = one_hot_problem()
    logits = params.guide.families["c"]["logits"]
    probs, jacobian = jax.nn.softmax(logits), jax.vmap(jax.jacobian(jax.nn.softmax))(logits)
    slope_at = jax.vmap(lambda z: signal_at(problem, params)({"c": z})[1]["c"])
    expected = np.zeros((2, 3))
    for site, other in ((0, 1), (1, 0)):
        for m in range(3):  # the other's category
            z = jnp.zeros((3, 2, 3)).at[:, site].set(jnp.eye(3)).at[:, other, m].set(1)
            slopes = slope_at(z)[:, site]
            for k in range(3):
                for j in range(3):
                    change = (slopes[k] + slopes[j]) @ (z[k] - z[j])[site] / 2
                    expected[site] += probs[other, m] * probs[site, j] * change * jacobian[site, k]
    mean, _ = exact_moments(bbvi.ReinMax(1), uniform_quadrature, problem, params)
    exact = exact_gradient(problem, params)
    np.testing.assert_allclose(mean[:6], -expected.ravel(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean[6:], exact[6:], rtol=0, atol=1e-12)
    assert np.abs(mean[:6] - exact[:6]).max() > 0.1


@pytest.mark.usefixtures("x64")
def test_expected_value_for_bernoullis():
    problem, params = curved_problem()
    theta = jax.nn.sigmoid(params.guide.families["b"]["logits"])
    z = {"b": enumerate_draws(problem, params)["b"].astype(float)}
    weights = jnp.exp(problem.log_q(params, None, z))[:, None]
    _, slopes = jax.vmap(signal_at(problem, params))(z)
    # E over b_i of a slope that counts 1/2 at either end, whatever its probability.
    at_ends = weights / jnp.where(z["b"] == 1, theta[None], 1 - theta[None]) * slopes["b"]
    expected = (theta * (1 - theta)) * jnp.sum(at_ends, axis=0) / 2
    mean, _ = exact_moments(bbvi.ReinMax(1), uniform_quadrature, problem, params)
    exact = exact_gradient(problem, params)
    np.testing.assert_allclose(mean[:3], -expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean[3:], exact[3:], rtol=0, atol=1e-12)
    assert np.abs(mean[:3] - exact[:3]).max() > 0.02


def test_steps():
    for problem in (batch_problem(), nested_problem(), one_hot_problem()):
        check_steps(bbvi.ReinMax(1), *problem)
    check_precision(bbvi.ReinMax(3), batch_problem)


def test_it_says_that_it_is_biased():
    assert bbvi.ReinMax(3).is_biased
    assert repr(bbvi.ReinMax(3)) == "ReinMax(num_samples=3) [biased]"
    assert bbvi.ReinMax(3).cost == Cost(values=0, gradients=3)


def test_wrong_configuration():
    with pytest.raises(ValueError, match="num_samples must be an int >= 1, got 0"):
        bbvi.ReinMax(0)


def test_refused_problems():
    check_refused(bbvi.ReinMax(2))
