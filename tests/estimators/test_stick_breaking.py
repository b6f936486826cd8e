"""Antithetic pairs of categorical draws, by exact integration over the sticks."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.base import Cost
from bbvi.testing import check_estimator, check_mean
from tests.estimators.categoricals import (
    TARGETS,
    categorical_batch,
    categorical_pair,
    exact_gradient,
    three_kinds,
)
from tests.estimators.coupled import (
    FAR,
    check_learns,
    check_precision,
    check_steps,
    coupled_problem,
    exact_moments,
    pair_quadrature,
)
from tests.estimators.oracles import bernoulli_signal_problem, cells, estimate, signal_problem


def stick_probs(probs):
    """What each stick breaks with ``[..., K-1]``, from the most probable category on."""
    falling = -np.sort(-probs, axis=-1)
    left = np.cumsum(falling[..., ::-1], axis=-1)[..., ::-1]
    return falling[..., :-1] / left[..., :-1]


def stick_quadrature(estimator, problem, params, x):
    """Rules for the uniforms of the sticks, between whose thresholds nothing changes."""
    logits, breaks = problem.guide.logits(params.guide, x), {}
    for site in problem.guide.sites():
        eta = np.asarray(logits[site.name])
        if eta.shape == site.block_shape:
            eta = np.stack([np.zeros_like(eta), eta], axis=-1)
        sticks = stick_probs(np.exp(eta) / np.exp(eta).sum(-1, keepdims=True))
        breaks[site.name] = np.broadcast_to(sticks, (estimator.num_samples // 2, *sticks.shape))
    thresholds, to_noise = ravel_pytree(jax.tree.map(jnp.asarray, breaks))
    return [cells(t, 1 - t) for t in thresholds], to_noise


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("signal", ["adaptive", "component"])
def test_unbiased_exactly(target, signal):
    problem, params, x = target()
    exact = exact_gradient(problem, params, x)
    assert np.abs(exact).max() > 0.05
    estimator = bbvi.StickBreaking(2, signal)
    mean, _ = exact_moments(estimator, stick_quadrature, problem, params, x, alpha=0.6)
    np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-9)


def test_unbiased():
    check_estimator(bbvi.StickBreaking(2))


@pytest.mark.usefixtures("x64")
def test_disarm_at_bernoulli_sites():
    problem, params = coupled_problem(FAR)
    sticks = exact_moments(bbvi.StickBreaking(2), stick_quadrature, problem, params, alpha=0.4)
    disarm = exact_moments(bbvi.DisArm(2), pair_quadrature, problem, params, alpha=0.4)
    np.testing.assert_allclose(sticks, disarm, rtol=1e-9)
    problem, params = bernoulli_signal_problem()
    _, variance = exact_moments(bbvi.StickBreaking(2), stick_quadrature, problem, params)
    np.testing.assert_allclose(variance, 2.94e-4, rtol=1e-6)


ETA = {
    3: np.array([0.3, -1.2, 0.9]),
    4: np.array([-0.5, 2.0, 0.1, 0.4]),
    5: np.array([0.2, 0.5, -0.7, 0.0, 0.1]),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_categories", ETA)
def test_disarm_of_the_sticks_averaged_given_the_pair(num_categories):
    """The chain rule, pair by pair, on DisARM in the logits of sticks that were all drawn."""
    eta = ETA[num_categories]
    order = np.argsort(-eta)
    theta = stick_probs(np.exp(eta) / np.exp(eta).sum())
    falling = np.exp(eta[order])
    jacobian = np.zeros((num_categories - 1, num_categories))  # of the sticks' logits
    for k in range(num_categories - 1):
        jacobian[k, order[k]] = 1
        jacobian[k, order[k + 1 :]] = -falling[k + 1 :] / falling[k + 1 :].sum()

    estimator, f = bbvi.StickBreaking(2), np.random.default_rng(0).normal(size=num_categories)
    logits, total, mass = {"c": jnp.asarray(eta)}, {}, {}
    couple = jax.jit(lambda u: estimator.couple({"c": u[None]}, logits)["c"])
    rules = [cells(t, 1 - t) for t in theta]
    for cell in itertools.product(*[range(3)] * (num_categories - 1)):
        u = np.array([nodes[i] for (nodes, _), i in zip(rules, cell, strict=True)])
        weight = np.prod([lengths[i] for (_, lengths), i in zip(rules, cell, strict=True)])
        b = np.stack([u < theta, 1 - u < theta])
        pair = tuple(int(order[np.argmax([*row, True])]) for row in b)
        assert tuple(couple(u).tolist()) == pair
        sticks = (1.0 * b[0] - b[1]) * np.maximum(theta, 1 - theta)
        gradient = 0.5 * (f[pair[0]] - f[pair[1]]) * sticks @ jacobian
        total[pair] = total.get(pair, 0) + weight * gradient
        mass[pair] = mass.get(pair, 0) + weight
    assert len(total) > num_categories
    no_noise = {"c": jnp.zeros((1, num_categories - 1))}
    contract = jax.jit(lambda f, c: estimator.contract({"c": f}, no_noise, {"c": c}, logits)["c"])
    for pair, gradient in total.items():
        got = contract(f[list(pair)], np.array(pair))
        np.testing.assert_allclose(got, gradient / mass[pair], atol=1e-12)


def category_problem(eta, f):
    guide = bbvi.MeanField({"c": bbvi.Categorical(len(eta))})
    params = guide.init(jax.random.key(0), None)
    params = params._replace(families={"c": {"logits": jnp.asarray(eta)}})
    return signal_problem(lambda z: jnp.asarray(f)[z["c"]], guide, params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_categories", ETA)
def test_less_variance_than_leave_one_out(num_categories):
    eta, rng = ETA[num_categories], np.random.default_rng(1)
    p = np.exp(eta) / np.exp(eta).sum()
    scores = np.eye(num_categories) - p
    for _ in range(3):
        f = rng.normal(size=num_categories)
        problem, params = category_problem(eta, f)
        mean, variance = exact_moments(bbvi.StickBreaking(2), stick_quadrature, problem, params)
        pairs = 0.5 * (f[:, None] - f)[..., None] * (scores[:, None] - scores)
        independent = np.tensordot(np.outer(p, p), (pairs - p * (f - p @ f)[:, None].T) ** 2, 2)
        np.testing.assert_allclose(mean, -p * (f - p @ f), atol=1e-9)
        assert variance.sum() < 0.95 * independent.sum()


@pytest.mark.usefixtures("x64")
def test_no_variance_where_the_signal_is_constant():
    """q is the posterior: every draw has the same signal."""
    problem, params = category_problem(ETA[4], np.full(4, 3.7))
    mean, variance = exact_moments(bbvi.StickBreaking(2), stick_quadrature, problem, params)
    np.testing.assert_allclose([mean, variance], 0, atol=1e-12)


def test_every_draw_has_the_guides_probabilities(key):
    eta = np.array([0.3, -9.0, 0.9, 2.0])
    estimator, size = bbvi.StickBreaking(2), 200_000
    sites = bbvi.MeanField({"c": bbvi.Categorical(4, (size,))}).sites()
    logits = {"c": jnp.asarray(np.tile(eta, (size, 1)), jnp.float32)}
    draws = estimator.couple(estimator.draw_sites(key, sites), logits)["c"]
    probs = np.exp(eta) / np.exp(eta).sum()
    for draw in draws:
        check_mean(jax.nn.one_hot(draw, 4), probs)


@pytest.mark.usefixtures("x64")
def test_learned_coefficient():
    check_learns(bbvi.StickBreaking(2), stick_quadrature)


def test_steps():
    check_steps(bbvi.StickBreaking(2), *categorical_batch())
    check_steps(bbvi.StickBreaking(4), *three_kinds())
    check_precision(bbvi.StickBreaking(4), categorical_pair)


def test_extreme_logits(key):
    """A certain category has no gradient, and impossible ones do not overflow."""
    problem, params = category_problem(np.array([200.0, -200.0, 0.0]), np.arange(3.0))
    estimator = bbvi.StickBreaking(4)
    grads = estimate(estimator, problem, params, estimator.draw(key, problem)).grads
    np.testing.assert_array_equal(grads.guide.families["c"]["logits"], 0.0)


def test_cost():
    assert bbvi.StickBreaking(6).cost == Cost(6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bbvi.StickBreaking(3), "draws pairs, so num_samples must be even, got 3"),
        (lambda: bbvi.StickBreaking(2, "full"), "must be 'adaptive' or 'component', got 'full'"),
    ],
)
def test_wrong_configuration(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_continuous_sites_are_refused():
    problem = bbvi.Problem(lambda x, z: -(z["z"] ** 2), bbvi.MeanField({"z": bbvi.Normal()}))
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="StickBreaking is for discrete latents, but site 'z'"):
        bbvi.StickBreaking(2).validate(problem, params, None)
