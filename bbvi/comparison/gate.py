"""Is the mean of an estimator's gradients the exact gradient? The gate before a variance counts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax import Array
from scipy import special

from bbvi._types import Data, Key, Params
from bbvi.comparison.replicates import Replicates, Run, blocks, replicate, settle
from bbvi.estimators import Enumeration, Estimator
from bbvi.infer.step import FitState
from bbvi.problem import Problem
from bbvi.refinement import free_point, free_problem

FALSE_ALARM = 1e-4  # chance that a right estimator does not pass
# Rounding in the mean of a gradient, relative to the largest entry and to the spread of its block.
ROUNDING = 1e-5
# Replicates needed for each unit of kurtosis, for means to be near normal; Hotelling's test of
# several directions at once needs four times as many.
MIN_PER_KURTOSIS = 5
REFERENCE_FACTOR = 4  # replicates of a reference, as a multiple of those of the others

Gradient: TypeAlias = Callable[[Params], Params]


class Exact(NamedTuple):
    """The exact gradient of a block, or an independent estimate of it.

    Attributes:
      value: ``[P]``.
      variance: ``[P]`` squared standard errors; zeros where it is exact.
      tails: ``[P]`` kurtosis of what it is the mean of, over their number.
    """

    value: np.ndarray
    variance: np.ndarray
    tails: np.ndarray = np.zeros(1)


class Gate(NamedTuple):
    """Whether the mean of replicates is the exact gradient.

    Attributes:
      z: largest number of standard errors by which an entry is off.
      p_value: smaller of two p-values: that of z by Bonferroni, and Hotelling's for the mean
        vector along the exact gradient and some random directions. NaN where tails are so heavy
        that the mean is far from normal, and neither test is to be trusted.
    """

    z: float
    p_value: float

    @property
    def passes(self) -> bool | None:
        """Whether the p-value is one that a right estimator has; None if nothing can be said."""
        return None if math.isnan(self.p_value) else self.p_value > FALSE_ALARM / 2


def check_mean(found: Replicates, truth: Exact, resolution: float = 0.0) -> Gate:
    r"""Compare the mean of replicates with the exact gradient, or an independent estimate of it.

    Entry by entry, :math:`z_i = (\bar g_i - g_i) / \mathrm{s.e.}`, with Bonferroni's bound for the
    largest. Since errors that are small everywhere escape it, Hotelling's test of the mean vector
    is added: in all directions where there are few, else along the exact gradient, where a wrong
    factor shows, and along random ones. It is made with means of batches, which are near normal.
    Entries that owe their mean to events too rare for a normal mean are left out, as those of a
    discrete latent that is nearly certain.

    Args:
      found: replicates.
      truth: what their mean should be.
      resolution: rounding of the learning signal.
    """
    rarest = 1 / (4 * MIN_PER_KURTOSIS)
    is_unseen = (found.variance == 0) & (truth.variance > 0)
    is_rare = (found.kurtoses > rarest * len(found.distances)) | (truth.tails > rarest)
    kept = ~(is_rare | is_unseen)
    if len(kept) and not kept.any():
        return Gate(_scores(found, truth, resolution)[0], math.nan)
    found = found.of_entries(kept)
    truth = Exact(truth.value[kept], truth.variance[kept])
    z, scale, rounding = _scores(found, truth, resolution)
    exact, exact_variance, _ = truth
    p_values = [min(1.0, 2 * len(exact) * float(special.ndtr(-z)))]
    if not scale.any():
        return Gate(z, 1.0)

    num_replicates, tails = len(found.distances), found.kurtosis
    if tails > num_replicates / MIN_PER_KURTOSIS:
        return Gate(z, math.nan)
    if tails > num_replicates / (4 * MIN_PER_KURTOSIS):
        return Gate(z, p_values[0])
    num_batches = len(found.batch_means)
    num_directions = min(len(exact), num_batches // 4)
    if num_directions:
        directions = _directions(exact / scale, num_directions)  # [P, k]
        projected = (found.batch_means - exact) / scale @ directions
        between = np.atleast_2d(np.cov(projected, rowvar=False)) / num_batches
        # Of the exact gradient's own error, and of rounding, in units of the scale.
        own = directions.T @ (directions * ((exact_variance + rounding) / scale**2)[:, None])
        mean = projected.mean(axis=0)
        squared = float(mean @ np.linalg.solve(between + own, mean))
        k = num_directions
        f = squared * (num_batches - k) / (k * (num_batches - 1))
        p_values.append(float(special.fdtrc(k, num_batches - k, f)))
    return Gate(z, min(p_values))


def _scores(found: Replicates, truth: Exact, resolution: float) -> tuple[float, np.ndarray, float]:
    """Largest deviation in standard errors, these errors, and the square of rounding in them."""
    error = found.mean - truth.value
    largest = np.abs(truth.value).max(initial=0.0) + np.sqrt(found.variance.max(initial=0.0))
    rounding = (ROUNDING * largest + resolution) ** 2
    scale = np.sqrt(found.mean_variance + truth.variance + rounding)
    return float(np.abs(error / scale).max(initial=0.0)) if largest else 0.0, scale, rounding


def _directions(first: np.ndarray, count: int) -> np.ndarray:
    """Orthonormal columns: one vector and random ones, or all axes where there are no more."""
    if count == len(first):
        return np.eye(count)
    columns = np.random.default_rng(0).standard_normal((len(first), count))
    if np.any(first):
        columns[:, 0] = first
    return np.linalg.qr(columns)[0]


class Judge:
    """What the means of estimators are compared with.

    Args:
      problem: model, guide and objective.
      truth: a function of ``Params`` that gives the exact gradient, an estimator, or None for
        ``Enumeration()`` where it is possible, and else the best of the other estimators.
      key: of reference runs.
      params: any point.
      x: data.
      num_replicates: of the estimators that are compared.
      num_steps: gradients from which a reference learns its coefficients.

    Attributes:
      description: what it is, for the report.
    """

    def __init__(
        self,
        problem: Problem,
        truth: Estimator | Gradient | None,
        key: Key,
        params: Params,
        x: Data,
        num_replicates: int,
        num_steps: int,
    ):
        free = free_problem(problem)
        if truth is None and is_valid(Enumeration(), free, free_point(problem, params, x), x):
            truth = Enumeration()
        self.problem, self.truth, self.key, self.x = problem, truth, key, x
        self.num_replicates, self.num_steps = REFERENCE_FACTOR * num_replicates, num_steps
        self.description = "the exact gradient"
        if isinstance(truth, Estimator):
            truth.validate(free, free_point(problem, params, x), x)
            self.description = repr(truth)
        elif truth is None:
            self.description = "a long run of the most efficient other unbiased estimator"

    def truths(
        self,
        runs: dict[str, Run],
        states: dict[str, FitState],
        found: dict[str, dict[str, Replicates]],
        params: Params,
        seconds: dict[str, list[float]],
    ) -> dict[str, dict[str, Exact] | None]:
        """By estimator and block what to compare with; None where there is nothing."""
        if isinstance(self.truth, Estimator):
            run = Run(self.problem, self.truth)
            state = settle(run, self.key, params, self.x, self.num_steps)
            return dict.fromkeys(found, self._long_run(run, state))
        if self.truth is not None:
            exact = {
                name: np.asarray(leaf, np.float64)
                for name, leaf in blocks(self.problem, self.truth(params)).items()
            }
            none = {name: _known(value) for name, value in exact.items()}
            return dict.fromkeys(found, none)

        unbiased = [name for name, run in runs.items() if not run.estimator.is_biased]

        def cost(name: str) -> float:
            return _mean_log_trace(found[name]) + math.log(min(seconds[name]))

        order = sorted(unbiased, key=cost)[:2]
        long = {name: self._long_run(runs[name], states[name]) for name in order}
        return {
            name: next((long[other] for other in order if other != name), None) for name in found
        }

    def _long_run(self, run: Run, state: FitState) -> dict[str, Exact]:
        """Mean of many gradients; of two where they are the same, as those without noise are."""
        keys = jax.random.split(self.key)
        first, second = (_gradient(run, key, state, self.x) for key in keys)
        if all(np.allclose(first[b], second[b], rtol=1e-5, atol=1e-7) for b in first):
            exact = {name: np.asarray(value, np.float64) for name, value in first.items()}
            return {name: _known(value) for name, value in exact.items()}
        parts = replicate(run, self.key, state, self.x, self.num_replicates)
        return {
            name: Exact(part.mean, part.mean_variance, part.kurtoses / len(part.distances))
            for name, part in parts.items()
        }


def _known(value: np.ndarray) -> Exact:
    return Exact(value, np.zeros_like(value), np.zeros_like(value))


@functools.partial(jax.jit, static_argnames=("run",))
def _gradient(run: Run, key: Key, state: FitState, x: Data) -> dict[str, Array]:
    return blocks(run.problem, run.gradient(key, state, x)[0])


def joined_truth(parts: dict[str, Exact]) -> Exact:
    """All blocks as one."""
    return Exact(*(np.concatenate(columns) for columns in zip(*parts.values(), strict=True)))


def _mean_log_trace(parts: dict[str, Replicates]) -> float:
    return float(np.mean([np.log(max(part.trace, 1e-300)) for part in parts.values()]))


def is_valid(estimator: Estimator, problem: Problem, params: Params, x: Data) -> bool:
    """Whether an estimator accepts the problem."""
    try:
        estimator.validate(problem, params, x)
    except ValueError:
        return False
    return True
