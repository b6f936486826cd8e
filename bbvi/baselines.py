"""Baselines of the score-function estimator; none ever sees the sample it is subtracted from."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from bbvi._types import PyTree


class Baseline(abc.ABC):
    """Subtracted from the learning signal: leaves the mean gradient alone, changes its variance.

    Attributes:
      min_samples: fewest draws a step must take.

    Example:
      >>> import dataclasses, bbvi, jax.numpy as jnp
      >>> @dataclasses.dataclass(frozen=True)
      ... class Constant(bbvi.Baseline):
      ...     value: float
      ...
      ...     def __call__(self, state, signal):
      ...         return jnp.full_like(signal, self.value), state
      >>> bbvi.ScoreFunction(4, Constant(-10.0)).baseline
      Constant(value=-10.0)
    """

    min_samples: ClassVar[int] = 1

    def init(self) -> PyTree:
        """State before the first step."""
        return ()

    @abc.abstractmethod
    def __call__(self, state: PyTree, signal: Array) -> tuple[Array, PyTree]:
        """Baselines ``[S]`` for the signals ``[S]``, and the state for the next step.

        Entry s must not depend on ``signal[s]``: else the gradient is biased.
        """


@dataclasses.dataclass(frozen=True)
class NoBaseline(Baseline):
    """No baseline: plain REINFORCE.

    Example:
      >>> import bbvi
      >>> bbvi.ScoreFunction(num_samples=4, baseline=bbvi.NoBaseline()).num_samples
      4

    References:
      Williams (1992), Simple Statistical Gradient-Following Algorithms for Connectionist
      Reinforcement Learning.
    """

    def __call__(self, state: PyTree, signal: Array) -> tuple[Array, PyTree]:
        return jnp.zeros_like(signal), state


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Baseline):
    r"""The mean of the other samples' signals, :math:`b_s = \frac{1}{S-1}\sum_{j \ne s} f_j`.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> bbvi.LeaveOneOut()((), jnp.array([1.0, 2.0, 6.0]))[0].tolist()
      [4.0, 3.5, 1.5]

    References:
      Salimans and Knowles (2014), On Using Control Variates with Stochastic Approximation for
      Variational Bayes; Kool, van Hoof and Welling (2019), Buy 4 REINFORCE Samples, Get a
      Baseline for Free!
    """

    min_samples: ClassVar[int] = 2

    def __call__(self, state: PyTree, signal: Array) -> tuple[Array, PyTree]:
        # Centre first: sum - f_s would cancel badly when the signals are large and close.
        centred = signal - jnp.mean(signal)
        return signal - centred * (signal.size / (signal.size - 1)), state


class MovingAverageState(NamedTuple):
    """Decayed sum of past mean signals and of their weights."""

    total: Array
    weight: Array


@dataclasses.dataclass(frozen=True)
class MovingAverage(Baseline):
    r"""Exponential moving average of PAST steps' mean signals, bias-corrected.

    The value used at a step is the average before that step, and the stored sums are never the
    corrected ones: updating first, or storing the correction, would bias the gradient.

    Args:
      decay: weight kept by the past at each step, in [0, 1).

    Raises:
      ValueError: ``decay`` outside [0, 1).

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> baseline = bbvi.MovingAverage(0.9)
      >>> _, state = baseline(baseline.init(), jnp.array([5.0]))
      >>> [round(b, 4) for b in baseline(state, jnp.array([1.0, 2.0]))[0].tolist()]
      [5.0, 5.0]

    References:
      Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"MovingAverage decay must be in [0, 1), got {self.decay}.")

    def init(self) -> MovingAverageState:
        return MovingAverageState(jnp.zeros(()), jnp.zeros(()))

    def __call__(self, state: MovingAverageState, signal: Array) -> tuple[Array, PyTree]:
        total, weight = state
        value = jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)
        update = MovingAverageState(
            self.decay * total + (1 - self.decay) * jnp.mean(signal).astype(total.dtype),
            self.decay * weight + (1 - self.decay),
        )
        return jnp.full_like(signal, value), update
