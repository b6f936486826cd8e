"""Is the answer any good? Estimates with errors, the evidence, k-hat, and corrected moments."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jax import Array


class MonteCarlo(NamedTuple):
    """A Monte Carlo estimate.

    Attributes:
      value: the estimate.
      standard_error: its standard error.
    """

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The normal 95 % confidence interval."""
        half = 1.96 * self.standard_error
        return self.value - half, self.value + half

    def __str__(self) -> str:
        if not (math.isfinite(self.value) and 0 < self.standard_error < math.inf):
            return f"{self.value:.6g} ± {self.standard_error:.2g}"
        # Two significant digits of the error decide how many of the value mean anything.
        digits = max(0, 1 - math.floor(math.log10(self.standard_error)))
        return f"{self.value:.{digits}f} ± {self.standard_error:.{digits}f}"


def monte_carlo_mean(values: Array) -> MonteCarlo:
    """Mean of independent values ``[S]``, S >= 2, with its standard error.

    Args:
      values: independent draws of a scalar.

    Returns:
      The mean and its standard error.

    Raises:
      ValueError: fewer than two values.

    Example:
      >>> import jax.numpy as jnp
      >>> from bbvi.diagnostics import monte_carlo_mean
      >>> print(monte_carlo_mean(jnp.array([1.0, 2.0, 3.0])))
      2.00 ± 0.58
    """
    draws = np.asarray(values, np.float64)
    if draws.size < 2:
        raise ValueError(f"a standard error needs at least 2 draws, got {draws.size}.")
    return MonteCarlo(float(draws.mean()), float(draws.std(ddof=1) / np.sqrt(draws.size)))


class LogEvidence(NamedTuple):
    """An importance-sampling estimate of the log evidence, log p(x).

    Attributes:
      value: the estimate, in nats.
      standard_error: its standard error, by the delta method.
      effective_sample_size: how many draws from the posterior the draws are worth; the smallest
        over the components of the model.
      khat: shape of the tail of the weights of that component; above 0.7 neither the estimate nor
        its error can be relied on.
      num_components: C, parts of the model that share no term.
    """

    value: float
    standard_error: float
    effective_sample_size: float
    khat: float
    num_components: int

    def __str__(self) -> str:
        parts = f" over {self.num_components} components" if self.num_components > 1 else ""
        return (
            f"{MonteCarlo(self.value, self.standard_error)} nats, effective sample size "
            f"{self.effective_sample_size:.0f} (k-hat {self.khat:.2f}){parts}"
        )


def log_evidence(log_weights: Array) -> LogEvidence:
    r"""The log evidence from log weights of a model of C independent components.

    .. math::
      \log \hat Z = \sum_c \log \bar w_c, \qquad \bar w_c = \frac1S \sum_s w_{sc}, \qquad
      \mathrm{s.e.}^2 = \frac{1}{S (S - 1)} \sum_s \Big(\sum_c (w_{sc} / \bar w_c - 1)\Big)^2

    The weights of all latents together, :math:`\prod_c w_{sc}`, have a variance that grows
    exponentially with C; these do not. The error is that of the delta method, of first order in
    :math:`\bar w_c`. To second order the estimate is low by half the squared error, which matters
    from errors of about 0.5 on.

    Args:
      log_weights: log p(x, z) - log q(z) ``[S, C]`` at draws from q, S >= 100.

    Returns:
      The estimate, its standard error, and the effective sample size
      :math:`(\sum_s w_s)^2 / \sum_s w_s^2` and k-hat of the component where they are worst.

    Raises:
      ValueError: fewer than 100 draws; a weight that is NaN or infinite; a component whose weights
        are all zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from bbvi.diagnostics import log_evidence
      >>> estimate = log_evidence(jnp.full((100, 3), -2.0))
      >>> estimate.value, estimate.standard_error, round(estimate.effective_sample_size)
      (-6.0, 0.0, 100)

    References:
      Geweke (1989), Bayesian Inference in Econometric Models Using Monte Carlo Integration; Kong,
      Liu and Wong (1994), Sequential Imputations and Bayesian Missing Data Problems, for the
      effective sample size.
    """
    logs = np.asarray(log_weights, np.float64)
    if logs.ndim != 2 or len(logs) < 100:
        raise ValueError(f"log weights must be [S, C] with S >= 100, got shape {logs.shape}.")
    bad = int(np.sum(np.isnan(logs) | np.isposinf(logs)))
    if bad:
        raise ValueError(
            f"{bad} of {logs.size} log weights are NaN or infinite: log_joint or the log density "
            "is not finite at those draws."
        )
    largest = logs.max(axis=0)
    empty = int(np.sum(np.isneginf(largest)))
    if empty:
        raise ValueError(
            f"log_joint is -inf at all {len(logs)} draws, in {empty} of {logs.shape[1]} "
            "components: the draws miss the posterior; take another proposal."
        )
    weights = np.exp(logs - largest)
    means = weights.mean(axis=0)
    relative = weights / means
    error = (relative - 1).sum(axis=1).std(ddof=1) / math.sqrt(len(logs))
    sizes = len(logs) / np.mean(relative**2, axis=0)
    worst = int(np.argmin(sizes))
    return LogEvidence(
        float((largest + np.log(means)).sum()),
        float(error),
        float(sizes[worst]),
        psis_khat(np.maximum(logs[:, worst], largest[worst] - 700)),  # zero weights are no tail
        logs.shape[1],
    )


