"""MuProp, by exact enumeration of the draws."""

import re

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
from tests.estimators.oracles import THETA, bernoulli_signal_problem


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [1, 2])
def test_unbiased_exactly(num_samples):
    check_unbiased(bbvi.MuProp(num_samples), uniform_quadrature)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("make", [curved_problem, one_hot_problem])
def test_unbiased_where_the_log_joint_is_curved(make, num_samples):
    problem, params = make()
    estimator = bbvi.MuProp(num_samples)
    mean, _ = exact_moments(estimator, uniform_quadrature, problem, params, alpha=-0.7)
    np.testing.assert_allclose(mean, exact_gradient(problem, params), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_unbiased(num_samples):
    check_estimator(bbvi.MuProp(num_samples))


# Exact variances.


@pytest.mark.usefixtures("x64")
def test_variance_of_a_parabola():
    """The remainder of the expansion about theta is (b - theta)^2, whatever the parabola."""
    problem, params = bernoulli_signal_problem()
    p = THETA * (1 - THETA)
    exact = p * ((1 - THETA) ** 3 + THETA**3) ** 2
    assert round(exact, 6) == 0.028749
    moments = exact_moments(bbvi.MuProp(1), uniform_quadrature, problem, params, alpha=-1.0)
    np.testing.assert_allclose(moments[1], exact, rtol=1e-9)
    # Of two draws: the remainders' difference is that of (1 - 2 theta) b.
    moments = exact_moments(bbvi.MuProp(2), uniform_quadrature, problem, params, alpha=-1.0)
    np.testing.assert_allclose(moments[1], (1 - 2 * THETA) ** 2 * p * (1 - 2 * p) / 2, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [1, 2])
def test_no_variance_where_the_log_joint_is_linear(num_samples):
    """One step is enough to learn it."""
    problem, params = linear_problem()
    estimator = bbvi.MuProp(num_samples)
    state = adapt(estimator, problem, params, steps=1)
    for coefficient in state.values():
        np.testing.assert_allclose(coefficient.value(-1.0), -1.0, rtol=1e-9)
    exact = exact_gradient(problem, params)
    gradients = gradients_at(estimator, problem, params, state, 200)
    np.testing.assert_allclose(gradients, exact[None].repeat(200, axis=0), rtol=0, atol=1e-9)
    start = estimator.init(problem, params, None)
    assert (np.std(gradients_at(estimator, problem, params, start, 200), axis=0) > 0.02).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize(("curvature", "is_full_worse"), [(1.0, True), (0.05, False)])
def test_learned_coefficient(num_samples, curvature, is_full_worse):
    problem, params = curved_problem(curvature=curvature)
    check_learned(bbvi.MuProp(num_samples), problem, params, is_full_worse=is_full_worse)


def test_steps():
    for problem in (batch_problem(), nested_problem(), one_hot_problem()):
        check_steps(bbvi.MuProp(1), *problem)
    check_precision(bbvi.MuProp(3), batch_problem)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_extreme_logits(key, num_samples):
    """One value is certain: nothing is left to estimate, and nothing overflows."""
    problem, params = curved_problem(logits=(200.0, -200.0, 0.3))
    estimator = bbvi.MuProp(num_samples)
    state = with_alpha(estimator.init(problem, params, None), -0.5)
    noise = estimator.draw(key, problem)
    grads = estimator.estimate(noise, problem, params, None, state)[0].grads
    logits = grads.guide.families["b"]["logits"]
    np.testing.assert_allclose(logits[:2], 0.0, rtol=0, atol=1e-30)
    assert float(jnp.abs(logits[2])) > 0


def test_cost():
    assert bbvi.MuProp(3).cost == Cost(values=3, gradients=1)


def test_wrong_configuration():
    with pytest.raises(ValueError, match=re.escape("num_samples must be an int >= 1, got 0")):
        bbvi.MuProp(0)


def test_refused_problems():
    check_refused(bbvi.MuProp(2))
