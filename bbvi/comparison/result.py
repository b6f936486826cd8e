"""What a comparison of estimators found: rows, tables, intervals, a recommendation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from bbvi._types import Params
from bbvi.estimators import Estimator

# A gradient in reverse mode costs about three values, in time and in the literature's counts.
VALUES_PER_GRADIENT = 3
ALL = "all"


class ComparisonRow(NamedTuple):
    """One estimator at one point, for one block of parameters; ``_error``: standard errors.

    Attributes:
      point: where on the reference run.
      block: name of the latent and of the parameter, or "all".
      estimator: name of the estimator.
      is_biased: whether the estimator says so of itself.
      trace: trace of the covariance of the gradient.
      median: variance of the entry in the middle.
      max: variance of the worst entry.
      snr: norm of the exact gradient over the square root of ``trace``.
      bias: norm of the error of the mean over that of the exact gradient, with what noise adds to
        it in expectation taken off; 0 where noise explains it all.
      bias_error: what noise alone would give.
      bias_share: squared bias as a share of the mean squared error.
      z: largest number of standard errors by which an entry of the mean is off; NaN where there
        is nothing to compare with.
      passes: whether the mean is right, by the test of all entries together; None: not tested,
        for want of anything to compare with, or because of heavy tails.
      kurtosis: that of the squared distances; where it is hundreds, errors are underestimated.
      draws: num_samples.
      values: evaluations of ``log_joint`` without gradient per step.
      gradients: those with gradient.
      seconds: per gradient at the first point, in the median of interleaved rounds.
      tuning: evaluations, gradients counted threefold, that settled the coefficients before.

    Example:
      >>> import bbvi
      >>> comparison = bbvi.compare_estimators(
      ...     lambda x, z: -0.5 * z**2,
      ...     bbvi.MeanField(bbvi.Normal()),
      ...     estimators=[bbvi.Reparameterization(4)],
      ...     num_steps=100,
      ...     num_replicates=100,
      ...     progress=False,
      ... )
      >>> comparison.rows[0].block, comparison.rows[0].evaluations
      ('latents.loc', 12)
    """

    point: str
    block: str
    estimator: str
    is_biased: bool
    trace: float
    trace_error: float
    median: float
    median_error: float
    max: float
    max_error: float
    snr: float
    snr_error: float
    bias: float
    bias_error: float
    bias_share: float
    z: float
    passes: bool | None
    kurtosis: float
    draws: int
    values: int
    gradients: int
    seconds: float
    seconds_error: float
    tuning: int

    @property
    def evaluations(self) -> int:
        """Values of ``log_joint`` per step, a gradient counted as three."""
        return self.values + VALUES_PER_GRADIENT * self.gradients

    @property
    def per_evaluation(self) -> tuple[float, float]:
        """Efficiency 1 / (trace x evaluations), with its standard error."""
        value = _inverse(self.trace * self.evaluations)
        return value, value * _relative(self.trace_error, self.trace) if self.trace else 0.0

    @property
    def per_second(self) -> tuple[float, float]:
        """Efficiency 1 / (trace x seconds), with its standard error."""
        value = _inverse(self.trace * self.seconds)
        relative = math.hypot(
            _relative(self.trace_error, self.trace), self.seconds_error / self.seconds
        )
        return value, value * relative if self.trace else 0.0

    @property
    def is_valid(self) -> bool:
        """Whether the gradient is, as far as was tested, that of the objective."""
        return not self.is_biased and self.passes is not False


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """What ``compare_estimators`` found; it prints as a table with a recommendation.

    Attributes:
      rows: all measurements.
      estimators: the estimators by name.
      points: parameters at which gradients were taken, by name.
      truth: what the means were compared with.
      num_replicates: gradients per estimator and point.
      distances: by point and estimator, squared distances ``[R]`` of all entries' gradients from
        their mean; the same position has the same key, so that ratios are paired.

    Example:
      >>> import bbvi
      >>> comparison = bbvi.compare_estimators(
      ...     lambda x, z: -0.5 * (z - x) ** 2,
      ...     bbvi.MeanField(bbvi.Normal()),
      ...     1.5,
      ...     estimators=[bbvi.Reparameterization(4), bbvi.ScoreFunction(4)],
      ...     num_steps=100,
      ...     num_replicates=500,
      ...     progress=False,
      ... )
      >>> ratio, low, high = comparison.ratio("ScoreFunction", "Reparameterization", "start")
      >>> 1 < low < ratio < high
      True
    """

    rows: tuple[ComparisonRow, ...]
    estimators: dict[str, Estimator]
    points: dict[str, Params]
    truth: str
    num_replicates: int
    distances: dict[tuple[str, str], np.ndarray]

    def ratio(self, first: str, second: str, point: str) -> tuple[float, float, float]:
        """Trace of the first over that of the second at a point, with a 95 % interval.

        By the delta method for the logarithm of a ratio of paired means.

        Args:
          first: name of an estimator.
          second: name of another.
          point: name of a point.
        """
        a, b = self.distances[point, first], self.distances[point, second]
        if not b.any():
            return (math.nan if not a.any() else math.inf,) * 3
        if not a.any():
            return (0.0,) * 3
        value = math.log(a.mean() / b.mean())
        half = 1.96 * float(np.std(a / a.mean() - b / b.mean(), ddof=1)) / math.sqrt(len(a))
        return math.exp(value), math.exp(value - half), math.exp(value + half)

    @property
    def recommended(self) -> str:
        """Name of the valid estimator of least trace x seconds, over all points and blocks.

        Blocks have scales of their own and sums are of the largest: the mean is that of logarithms.
        """
        costs = self._mean_costs()
        return min(costs, key=lambda name: costs[name])

    def _mean_costs(self) -> dict[str, float]:
        places: dict[tuple[str, str], list[ComparisonRow]] = {}
        for row in self.rows:
            if row.block != ALL:
                places.setdefault((row.point, row.block), []).append(row)
        logs: dict[str, list[float]] = {}
        for rows in places.values():
            # An estimator without variance is as good as one needs: its cost is not 0.
            floor = 1e-10 * max((row.trace for row in rows), default=0.0) or 1.0
            for row in rows:
                logs.setdefault(row.estimator, []).append(
                    math.log(max(row.trace, floor) * row.seconds)
                )
        invalid = {row.estimator for row in self.rows if not row.is_valid}
        valid = {name: values for name, values in logs.items() if name not in invalid}
        if not valid:
            raise ValueError(
                "no estimator can be recommended: all are biased, by their own account or by the "
                "test of their mean gradient."
            )
        return {name: float(np.mean(values)) for name, values in valid.items()}

    def recommendation(self) -> str:
        """Which estimator to take, by how much it is better, and where another one is."""
        try:
            costs = self._mean_costs()
        except ValueError as error:
            return str(error)
        order = sorted(costs, key=lambda name: costs[name])
        best = order[0]
        text = f"Recommended: {best}, least variance x time over all points and blocks"
        if len(order) > 1:
            times = math.exp(costs[order[1]] - costs[best])
            text += f", {_number(times)} times less than {order[1]}"
        lines = [text + "."]
        for point in self.points:
            rows = [r for r in self.rows if (r.point, r.block) == (point, ALL) and r.is_valid]
            other = min(rows, key=lambda r: r.trace * r.seconds)
            (own,) = (r for r in rows if r.estimator == best)
            if other.estimator != best and other.trace > 0:
                gain = own.trace * own.seconds / (other.trace * other.seconds)
                if gain > 1.1:
                    lines.append(f"At {point}, {other.estimator} is {_number(gain)} times better.")
        return "\n".join(lines)

    def to_dataframe(self) -> Any:
        """All rows as a pandas data frame.

        Raises:
          ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("data frames need pandas: pip install 'bbvi[interop]'.") from error
        rows = []
        for row in self.rows:
            by_value, by_second = row.per_evaluation, row.per_second
            rows.append(
                row._asdict()
                | {
                    "evaluations": row.evaluations,
                    "per_evaluation": by_value[0],
                    "per_evaluation_error": by_value[1],
                    "per_second": by_second[0],
                    "per_second_error": by_second[1],
                }
            )
        return pandas.DataFrame(rows)

    def plot(self, path: str | None = None) -> Any:
        """Variance along the run by block, and variance x time; see ``plotting``."""
        from bbvi.plotting import plot_comparison

        return plot_comparison(self, path)

    def table(self, point: str, block: str = ALL) -> str:
        """The estimators at one point, the most efficient first.

        Args:
          point: name of a point.
          block: name of a block, or "all".

        Raises:
          ValueError: there is no such point or block.
        """
        rows = [row for row in self.rows if (row.point, row.block) == (point, block)]
        if not rows:
            known = list(dict.fromkeys(row.block for row in self.rows))
            raise ValueError(
                f"nothing was measured at point {point!r}, block {block!r}; points are "
                f"{list(self.points)}, blocks {known}."
            )
        width = max(len(row.estimator) for row in rows)
        head = f"{'estimator':<{width}} {'variance ± s.e.':>21} {'SNR':>8} {'z':>6} {'bias':>9}"
        lines = [head + f" {'evals':>6} {'µs':>9} {'x best':>9}"]
        valid = [row.trace * row.seconds for row in rows if row.is_valid]
        best = min(valid, default=math.nan)
        for row in sorted(rows, key=lambda row: (not row.is_valid, row.trace * row.seconds)):
            variance = f"{_number(row.trace)} ± {_number(row.trace_error)}"
            if row.passes is False and not row.is_biased:
                variance = "not the gradient"  # nothing to be proud of: not shown
            is_seen = row.bias > 2 * row.bias_error and row.passes is not True
            bias = f"{100 * row.bias:.3g} %" if is_seen else "-"
            product = row.trace * row.seconds / best if row.is_valid and best else math.nan
            lines.append(
                f"{row.estimator:<{width}} {variance:>21} {_number(row.snr):>8} {row.z:>6.1f} "
                f"{bias:>9} {row.evaluations:>6} {1e6 * row.seconds:>9.3g} {_number(product):>9}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        parts = [
            f"Trace of the gradient's covariance, {self.num_replicates} replicates; bias against "
            f"{self.truth}; x best: variance x time, as a multiple of the best here."
        ]
        for point in self.points:
            parts.append(f"{point}:\n{self.table(point)}")
        return "\n\n".join([*parts, self.recommendation()])


def _inverse(value: float) -> float:
    return 1 / value if value > 0 else math.inf


def _relative(error: float, value: float) -> float:
    return error / value if value > 0 else 0.0


def _number(value: float) -> str:
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
