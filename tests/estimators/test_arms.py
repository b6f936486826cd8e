"""ARMS: mutually antithetic draws, by enumeration of who takes the rarer value."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.base import Cost
from bbvi.testing import check_estimator, check_mean
from tests.estimators.coupled import (
    FAR,
    batch_problem,
    check_learns,
    check_precision,
    check_steps,
    check_unbiased,
    coupled_problem,
    exact_moments,
    nested_problem,
    pair_quadrature,
)
from tests.estimators.oracles import bernoulli_signal_problem, estimate


def all_rare(q, size, num_samples):
    """Probability that given draws, so many, all take the rarer value: a corner of the simplex."""
    return max(1 - size * (1 - q ** (1 / (num_samples - 1))), 0) ** (num_samples - 1) if size else 1


def patterns(theta, num_samples):
    """Every set of draws at the rarer value: Dirichlet coordinates there ``[P, S]``, weights."""
    q = min(theta, 1 - theta)
    edge = 1 - q ** (1 / (num_samples - 1))  # a draw is rare where its coordinate is larger
    points, weights = [], []
    for is_rare in itertools.product([False, True], repeat=num_samples):
        size = sum(is_rare)
        rest = num_samples - size
        weight = sum(
            (-1) ** j * math.comb(rest, j) * all_rare(q, size + j, num_samples)
            for j in range(rest + 1)
        )
        if weight < 1e-14:
            continue
        if size:
            high = (max(edge, (1 - rest * edge) / size) + 1 / size) / 2
            low = (1 - size * high) / rest if rest else 0.0
            high = high if rest else 1 / size
        else:
            high, low = 0.0, 1 / num_samples
        points.append([high if rare else low for rare in is_rare])
        weights.append(weight)
    return np.array(points), np.array(weights)


def copula_quadrature(estimator, problem, params, x):
    """Rules over numbers of patterns, one for each entry, and the noise of those patterns."""
    logits = problem.guide.logits(params.guide, x)
    thetas, to_blocks = ravel_pytree(jax.tree.map(jax.nn.sigmoid, logits))
    tables, rules = [], []
    for theta in np.asarray(thetas):
        points, weights = patterns(theta, estimator.num_samples)
        tables.append(jnp.asarray(points))
        rules.append((np.arange(len(weights)), weights))

    def to_noise(numbers):
        columns = [table[n] for table, n in zip(tables, numbers.astype(int), strict=True)]
        return jax.vmap(to_blocks)(jnp.stack(columns, axis=1))

    return rules, to_noise


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("signal", ["adaptive", "component"])
def test_unbiased_exactly(num_samples, signal):
    check_unbiased(bbvi.Arms(num_samples, signal), copula_quadrature)


@pytest.mark.parametrize("num_samples", [2, 5])
def test_unbiased(num_samples):
    check_estimator(bbvi.Arms(num_samples))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("num_samples", "published"), [(2, 2.94e-4), (4, 2.3227e-5), (6, 2.0110e-5)]
)
def test_variance(num_samples, published):
    problem, params = bernoulli_signal_problem()
    estimator = bbvi.Arms(num_samples)
    mean, variance = exact_moments(estimator, copula_quadrature, problem, params)
    np.testing.assert_allclose(mean, -0.021, rtol=1e-6)
    np.testing.assert_allclose(variance, published, rtol=5e-5)


@pytest.mark.usefixtures("x64")
def test_two_draws_are_disarm():
    """Mean and variance, each by its own quadrature, with other latents in the signals."""
    problem, params = coupled_problem(FAR)
    arms = exact_moments(bbvi.Arms(2), copula_quadrature, problem, params, alpha=0.4)
    disarm = exact_moments(bbvi.DisArm(2), pair_quadrature, problem, params, alpha=0.4)
    np.testing.assert_allclose(arms, disarm, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_four_draws_are_better_than_two_pairs():
    problem, params = coupled_problem(FAR)
    for alpha in (0.0, 1.0):
        _, arms = exact_moments(bbvi.Arms(4), copula_quadrature, problem, params, alpha=alpha)
        _, pair = exact_moments(bbvi.DisArm(2), pair_quadrature, problem, params, alpha=alpha)
        assert (arms[:3] < pair[:3] / 2).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [2, 3, 5])
@pytest.mark.parametrize("theta", [1e-6, 0.1, 0.5, 0.6, 0.99])
def test_draws_of_a_pattern(num_samples, theta):
    """The noise of the oracle's patterns gives those patterns: the copula's other half."""
    points, weights = patterns(theta, num_samples)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-9)
    logit = jnp.log(theta / (1 - theta))
    draws = jax.vmap(lambda p: bbvi.Arms(num_samples).couple({"b": p}, {"b": logit})["b"])(
        jnp.asarray(points)
    )
    edge = 1 - min(theta, 1 - theta) ** (1 / (num_samples - 1))
    np.testing.assert_array_equal(draws, (points > edge) == (theta <= 0.5))
    np.testing.assert_allclose(weights @ np.asarray(draws), theta, rtol=1e-6)


@pytest.mark.parametrize("theta", [0.3, 0.8])
def test_frequencies_of_joint_draws(theta):
    """One, two, and three draws at once at the rarer value, as often as on the simplex."""
    estimator = bbvi.Arms(5)
    sites = bbvi.MeanField({"b": bbvi.Bernoulli((100_000,))}).sites()
    noise = estimator.draw_sites(jax.random.key(1), sites)
    logits = {"b": jnp.full(100_000, jnp.log(theta / (1 - theta)))}
    draws = estimator.couple(noise, logits)["b"].T
    is_rare = draws == (1 if theta < 0.5 else 0)
    q = min(theta, 1 - theta)
    together = jnp.stack([is_rare[:, 1], is_rare[:, 2:4].all(1), is_rare[:, :3].all(1)], axis=1)
    check_mean(1.0 * together, np.array([all_rare(q, m, 5) for m in (1, 2, 3)]))


@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("sign", [-1, 1])
def test_every_draw_has_the_guides_rate(num_samples, sign, key):
    """At one in 30,000, where 1 - d in float32 would be coarse."""
    theta, size = 1 / 30_000, 2_000_000
    sites = bbvi.MeanField({"b": bbvi.Bernoulli((size,))}).sites()
    estimator = bbvi.Arms(num_samples)
    logits = {"b": jnp.full(size, sign * np.log((1 - theta) / theta), jnp.float32)}
    draws = estimator.couple(estimator.draw_sites(key, sites), logits)["b"]
    is_rare = draws == (1 if sign < 0 else 0)
    # Scaled, so that the slack for rounding is small beside the rate.
    check_mean(1e4 * is_rare.T, np.full(num_samples, 1e4 * theta), power=0.7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [2, 3, 6, 50])
def test_single_precision_at_any_logit(num_samples):
    """Near 0, 1/2 and 1, against the plain formula in double precision."""
    etas = np.array([0, 1e-7, 1e-3, 1.0, 5.0, 17.0, 80.0])
    etas = np.concatenate([-etas, etas])
    signal = np.random.default_rng(0).normal(size=(num_samples, len(etas)))
    b = np.random.default_rng(1).integers(0, 2, size=signal.shape)
    q = 1 / (1 + np.exp(np.abs(etas)))
    rho = np.maximum(2 * q ** (1 / (num_samples - 1)) - 1, 0) ** (num_samples - 1)
    covariance = ((signal - signal.mean(0)) * b).sum(0) / (num_samples - 1)
    exact = q * (1 - q) / (q - rho) * covariance
    for dtype, rtol in ((jnp.float32, 1e-4), (jnp.float64, 1e-9)):
        got = bbvi.Arms(num_samples).contract(
            {"b": jnp.asarray(signal, dtype)}, {}, {"b": b}, {"b": jnp.asarray(etas, dtype)}
        )["b"]
        assert got.dtype == dtype
        np.testing.assert_allclose(got, exact, rtol=rtol, atol=1e-6 if rtol == 1e-4 else 1e-12)


@pytest.mark.usefixtures("x64")
def test_learned_coefficient():
    check_learns(bbvi.Arms(3), copula_quadrature)


def test_steps():
    check_steps(bbvi.Arms(2), *batch_problem())
    check_steps(bbvi.Arms(3), *nested_problem())
    check_precision(bbvi.Arms(4), batch_problem)


def test_certain_values_have_no_gradient(key):
    problem, params = coupled_problem((200.0, -200.0, 0.3))
    estimator = bbvi.Arms(4, "component")
    grads = estimate(estimator, problem, params, estimator.draw(key, problem)).grads
    logits = grads.guide.families["b"]["logits"]
    np.testing.assert_array_equal(logits[:2], 0.0)
    assert float(jnp.abs(logits[2])) > 0


def test_cost():
    assert bbvi.Arms(6).cost == Cost(6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bbvi.Arms(1), "num_samples must be at least 2, got 1"),
        (lambda: bbvi.Arms(2, "full"), "Arms signal must be 'adaptive' or 'component', got 'full'"),
    ],
)
def test_wrong_configuration(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_categorical_sites_are_refused():
    problem = bbvi.Problem(lambda x, z: 1.0 * z["c"], bbvi.MeanField({"c": bbvi.Categorical(3)}))
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="Arms is for Bernoulli sites, but site 'c'"):
        bbvi.Arms(2).validate(problem, params, None)
