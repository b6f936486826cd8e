"""OVIS, by enumeration of all outcomes and by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.base import Cost
from tests.estimators.multi_sample import (
    ENUMERABLE,
    check_components_are_separate,
    check_steps,
    coupled,
    normal_moments,
)
from tests.estimators.oracles import estimate, gaussian_problem


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("problem", ENUMERABLE)
def test_unbiased_exactly(problem, num_samples):
    case, objective = ENUMERABLE[problem](), bbvi.Iwae(num_samples)
    gradient, _ = case.moments(bbvi.Ovis(num_samples), objective)
    exact = case.exact_gradient(objective, num_samples)
    np.testing.assert_allclose(gradient, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("problem", ENUMERABLE)
def test_bias_is_gamma_times_the_wake_phase(problem, gamma):
    """In the guide's parameters; the model's gradient stays unbiased."""
    case = ENUMERABLE[problem]()
    gradient, _ = case.moments(bbvi.Ovis(3, gamma), bbvi.Iwae(3))
    exact = case.exact_gradient(bbvi.Iwae(3), 3)
    wake, _ = case.moments(bbvi.ReweightedWakeSleep(3), bbvi.ForwardKl(3))
    in_guide = ravel_pytree(
        case.params._replace(
            guide=jax.tree.map(jnp.ones_like, case.params.guide),
            model=jax.tree.map(jnp.zeros_like, case.params.model),
        )
    )[0]
    assert np.abs(wake * in_guide).max() > 0.05
    np.testing.assert_allclose(gradient, exact + gamma * wake * in_guide, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_mean_and_variance_of_a_normal():
    gradient, variance = normal_moments(bbvi.Ovis(2), bbvi.Iwae(2))
    pathwise, pathwise_variance = normal_moments(bbvi.Reparameterization(2), bbvi.Iwae(2))
    np.testing.assert_allclose(gradient, pathwise, rtol=1e-6)
    # The model's part is the same as in the pathwise gradient, draw for draw.
    np.testing.assert_allclose(variance[2], pathwise_variance[2], rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [3, 5, 40])
def test_factors_where_weights_are_equal(num_samples):
    """At the posterior -log(1 - 1/K) - 1/K; with gamma = 1, nothing."""
    problem, params = gaussian_problem(loc=0.3, scale=1.2, objective=bbvi.Iwae(num_samples))
    noise = problem.base_noise(jax.random.key(0), num_samples)
    scores = np.asarray(noise[0])[:, 0] / 1.2
    gradients = [
        estimate(bbvi.Ovis(num_samples, gamma), problem, params, noise).grads
        for gamma in (0.0, 1.0)
    ]
    factor = -np.log1p(-1 / num_samples) - 1 / num_samples
    by_loc = [float(g.guide.normal[0, 0]) for g in gradients]
    np.testing.assert_allclose(by_loc, [-factor * scores.sum(), 0], rtol=1e-9, atol=1e-12)


def test_factors_keep_their_digits():
    """Of weights from 1e-4 to 1 - 1e-12, and for the largest of weights 200 nats apart."""
    estimator = bbvi.Ovis(3)
    for small in (1e-4, 1e-3, 0.1, 1e-12):
        weights = np.array([small, 2 * small, 1 - 3 * small])
        rest = np.array([1 - small, 1 - 2 * small, 3 * small])
        exact = np.where(weights < 1e-2, weights**2 / 2 + weights**3 / 3, -np.log(rest) - weights)
        log_weights = jnp.asarray(np.log(weights) + 50.0, jnp.float32)[None, :, None]
        factors = np.asarray(estimator._factors(log_weights))[0, :, 0]
        # A weight of float32 inputs near 50 is itself known to 4e-6 only.
        np.testing.assert_allclose(factors, exact, rtol=2e-3, atol=1e-14)
    far = estimator._factors(jnp.array([0.0, 0.0, 200.0])[None, :, None])[0, :, 0]
    np.testing.assert_allclose(far, [0, 0, 200 - np.log(2) - 1], rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_components_are_separate(gamma):
    check_components_are_separate(bbvi.Ovis(4, gamma), bbvi.Iwae(4))
    check_components_are_separate(bbvi.Ovis(4, gamma), bbvi.Iwae(2))


def test_steps():
    case = coupled()
    check_steps(bbvi.Ovis(4), case.make(bbvi.Iwae(2)), case.params)


def test_bias_is_declared():
    unbiased, biased = bbvi.Ovis(8), bbvi.Ovis(8, gamma=0.5)
    assert (unbiased.is_biased, biased.is_biased) == (False, True)
    assert repr(unbiased) == "Ovis(num_samples=8, gamma=0.0)"
    assert repr(biased) == "Ovis(num_samples=8, gamma=0.5) [biased]"
    assert unbiased.cost == Cost(values=8)


# Errors.


@pytest.mark.parametrize(
    "objective", [bbvi.Elbo(), bbvi.Iwae(1), bbvi.Renyi(0.5, 4), bbvi.ForwardKl(4)], ids=repr
)
def test_other_objectives_are_refused(objective):
    problem, params = gaussian_problem(objective=objective)
    with pytest.raises(ValueError, match=r"Ovis is for bbvi.Iwae of two draws or more, got "):
        bbvi.Ovis(4).validate(problem, params, None)


def test_groups_are_checked():
    case = coupled()
    with pytest.raises(ValueError, match=r"groups of 3, but Ovis draws num_samples=4"):
        bbvi.Ovis(4).validate(case.make(bbvi.Iwae(3)), case.params, None)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="Ovis needs num_samples >= 2, got 1"):
        bbvi.Ovis(1)
    with pytest.raises(ValueError, match=r"Ovis gamma must be in \[0, 1\], got 1.5"):
        bbvi.Ovis(4, gamma=1.5)
