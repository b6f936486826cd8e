"""ARM: antithetic pairs weighted by their uniform, by exact integration over it."""

import itertools
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
    check_learns,
    check_precision,
    check_steps,
    check_unbiased,
    exact_moments,
    nested_problem,
    pair_quadrature,
)
from tests.estimators.oracles import (
    LEVEL,
    THETA,
    bernoulli_signal_problem,
    pieces,
    tensor_moments,
)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("signal", ["adaptive", "component"])
def test_unbiased_exactly(signal):
    check_unbiased(bbvi.Arm(2, signal), pair_quadrature)


@pytest.mark.parametrize("num_samples", [2, 6])
def test_unbiased(num_samples):
    check_estimator(bbvi.Arm(num_samples))


@pytest.mark.usefixtures("x64")
def test_variance_of_a_pair():
    """For S/2 pairs: 2 (1 - 2t)^2 / 3 (1/8 - (1/2 - min)^3) - g^2, over S/2."""
    problem, params = bernoulli_signal_problem()
    slope, low = 1 - 2 * LEVEL, min(THETA, 1 - THETA)
    exact = 2 * slope**2 / 3 * (1 / 8 - (0.5 - low) ** 3) - (slope * THETA * (1 - THETA)) ** 2
    assert round(exact, 6) == 3.39e-4
    for num_pairs in (1, 2):
        estimator = bbvi.Arm(2 * num_pairs)
        _, variance = exact_moments(estimator, pair_quadrature, problem, params)
        np.testing.assert_allclose(variance, exact / num_pairs, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("theta", [0.1, 0.5, 0.8])
def test_disarm_is_its_mean_given_the_pair(theta):
    """Cell by cell of the uniform, whatever the signals of the two draws."""
    logits, signals = {"b": jnp.log(theta / (1 - theta))}, {"b": jnp.array([0.7, -1.9])}

    def at(estimator, u):
        noise = {"b": u}
        indices = estimator.couple(noise, logits)
        return estimator.contract(signals, noise, indices, logits)["b"]

    edges = np.unique([0.0, theta, 1 - theta, 1.0])
    for low, high in itertools.pairwise(edges):
        nodes, weights = pieces(2)
        inside = low + (high - low) * nodes
        mean, _ = tensor_moments(lambda u: at(bbvi.Arm(2), u), [(inside, weights)])
        same, _ = tensor_moments(lambda u: at(bbvi.DisArm(2), u), [(inside, weights)])
        np.testing.assert_allclose(mean, same, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_learned_coefficient():
    check_learns(bbvi.Arm(2), pair_quadrature)


def test_steps():
    check_steps(bbvi.Arm(2), *batch_problem())
    check_steps(bbvi.Arm(2), *nested_problem())
    check_precision(bbvi.Arm(4), batch_problem)


def test_cost():
    assert bbvi.Arm(6).cost == Cost(6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bbvi.Arm(3), "Arm draws pairs, so num_samples must be even, got 3"),
        (lambda: bbvi.Arm(2, "full"), "Arm signal must be 'adaptive' or 'component', got 'full'"),
    ],
)
def test_wrong_configuration(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_categorical_sites_are_refused():
    problem = bbvi.Problem(lambda x, z: 1.0 * z["c"], bbvi.MeanField({"c": bbvi.Categorical(3)}))
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="Arm is for Bernoulli sites, but site 'c'"):
        bbvi.Arm(2).validate(problem, params, None)
