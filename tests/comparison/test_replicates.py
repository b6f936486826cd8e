"""Moments of replicated gradients, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.comparison.replicates import Run, blocks, joined, replicate, rounds, settle

# Target Z N(m, t^2), guide N(mu, s^2); the gradient's variance in (mu, log s) in closed form.
LOG_Z, M, T, MU, S = 0.7, 0.3, 1.2, 1.0, 0.8


def log_joint(x, z):
    return LOG_Z + norm.logpdf(z, M, T)


PROBLEM = bbvi.Problem(log_joint, bbvi.MeanField(bbvi.Normal()))


def point():
    params = PROBLEM.init(jax.random.key(0), None)
    phi = params.guide._replace(normal=jnp.array([[MU], [np.log(S)]]))
    return bbvi.Params(phi)


def exact_variances(kind):
    """Of one draw: of the score function, pathwise, and sticking the landing."""
    d, r = MU - M, S**2 / T**2
    a0 = LOG_Z + np.log(S / T) - d**2 / (2 * T**2)
    a1, a2 = -d * S / T**2, (1 - r) / 2
    return {
        "score": (
            ((a0 + 3 * a2) ** 2 + 6 * a2**2 + 2 * a1**2) / S**2,
            2 * (a0 + 5 * a2) ** 2 + 24 * a2**2 + 10 * a1**2,
        ),
        "pathwise": (S**2 / T**4, S**2 * (d**2 + 2 * S**2) / T**4),
        "landing": ((1 / S - S / T**2) ** 2, d**2 * S**2 / T**4 + 2 * (1 - r) ** 2),
    }[kind]


ESTIMATORS = {
    "score": bbvi.ScoreFunction(1, baseline=bbvi.NoBaseline(), signal="full"),
    "pathwise": bbvi.Reparameterization(1),
    "landing": bbvi.Reparameterization(1, entropy="stick_the_landing"),
}


def moments(estimator, num_replicates=200_000, seed=1):
    run = Run(PROBLEM, estimator)
    state = settle(run, jax.random.key(0), point(), None, 10)
    return replicate(run, jax.random.key(seed), state, None, num_replicates)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_variances_are_the_exact_ones_within_their_errors(kind):
    found = moments(ESTIMATORS[kind])
    for name, exact in zip(
        ("latents.loc", "latents.log_scale"), exact_variances(kind), strict=True
    ):
        part = found[name]
        assert part.trace == pytest.approx(exact, abs=4.5 * part.trace_error)
        assert part.trace_error < 0.05 * exact
        # Of one entry the trace is its variance, and fourth moments give the same error.
        np.testing.assert_allclose(part.variance[0], part.trace, rtol=1e-4)
        np.testing.assert_allclose(part.variance_error[0], part.trace_error, rtol=0.05)
    d = MU - M
    for part, exact in zip(found.values(), (d / T**2, S**2 / T**2 - 1), strict=True):
        np.testing.assert_allclose(part.mean, exact, atol=4.5 * part.mean_variance[0] ** 0.5)


def test_errors_are_as_large_as_the_spread_over_keys():
    found = [moments(ESTIMATORS["pathwise"], 1000, seed)["latents.log_scale"] for seed in range(60)]
    spread = np.std([part.trace for part in found], ddof=1)
    assert np.mean([part.trace_error for part in found]) == pytest.approx(spread, rel=0.3)


def test_all_blocks_as_one():
    found = moments(ESTIMATORS["pathwise"], 1000)
    whole = joined(found)
    assert whole.trace == pytest.approx(sum(part.trace for part in found.values()), rel=1e-6)
    assert whole.mean.shape == (2,)
    assert whole.batch_means.shape == (20, 2)


def test_blocks_of_nested_latents_of_learned_parameters_and_of_networks():
    guide = bbvi.MeanField({"a": [bbvi.Normal((2,)), bbvi.Bernoulli()]})
    problem = bbvi.Problem(lambda x, z, theta: 0.0, guide)
    params = problem.init(jax.random.key(0), None, {"w": jnp.zeros((2, 3))})
    shapes = {name: leaf.shape for name, leaf in blocks(problem, params).items()}
    assert shapes == {
        "a.0.loc": (2,),
        "a.0.log_scale": (2,),
        "a.1.logits": (1,),
        "model.w": (6,),
    }
    sites = {"u": bbvi.Normal((4,)), "v": bbvi.Normal((4,))}
    amortized = bbvi.Amortized(sites, bbvi.networks.MLP((3,)))
    problem = bbvi.Problem(lambda x, z: 0.0, amortized)
    phi = amortized.init(jax.random.key(0), jnp.zeros((4, 2)))
    found = blocks(problem, bbvi.Params(phi))
    assert sum(leaf.size for leaf in found.values()) == sum(p.size for p in jax.tree.leaves(phi))


def test_coefficients_settle_and_are_then_held():
    """A moving average follows the losses; replicates do not change it."""
    run = Run(PROBLEM, bbvi.ScoreFunction(4, baseline=bbvi.MovingAverage(0.9), signal="full"))
    fresh = settle(run, jax.random.key(0), point(), None, 0)
    settled = settle(run, jax.random.key(0), point(), None, 200)
    leaves = [jax.tree.leaves(state.estimator_state) for state in (fresh, settled)]
    assert any(not np.allclose(a, b) for a, b in zip(*leaves, strict=True))
    first, again = (replicate(run, jax.random.key(1), settled, None, 5000) for _ in range(2))
    np.testing.assert_array_equal(first["latents.loc"].mean, again["latents.loc"].mean)
    cold = replicate(run, jax.random.key(1), fresh, None, 5000)
    assert first["latents.loc"].trace < 0.85 * cold["latents.loc"].trace


def test_seconds_grow_with_the_work():
    """Two hundred times the draws, at least three times as long: no race between near equals."""
    runs = {}
    for draws in (10, 2000):
        run = Run(PROBLEM, bbvi.Reparameterization(draws))
        runs[draws] = run, settle(run, jax.random.key(0), point(), None, 0)
    seconds = rounds(runs, None, 200, 5)
    assert {len(times) for times in seconds.values()} == {5}
    assert min(seconds[2000]) > 3 * min(seconds[10])