def psis_khat(log_weights: Array) -> float:
    r"""Shape :math:`\hat k` of the tail of the importance weights p / q.

    Below 0.7 the guide covers the posterior well enough for importance sampling to correct it;
    above, its moments should not be trusted. It is noise when the weights hardly vary.

    Args:
      log_weights: log p(x, z) - log q(z) at draws from q, ``[S]``, S >= 100.

    Returns:
      The shape of a generalized Pareto fitted to the largest weights.

    Raises:
      ValueError: fewer than 100 draws.

    Example:
      >>> import jax
      >>> from bbvi.diagnostics import psis_khat
      >>> psis_khat(0.1 * jax.random.normal(jax.random.key(0), (1000,))) < 0.7
      True

    References:
      Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational
      Inference.
    """
    return smoothed_weights(log_weights).khat


class SmoothedWeights(NamedTuple):
    """Importance weights whose largest are those of a generalized Pareto tail.

    Attributes:
      probabilities: the weights, normalised, ``[S]``.
      khat: shape of the tail.
    """

    probabilities: np.ndarray
    khat: float


def smoothed_weights(log_weights: Array) -> SmoothedWeights:
    """Pareto-smoothed importance weights of draws from q, and the shape of their tail.

    The largest weights are replaced by the expected order statistics of a generalized Pareto
    distribution fitted to them: estimates have less variance, and a little bias.

    Args:
      log_weights: log p(x, z) - log q(z) at draws from q, ``[S]``, S >= 100.

    Returns:
      Normalised weights and k-hat; with weights that are not finite, infinite k-hat and NaN.

    Raises:
      ValueError: fewer than 100 draws.

    Example:
      >>> import jax
      >>> from bbvi.diagnostics import smoothed_weights
      >>> weights = smoothed_weights(0.1 * jax.random.normal(jax.random.key(0), (1000,)))
      >>> round(float(weights.probabilities.sum()), 6)
      1.0

    References:
      Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
    """
    ratios = np.asarray(log_weights, np.float64)
    if ratios.size < 100:
        raise ValueError(f"k-hat needs at least 100 draws, got {ratios.size}.")
    if not np.isfinite(ratios).all():
        return SmoothedWeights(np.full(ratios.size, np.nan), np.inf)
    plain = np.exp(ratios - ratios.max())
    plain /= plain.sum()
    if np.ptp(ratios) == 0:
        return SmoothedWeights(plain, -np.inf)
    from arviz_stats.base import array_stats  # heavy: only when a verdict is asked for

    # The function takes log(q / p) and negates it; with the other sign bad fits look perfect.
    try:
        with np.errstate(all="ignore"):  # hardly varying weights divide by about zero
            logs, khat = array_stats.psislw(-ratios)
    except ValueError as error:
        if "All tail values are the same" not in str(error):
            raise
        return SmoothedWeights(plain, -np.inf)  # the largest are all the same: they are bounded
    if np.isnan(khat):
        return SmoothedWeights(plain, -np.inf)
    if np.isnan(logs).any():  # further apart than floats can hold, or apart by rounding only
        return SmoothedWeights(plain, np.inf if np.ptp(ratios) > 1.0 else -np.inf)
    smoothed = np.exp(logs - np.max(logs))
    return SmoothedWeights(smoothed / smoothed.sum(), float(khat))


