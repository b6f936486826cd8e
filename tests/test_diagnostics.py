"""Monte Carlo errors and k-hat."""

import jax.numpy as jnp
import numpy as np
import pytest

from bbvi.diagnostics import (
    log_evidence,
    moment_corrections,
    monte_carlo_mean,
    psis_khat,
    smoothed_weights,
)


def log_weights(scale, size=4000):
    """log p - log q at draws of q = N(0, scale), for p = N(0, 1)."""
    u = np.random.default_rng(0).normal(size=(size,))
    z = scale * u
    return -0.5 * z**2 + 0.5 * u**2 + np.log(scale)


def test_mean_and_standard_error():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=10_000)
    estimate = monte_carlo_mean(jnp.asarray(values))
    assert estimate.value == pytest.approx(values.mean(), rel=1e-5)
    assert estimate.standard_error == pytest.approx(0.03, rel=0.05)
    assert str(monte_carlo_mean(np.array([1.0, 3.0]))) == "2.0 ± 1.0"


def test_khat_tells_narrow_guides_from_wide_ones():
    # P(w > t) falls as t^(-1/k) with k = 1 - scale^2, when the guide is narrower.
    assert psis_khat(log_weights(0.4)) > 0.7
    assert psis_khat(log_weights(0.9)) < 0.7
    assert psis_khat(log_weights(1.3)) < 0.2


def test_khat_is_that_of_arviz_with_the_right_sign():
    from arviz_stats.base import array_stats

    weights = log_weights(0.5)
    _, right = array_stats.psislw(-weights)
    _, wrong = array_stats.psislw(weights)
    assert psis_khat(weights) == pytest.approx(float(right))
    assert abs(float(right) - float(wrong)) > 0.3


def test_khat_of_weights_without_a_tail():
    assert psis_khat(np.zeros(200)) == -np.inf
    assert psis_khat(np.r_[np.zeros(150), np.full(50, -1.0)]) == -np.inf  # the largest are equal
    assert psis_khat(np.r_[np.zeros(199), -np.inf]) == np.inf


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="k-hat needs at least 100 draws, got 99"):
        psis_khat(np.zeros(99))
    with pytest.raises(ValueError, match="needs at least 2 draws, got 1"):
        monte_carlo_mean(np.zeros(1))


# Evidence.


def test_log_evidence_by_hand():
    """Two components with two values each: means, errors and sizes are sums of four terms."""
    weights = np.array([[1.0, 2.0], [3.0, 2.0], [1.0, 6.0], [3.0, 6.0]]).repeat(50, axis=0)
    estimate = log_evidence(jnp.log(weights))
    assert estimate.value == pytest.approx(np.log(2.0) + np.log(4.0), rel=1e-6)
    # w / mean - 1 is -1/2 or 1/2, so that the sum is -1, 0, 0 or 1.
    assert estimate.standard_error == pytest.approx(np.sqrt(0.5 / 199), rel=1e-6)
    assert estimate.effective_sample_size == pytest.approx(200 / 1.25, rel=1e-6)
    assert estimate.num_components == 2
    assert str(estimate).startswith("2.079 ± 0.050 nats, effective sample size 160 (k-hat ")
    assert str(estimate).endswith(" over 2 components")


def test_log_evidence_of_huge_weights_and_of_zeros():
    logs = np.array([5000.0, -np.inf] * 100)[:, None]
    estimate = log_evidence(logs)
    assert estimate.value == pytest.approx(5000 - np.log(2), rel=1e-12)
    assert estimate.effective_sample_size == pytest.approx(100)
    assert estimate.khat < 0.7


def test_log_evidence_refuses_what_it_cannot_average():
    logs = np.zeros((100, 2))
    with pytest.raises(ValueError, match=r"must be \[S, C\] with S >= 100, got shape \(100,\)"):
        log_evidence(logs[:, 0])
    logs[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 200 log weights are NaN or infinite"):
        log_evidence(logs)
    logs[:, 1] = -np.inf
    with pytest.raises(ValueError, match="-inf at all 100 draws, in 1 of 2 components"):
        log_evidence(logs)


def test_smoothed_weights():
    weights = smoothed_weights(log_weights(0.8))
    assert weights.khat == psis_khat(log_weights(0.8))
    plain = np.exp(log_weights(0.8) - np.max(log_weights(0.8)))
    plain /= plain.sum()
    order = np.argsort(plain)
    np.testing.assert_allclose(weights.probabilities.sum(), 1.0)
    # All but the largest are as they were, up to the common factor.
    ratio = (weights.probabilities / plain)[order][: len(plain) // 2]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert not np.allclose(weights.probabilities[order[-1]] / plain[order[-1]], ratio[0], rtol=1e-3)
    bad = smoothed_weights(np.r_[np.zeros(199), np.nan])
    assert bad.khat == np.inf
    assert np.isnan(bad.probabilities).all()
    np.testing.assert_allclose(smoothed_weights(np.zeros(200)).probabilities, 1 / 200)
    rounded = np.random.default_rng(0).integers(-2, 3, 4096) * np.float32(6e-8)
    assert smoothed_weights(0.6931472 + rounded).khat < 0.7
    apart = smoothed_weights(1e20 * np.random.default_rng(0).normal(size=4096))
    assert apart.khat > 0.7
    assert apart.probabilities.max() > 0.99


def test_moment_corrections_of_a_known_target_and_their_errors():
    """q = N(0, 1), p = N(0.3, 0.9): corrections in mean and log deviation, 40 times."""
    rng, scores, errors = np.random.default_rng(0), [], []
    pooled = np.sqrt(0.5 * (1 + 0.9**2))
    for _ in range(40):
        z = rng.normal(size=(2000, 2))
        weights = np.exp(0.5 * z[:, 0] ** 2 - 0.5 * ((z[:, 0] - 0.3) / 0.9) ** 2)
        found = moment_corrections(z, weights / weights.sum())
        scores.append((found.mean[0] - 0.3 / pooled) / found.mean_error[0])
        scores.append((found.log_sd[0] - np.log(0.9)) / found.log_sd_error[0])
        scores.append(found.mean[1] / found.mean_error[1])  # independent: no correction
        errors.append((found.mean_error[0], found.log_sd_error[0]))
    assert np.max(errors) < 0.03  # a tenth of the shift
    scores = np.reshape(scores, (40, 3))
    np.testing.assert_array_less(np.abs(scores.mean(axis=0)), 4 / np.sqrt(40))
    assert ((0.7 < scores.std(axis=0)) & (scores.std(axis=0) < 1.4)).all()


def test_moments_of_a_constant_need_no_correction():
    found = moment_corrections(np.ones(100), np.full(100, 0.01))
    assert found.mean == 0
    assert found.log_sd == 0


def test_the_interval_of_an_estimate():
    low, high = monte_carlo_mean(np.array([1.0, 3.0])).interval
    assert (low, high) == pytest.approx((0.04, 3.96))
