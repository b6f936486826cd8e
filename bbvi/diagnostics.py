"""Is the answer any good? Monte Carlo estimates with errors, and the PSIS k-hat."""

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
    ratios = np.asarray(log_weights, np.float64)
    if ratios.size < 100:
        raise ValueError(f"k-hat needs at least 100 draws, got {ratios.size}.")
    if not np.isfinite(ratios).all():
        return np.inf
    if np.ptp(ratios) == 0:
        return -np.inf
    from arviz_stats.base import array_stats  # heavy: only when a verdict is asked for

    # The function takes log(q / p) and negates it; with the other sign bad fits look perfect.
    try:
        with np.errstate(all="ignore"):  # hardly varying weights divide by about zero
            _, khat = array_stats.psislw(-ratios)
    except ValueError as error:
        if "All tail values are the same" not in str(error):
            raise
        return -np.inf  # the largest weights are all the same: they are bounded
    return -np.inf if np.isnan(khat) else float(khat)
