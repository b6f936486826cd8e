"""Monte Carlo errors and k-hat."""

import jax.numpy as jnp
import numpy as np
import pytest

from bbvi.diagnostics import monte_carlo_mean, psis_khat


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
