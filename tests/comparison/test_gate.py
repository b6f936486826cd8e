"""The test of a mean gradient: right ones pass, wrong ones do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi.comparison.gate import Exact, Judge, check_mean
from bbvi.comparison.replicates import Replicates, Run, replicate, settle
from bbvi.testing import exact_bernoulli_gradient

RNG = np.random.default_rng(0)


def replicates(gradients):
    """Moments of gradients ``[R, P]`` in batches of fifty, as ``replicate`` takes them."""
    batches = gradients.reshape(-1, 50, gradients.shape[1])
    means = batches.mean(axis=1)
    deviations = batches - means[:, None]
    variance = deviations.var(axis=1, ddof=1).mean(axis=0)
    fourth = (deviations**4).mean(axis=(0, 1))
    error = np.sqrt((fourth - variance**2) / len(gradients))
    distances = 50 / 49 * (deviations**2).sum(axis=2).ravel()
    return Replicates(gradients.mean(axis=0), variance, error, distances, means)


def known(value):
    return Exact(value, np.zeros_like(value))


def correlated(size, num_replicates=2000):
    """Entries with one noise in common and scales over two orders of magnitude."""
    shared = RNG.standard_normal((num_replicates, 1))
    own = RNG.standard_normal((num_replicates, size))
    return (0.7 * shared + own) * np.geomspace(0.1, 10, size)


@pytest.mark.parametrize("size", [1, 3, 200])
def test_right_ones_pass(size):
    exact = RNG.standard_normal(size)
    p_values = np.array(
        [check_mean(replicates(exact + correlated(size)), known(exact)).p_value for _ in range(200)]
    )
    assert p_values.min() > 1e-4
    # The smaller of two p-values: at most twice as often below a level as one would be.
    assert np.mean(p_values < 0.05) < 0.15


@pytest.mark.parametrize("size", [1, 3, 200])
def test_a_wrong_factor_does_not_pass(size):
    """Five percent of a gradient with SNR near one, as in the mean of 10,000 gradients."""
    exact = np.full(size, 3.0) * np.geomspace(0.1, 10, size)
    gate = check_mean(replicates(0.95 * exact + correlated(size, 10_000)), known(exact))
    assert not gate.passes


def test_small_errors_everywhere_do_not_pass():
    """Half a standard error in each of 800 entries, none of which stands out."""
    size, num_replicates = 800, 2000
    noise = RNG.standard_normal((num_replicates, size))
    exact = np.ones(size)
    gate = check_mean(replicates(exact + 0.5 / num_replicates**0.5 + noise), known(exact))
    assert gate.z < 4.5
    assert not gate.passes


def test_errors_of_the_reference_count():
    exact, error = np.ones(3), 0.3
    estimated = Exact(exact + error * np.array([1.0, -1.0, 0.5]), np.full(3, error**2))
    found = replicates(exact + 0.1 * RNG.standard_normal((2000, 3)))
    assert check_mean(found, estimated).passes
    assert not check_mean(found, known(estimated.value)).passes


def test_heavy_tails_are_not_judged():
    """A correct mean, whose few huge terms are a far from normal sum."""
    tails = RNG.standard_normal((2000, 3)) * np.exp(2.5 * RNG.standard_normal((2000, 1)))
    gate = check_mean(replicates(1 + tails), known(np.ones(3)))
    assert gate.passes is None


def test_entries_of_rare_events_are_left_out():
    """A mean of 1e-3 from events of which 2,000 replicates see two, or none, or ten."""
    gradients = RNG.standard_normal((2000, 4))
    gradients[:, 1:] = 0.0
    gradients[:2, 1], gradients[:10, 2] = 1.0, 1.0
    own = np.array([0.0, 1e-3, 1e-3, 1e-3])
    seen = Exact(own, np.array([1e-4, 1e-7, 1e-7, 1e-7]))
    assert check_mean(replicates(gradients), seen).passes
    # One of the common kind is still judged, and so is a constant where the truth is exact.
    off = seen._replace(value=own + np.array([0.3, 0.0, 0.0, 0.0]))
    assert not check_mean(replicates(gradients), off).passes
    assert not check_mean(replicates(gradients), known(own + np.array([0.0, 0, 0, 0.5]))).passes
    # The reference may be the one that has seen too little.
    gradients[:, 1] = 0.01 * RNG.standard_normal(2000)
    rare = Exact(np.array([0.0, 0.1, 1e-3, 1e-3]), np.full(4, 1e-8), np.array([0, 0.5, 0, 0]))
    assert check_mean(replicates(gradients), rare).passes
    assert not check_mean(replicates(gradients), rare._replace(tails=np.zeros(4))).passes
    only = Exact(own[2:], seen.variance[2:])
    assert check_mean(replicates(gradients[:, 2:]), only).passes is None


def test_rounding_of_the_signal_is_no_bias():
    gradients = 1e-6 + 1e-8 * RNG.standard_normal((2000, 3))
    assert not check_mean(replicates(gradients), known(np.zeros(3))).passes
    assert check_mean(replicates(gradients), known(np.zeros(3)), resolution=1e-5).passes


def test_gradients_without_noise():
    def gate(value, exact):
        return check_mean(replicates(np.tile(value, (100, 1))), known(np.array(exact)))

    assert gate([1.0, 0.0], [1.0, 0.0]).passes
    assert gate([1.0, 3e-6], [1.0, 0.0]).passes  # rounding
    assert not gate([1.0, 0.01], [1.0, 0.0]).passes
    assert gate([0.0, 0.0], [0.0, 0.0]).passes


GUIDE = bbvi.MeanField({"b": bbvi.Bernoulli((3,))})
PROBLEM = bbvi.Problem(lambda x, z: jnp.sum(x * z["b"]) - 2.0 * z["b"][0] * z["b"][1], GUIDE)
X = jnp.array([1.0, 0.5, -1.0])
EXACT = exact_bernoulli_gradient(PROBLEM, PROBLEM.init(jax.random.key(0), X), X).guide.families[
    "b"
]["logits"]


@jax.debug_key_reuse(False)  # as in a comparison
def truths(truth, estimators):
    params = PROBLEM.init(jax.random.key(0), X)
    judge = Judge(PROBLEM, truth, jax.random.key(1), params, X, 2000, 10)
    runs = {type(e).__name__: Run(PROBLEM, e) for e in estimators}
    states = {name: settle(run, jax.random.key(2), params, X, 10) for name, run in runs.items()}
    found = {n: replicate(r, jax.random.key(3), states[n], X, 500) for n, r in runs.items()}
    return judge, judge.truths(runs, states, found, params, {name: [1.0] for name in runs})


def test_enumeration_is_the_truth_where_it_can_be():
    judge, by_name = truths(None, [bbvi.ScoreFunction(4), bbvi.StraightThrough(4)])
    assert judge.description == repr(bbvi.Enumeration())
    for parts in by_name.values():
        np.testing.assert_allclose(parts["b.logits"].value, EXACT, rtol=1e-5)
        assert not parts["b.logits"].variance.any()


def test_a_function_or_an_estimator_can_be_the_truth():
    def gradient(params):
        return params._replace(guide=params.guide._replace(families={"b": {"logits": EXACT}}))

    _, by_name = truths(gradient, [bbvi.ScoreFunction(4)])
    np.testing.assert_allclose(by_name["ScoreFunction"]["b.logits"].value, EXACT, rtol=1e-6)
    _, by_name = truths(bbvi.DisArm(8), [bbvi.ScoreFunction(4)])
    found = by_name["ScoreFunction"]["b.logits"]
    assert np.all(np.abs(found.value - EXACT) < 5 * np.sqrt(found.variance))
    assert np.all(np.sqrt(found.variance) < 0.05 * np.abs(EXACT).max())


def test_otherwise_each_is_compared_with_the_best_other_unbiased_one(monkeypatch):
    monkeypatch.setattr("bbvi.comparison.gate.is_valid", lambda *_: False)
    estimators = [bbvi.ScoreFunction(4), bbvi.LocalExpectation(4), bbvi.StraightThrough(4)]
    judge, by_name = truths(None, estimators)
    assert "most efficient other" in judge.description
    score = by_name["LocalExpectation"]["b.logits"]  # the runner-up, with its error
    assert np.all(score.variance > 0)
    best = by_name["ScoreFunction"]["b.logits"]
    np.testing.assert_array_equal(best.value, by_name["StraightThrough"]["b.logits"].value)
    assert np.all(best.variance < score.variance)
    _, alone = truths(None, estimators[:1])
    assert alone == {"ScoreFunction": None}
