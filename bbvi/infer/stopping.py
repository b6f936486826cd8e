"""When to lower the rate and when to stop: has the loss levelled off, within its noise?"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from bbvi._checks import check_count, check_positive


class Trend(NamedTuple):
    """How the loss moved lately.

    Attributes:
      gain: mean loss of the third quarter of the record minus that of the last: positive while
        the bound improves.
      standard_error: Monte Carlo standard error of the gain.
      noise: standard deviation of the loss from step to step.
      num_steps: steps between the two quarters' centres.
    """

    gain: float
    standard_error: float
    noise: float
    num_steps: int


def trend(losses: np.ndarray) -> Trend:
    """Compare the last two quarters of a record of losses ``[T]``, T >= 8."""
    quarter = len(losses) // 4
    before = np.asarray(losses[-2 * quarter : -quarter], np.float64)
    after = np.asarray(losses[-quarter:], np.float64)
    # Means over batches, because successive losses share slowly moving parameters.
    error = math.hypot(_mean_error(before), _mean_error(after))
    return Trend(float(before.mean() - after.mean()), error, float(after.std()), quarter)


def _mean_error(values: np.ndarray) -> float:
    num_batches = min(20, len(values))
    size = len(values) // num_batches  # those left over are fewer than batches, and left out
    means = values[: num_batches * size].reshape(num_batches, size).mean(axis=1)
    return float(means.std(ddof=1) / math.sqrt(num_batches))


@dataclasses.dataclass(frozen=True)
class Plateau:
    r"""Stop when the loss has provably levelled off.

    The record since the last change of rate is cut in quarters. The loss has levelled off when
    the improvement between the last two is, with two standard errors added, below
    ``tolerance`` times the step-to-step noise of the loss (or below 0.01 nats, when there is
    next to no noise). Absence of evidence does not stop a run: a noisy loss needs a longer
    record, and the quarters grow with it, so slow progress is seen.

    Args:
      tolerance: improvement that counts as none, as a fraction of the loss's noise.
      min_steps: fewest steps before a decision.

    Raises:
      ValueError: an argument that is not positive.

    Example:
      >>> import bbvi, numpy as np
      >>> rng = np.random.default_rng(0)
      >>> bbvi.Plateau().is_level(rng.normal(size=8000))
      True
      >>> bbvi.Plateau().is_level(rng.normal(size=8000) - 1e-3 * np.arange(8000))
      False

    References:
      Welandawe, Andersen, Vehtari and Huggins (2022), Robust, Automated, and Accurate Black-box
      Variational Inference, for stopping each rate by a test on the run itself.
    """

    tolerance: float = 0.1
    min_steps: int = 1000

    def __post_init__(self) -> None:
        check_positive("Plateau tolerance", self.tolerance)
        check_count("Plateau min_steps", self.min_steps, 100)

    def is_level(self, losses: np.ndarray) -> bool:
        """Whether a record of losses ``[T]`` or, for restarts, ``[R, T]`` has levelled off."""
        if losses.ndim == 2:
            return all(self.is_level(record) for record in losses)
        if len(losses) < self.min_steps:
            return False
        change = trend(losses)
        return change.gain + 2 * change.standard_error < max(self.tolerance * change.noise, 0.01)
