"""Double control variates, by exact enumeration of the draws."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi.estimators.base import Cost
from bbvi.testing import check_estimator
from tests.estimators.coupled import (
    batch_problem,
    check_precision,
    check_steps,
    check_unbiased,
    exact_moments,
    nested_problem,
    with_alpha,
)
from tests.estimators.first_order import (
    adapt,
    check_learned,
    check_refused,
    curved_problem,
    exact_gradient,
    gradients_at,
    linear_problem,
    one_hot_problem,
    uniform_quadrature,
)
from tests.estimators.oracles import check_variance, leave_one_out_variance, signal_problem

LEVEL = 0.499  # of the parabola, whose two ends differ by 1 - 2 LEVEL


@pytest.mark.usefixtures("x64")
def test_unbiased_exactly():
    check_unbiased(bbvi.DoubleCv(2), uniform_quadrature)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("alpha", [-0.7, 0.6])
@pytest.mark.parametrize("make", [curved_problem, one_hot_problem])
def test_unbiased_where_the_log_joint_is_curved(make, alpha):
    problem, params = make()
    mean, _ = exact_moments(bbvi.DoubleCv(2), uniform_quadrature, problem, params, alpha=alpha)
    np.testing.assert_allclose(mean, exact_gradient(problem, params), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_unbiased_exactly_with_three_draws():
    problem, params = nested_problem()
    mean, _ = exact_moments(bbvi.DoubleCv(3), uniform_quadrature, problem, params, alpha=-0.7)
    np.testing.assert_allclose(mean, exact_gradient(problem, params), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_samples", [2, 5])
def test_unbiased(num_samples):
    check_estimator(bbvi.DoubleCv(num_samples))


# Exact variances.


def parabola_problem(theta, num_latents):
    """f = mean_j (b_j - LEVEL)^2; a root and a square hide that it is a sum."""
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((num_latents,))})
    logits = jnp.full(num_latents, np.log(theta / (1 - theta)))
    start = guide.init(jax.random.key(0), None)._replace(families={"b": {"logits": logits}})
    return signal_problem(lambda z: jnp.sqrt(jnp.mean((z["b"] - LEVEL) ** 2)) ** 2, guide, start)


def parabola_variance(theta, num_latents, alpha):
    r"""Variance of one coordinate of a pair's gradient.

    The difference of the two corrected signals is A / D sum_j (b_1j - b_2j), with
    A = 1 - 2 LEVEL + 2 alpha (theta - LEVEL). Given its own two values, four cases, the gradient of
    coordinate i has the other D - 1 as independent noise.
    """
    a = (1 - 2 * LEVEL) + 2 * alpha * (theta - LEVEL)
    p = theta * (1 - theta)
    first, second = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    weight = np.where(first, theta, 1 - theta) * np.where(second, theta, 1 - theta)
    own = a / 2 * (first - second) ** 2 - alpha * p * (first + second - 2 * LEVEL)
    others = (a / 2) ** 2 * 2 * p * (num_latents - 1) * 2 * p
    return (weight @ own**2 - (weight @ own) ** 2 + others) / num_latents**2


def best_alpha(theta, num_latents):
    """The least point of that parabola in alpha."""
    at = {a: parabola_variance(theta, num_latents, a) for a in (-1, 0, 1)}
    return (at[-1] - at[1]) / 2 / (at[-1] + at[1] - 2 * at[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("theta", [0.2, 0.5])
@pytest.mark.parametrize("alpha", [0.0, -1.0, 0.3])
def test_variance_on_a_parabola(theta, alpha):
    problem, params = parabola_problem(theta, 3)
    estimator = bbvi.DoubleCv(2)
    _, variance = exact_moments(estimator, uniform_quadrature, problem, params, alpha=alpha)
    np.testing.assert_allclose(variance, parabola_variance(theta, 3, alpha), rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("theta", "none", "best"), [(0.2, 5.1488e-10, 2.2456e-12), (0.5, 1.2500e-9, 1.2480e-9)]
)
def test_variance_with_two_hundred_latents(theta, none, best):
    """Without the coefficient it is leave-one-out; after 1000 steps it is the best there is."""
    alpha = best_alpha(theta, 200)
    exact = [parabola_variance(theta, 200, a) for a in (0, alpha)]
    np.testing.assert_allclose(exact, [none, best], rtol=2e-4)
    problem, params = parabola_problem(theta, 200)
    estimator = bbvi.DoubleCv(2)
    state = adapt(estimator, problem, params)
    learned = float(state["b"].value(-1.0))
    assert parabola_variance(theta, 200, learned) < 1.03 * best
    gradients = gradients_at(estimator, problem, params, state, 20_000)
    check_variance(gradients[:, :3], np.full(3, parabola_variance(theta, 200, learned)))


@pytest.mark.usefixtures("x64")
def test_no_variance_where_the_log_joint_is_linear():
    problem, params = linear_problem()
    estimator = bbvi.DoubleCv(2)
    start = estimator.init(problem, params, None)
    full = gradients_at(estimator, problem, params, with_alpha(start, -1.0), 200)
    exact = exact_gradient(problem, params)
    np.testing.assert_allclose(full, exact[None].repeat(200, axis=0), rtol=0, atol=1e-12)
    assert (np.std(gradients_at(estimator, problem, params, start, 200), axis=0) > 0.02).all()


@pytest.mark.usefixtures("x64")
def test_without_coefficient_it_is_leave_one_out():
    guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
    start = guide.init(jax.random.key(0), None)._replace(
        families={"b": {"logits": jnp.log(0.3 / 0.7)}}
    )
    problem, params = signal_problem(lambda z: jnp.exp(1.0 * z["b"]), guide, start)
    for num_samples in (2, 4):
        estimator = bbvi.DoubleCv(num_samples)
        _, variance = exact_moments(estimator, uniform_quadrature, problem, params)
        exact = leave_one_out_variance(
            np.exp([0.0, 1.0]), np.array([-0.3, 0.7]), np.array([0.7, 0.3]), num_samples
        )
        np.testing.assert_allclose(variance, exact, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("curvature", "is_full_worse"), [(1.0, True), (0.05, False)])
def test_learned_coefficient(curvature, is_full_worse):
    problem, params = curved_problem(curvature=curvature)
    check_learned(bbvi.DoubleCv(2), problem, params, is_full_worse=is_full_worse)


def test_steps():
    for problem in (batch_problem(), nested_problem(), one_hot_problem()):
        check_steps(bbvi.DoubleCv(2), *problem)
    check_precision(bbvi.DoubleCv(3), batch_problem)


def test_extreme_logits(key):
    """One value is certain: nothing is left to estimate, and nothing overflows."""
    problem, params = curved_problem(logits=(200.0, -200.0, 0.3))
    estimator = bbvi.DoubleCv(4)
    state = with_alpha(estimator.init(problem, params, None), -0.5)
    noise = estimator.draw(key, problem)
    grads = estimator.estimate(noise, problem, params, None, state)[0].grads
    logits = grads.guide.families["b"]["logits"]
    np.testing.assert_allclose(logits[:2], 0.0, rtol=0, atol=1e-30)
    assert float(jnp.abs(logits[2])) > 0


def test_cost():
    assert bbvi.DoubleCv(3).cost == Cost(values=0, gradients=3)


def test_wrong_configuration():
    with pytest.raises(ValueError, match=re.escape("num_samples must be at least 2, got 1")):
        bbvi.DoubleCv(1)


def test_refused_problems():
    check_refused(bbvi.DoubleCv(2))