class MomentCorrections(NamedTuple):
    """What importance weights change in the moments of scalars, ``[...]`` each.

    Attributes:
      mean: weighted mean minus plain mean, in standard deviations (of both, pooled).
      mean_error: its standard error.
      log_sd: log of weighted over plain standard deviation; above 0 where q is too narrow.
      log_sd_error: its standard error.
    """

    mean: np.ndarray
    mean_error: np.ndarray
    log_sd: np.ndarray
    log_sd_error: np.ndarray


def moment_corrections(draws: Array, probabilities: np.ndarray) -> MomentCorrections:
    r"""What importance weights change in means and standard deviations of scalars.

    .. math::
      \frac{\sum_s p_s z_s - \frac1S \sum_s z_s}{\mathrm{sd}}, \qquad
      \frac12 \log \frac{\sum_s p_s (z_s - m_p)^2}{\frac1S \sum_s (z_s - \bar z)^2}

    Plain and weighted moments are of the same draws, so that their noise cancels where weights
    hardly vary; errors are of first order in p.

    Args:
      draws: draws from q, ``[S, ...]``.
      probabilities: their normalised weights, ``[S]``, such as those of ``smoothed_weights``.

    Returns:
      Corrections of every scalar; none where a scalar does not vary.

    Example:
      >>> import numpy as np
      >>> from bbvi.diagnostics import moment_corrections
      >>> z = np.random.default_rng(0).normal(size=100_000)
      >>> weights = np.exp(0.5 * z)  # of N(0.5, 1)
      >>> found = moment_corrections(z, weights / weights.sum())
      >>> round(float(found.mean), 1), round(abs(float(found.log_sd)), 1)
      (0.5, 0.0)
    """
    z = np.asarray(draws, np.float64)
    p = np.asarray(probabilities, np.float64).reshape(-1, *(1,) * (z.ndim - 1))
    plain, weighted = z.mean(axis=0), (p * z).sum(axis=0)
    from_plain, from_weighted = z - plain, z - weighted
    tiny = np.finfo(np.float64).tiny
    variance = np.maximum((from_plain**2).mean(axis=0), tiny)
    weighted_variance = np.maximum((p * from_weighted**2).sum(axis=0), tiny)
    sd = np.sqrt(0.5 * (variance + weighted_variance))
    shift = (weighted - plain) / sd
    # What each draw adds to the moments, to first order; the sum of each is 0.
    mean = from_plain / len(z)
    weighted_mean = p * from_weighted
    square = (from_plain**2 - variance) / len(z)
    weighted_square = p * (from_weighted**2 - weighted_variance)
    by_shift = (weighted_mean - mean) / sd - 0.25 * shift * (square + weighted_square) / sd**2
    by_log_sd = 0.5 * (weighted_square / weighted_variance - square / variance)
    found = MomentCorrections(
        shift,
        np.sqrt((by_shift**2).sum(axis=0)),
        0.5 * np.log(weighted_variance / variance),
        np.sqrt((by_log_sd**2).sum(axis=0)),
    )
    is_constant = np.ptp(z, axis=0) == 0  # then all of these are rounding errors
    return MomentCorrections(*(np.where(is_constant, 0.0, leaf) for leaf in found))
