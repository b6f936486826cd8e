"""Pictures of a comparison of estimators."""

from __future__ import annotations

import math
from typing import Any

from bbvi.comparison.result import ALL, Comparison, ComparisonRow
from bbvi.plotting._figure import COLOURS, figure_class

MAX_BLOCKS = 7
MARKERS = "osD^vP*X<>"  # they repeat more slowly than the colours


def plot_comparison(comparison: Comparison, path: str | None = None) -> Any:
    """Variance along the run, one panel for each block, and variance x time of each estimator.

    Estimators whose gradient is another than the objective's are drawn open and dashed.

    Args:
      comparison: what ``compare_estimators`` returned.
      path: where to write the picture; nowhere by default.

    Returns:
      The matplotlib figure.

    Raises:
      ImportError: matplotlib is not installed.

    Example:
      >>> import bbvi
      >>> comparison = bbvi.compare_estimators(
      ...     lambda x, z: -0.5 * z**2,
      ...     bbvi.MeanField(bbvi.Normal()),
      ...     estimators=[bbvi.Reparameterization(2), bbvi.ScoreFunction(2)],
      ...     num_steps=100,
      ...     num_replicates=100,
      ...     progress=False,
      ... )
      >>> [axis.get_title() for axis in comparison.plot().axes[:2]]
      ['latents.loc', 'latents.log_scale']
    """
    blocks = [block for block in dict.fromkeys(row.block for row in comparison.rows)]
    blocks.remove(ALL)
    shown = blocks[:MAX_BLOCKS]
    columns = min(len(shown) + 1, 4)
    rows = -(-(len(shown) + 1) // columns)
    names = list(comparison.estimators)
    height = max(2.6 * rows, 2.6 + 0.18 * len(names)) + 0.22 * -(-len(names) // 4)
    figure = figure_class()(figsize=(3.4 * columns, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, block in zip(axes, shown, strict=False):
        _plot_block(axis, comparison, block)
    _plot_efficiency(axes[len(shown)], comparison)
    for axis in axes[len(shown) + 1 :]:
        figure.delaxes(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, columns), fontsize=8)
    if len(blocks) > len(shown):
        figure.suptitle(f"The first {len(shown)} of {len(blocks)} blocks", fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure


def _style(comparison: Comparison, name: str, rows: list[ComparisonRow]) -> dict[str, Any]:
    number = list(comparison.estimators).index(name)
    is_valid = all(row.is_valid for row in rows)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "markerfacecolor": None if is_valid else "none",
        "linestyle": "-" if is_valid else "--",
        "linewidth": 1,
        "markersize": 4.5,
    }


def _plot_block(axis: Any, comparison: Comparison, block: str) -> None:
    places = {point: position for position, point in enumerate(comparison.points)}
    for name in comparison.estimators:
        rows = [r for r in comparison.rows if (r.estimator, r.block) == (name, block)]
        drawn = [row for row in rows if row.trace > 0]  # no place for 0 on this axis
        style = _style(comparison, name, rows)
        axis.errorbar(
            [places[row.point] for row in drawn],
            [row.trace for row in drawn],
            [2 * row.trace_error for row in drawn],
            label=name + ("" if len(drawn) else " (no variance)"),
            **style,
        )
    axis.set_yscale("log")
    axis.set_xticks(list(places.values()), list(places))
    axis.set_title(block, fontsize=9)
    axis.set_ylabel("trace of covariance, ± 2 s.e.", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(visible=True, alpha=0.25)


def _plot_efficiency(axis: Any, comparison: Comparison) -> None:
    """Variance x time of all parameters at the last point, the best at the top."""
    last = list(comparison.points)[-1]
    rows = [row for row in comparison.rows if (row.point, row.block) == (last, ALL)]
    rows = sorted((r for r in rows if r.trace > 0), key=lambda row: -row.trace * row.seconds)
    for height, row in enumerate(rows):
        value = row.trace * row.seconds
        _, error = row.per_second
        style = _style(comparison, row.estimator, [row]) | {"linestyle": "none"}
        relative = error * value if math.isfinite(error) else 0.0
        axis.errorbar([value], [height], xerr=[2 * relative * value], **style)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [row.estimator for row in rows], fontsize=7)
    axis.set_title(f"all, {last}", fontsize=9)
    axis.set_xlabel("variance x seconds", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(visible=True, alpha=0.25)
