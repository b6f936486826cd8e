"""Pictures of a fit."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bbvi._tree import entry_name, named_leaves
from bbvi.infer.result import FitResult
from bbvi.plotting._figure import figure_class

MAX_MARGINALS = 11
NUM_DRAWS = 4000


def plot_result(result: FitResult, path: str | None = None) -> Any:
    """ELBO trace with its uncertainty, and posterior marginals.

    Args:
      result: what ``fit`` returned.
      path: where to write the picture; nowhere by default.

    Returns:
      The matplotlib figure.

    Raises:
      ImportError: matplotlib is not installed.

    Example:
      >>> import bbvi
      >>> from bbvi.plotting import plot_result
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal()})
      >>> result = bbvi.fit(lambda x, z: -0.5 * z["mu"] ** 2, guide, num_steps=200, progress=False)
      >>> len(plot_result(result).axes)
      2
    """
    new_figure = figure_class()
    draws = result.sample(jax.random.key(0), NUM_DRAWS)
    marginals = list(_marginals(draws).items())
    shown = marginals[:MAX_MARGINALS]
    columns = 4 if len(shown) > 2 else len(shown) + 1
    rows = -(-(len(shown) + 1) // columns)
    figure = new_figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    _plot_elbo(axes[0], result.history.loss)
    for axis, (name, values) in zip(axes[1:], shown, strict=False):
        _plot_marginal(axis, name, values)
    for axis in axes[len(shown) + 1 :]:
        figure.delaxes(axis)
    title = f"{result.status}, {int(result.state.step)} steps"
    if len(marginals) > len(shown):
        title += f"; the first {len(shown)} of {len(marginals)} marginals"
    figure.suptitle(title, fontsize=10)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _marginals(draws: Any) -> dict[str, np.ndarray]:
    """Draws of every scalar by its name; small latents first, as the most often asked for."""
    scalars = {}
    leaves = named_leaves(draws, "latents")
    for name, leaf in sorted(leaves.items(), key=lambda item: item[1].size):
        values = np.asarray(leaf)
        for index in np.ndindex(values.shape[1:]):
            scalars[entry_name(name, index)] = values[(slice(None), *index)]
    return scalars


def _plot_elbo(axis: Any, losses: np.ndarray) -> None:
    """Mean ELBO of windows of steps with a band of two standard errors."""
    losses = losses[np.isfinite(losses)]
    windows = [w for w in np.array_split(losses, min(100, max(1, len(losses) // 10))) if len(w)]
    if not windows:
        return
    centre = np.cumsum([len(w) for w in windows]) - [len(w) / 2 for w in windows]
    mean = np.array([-w.mean() for w in windows])
    error = np.array([w.std() / np.sqrt(len(w)) for w in windows])
    axis.plot(centre, mean, lw=1, color="C0")
    axis.fill_between(centre, mean - 2 * error, mean + 2 * error, alpha=0.3, color="C0", lw=0)
    # The first steps can be nats by the thousand away: show the range of most of the run.
    tail = mean[len(mean) // 10 :]
    margin = 0.05 * np.ptp(tail) + 4 * error[-1] + 1e-6
    axis.set_ylim(tail.min() - margin, tail.max() + margin)
    axis.set_xlabel("step")
    axis.set_title("ELBO (nats), ± 2 s.e.", fontsize=9)


def _plot_marginal(axis: Any, name: str, values: np.ndarray) -> None:
    if np.issubdtype(values.dtype, np.integer):
        levels, counts = np.unique(values, return_counts=True)
        axis.bar(levels, counts / counts.sum(), color="C1")
        axis.set_xticks(levels[:20])
    else:
        low, high = np.quantile(values, [0.002, 0.998])
        axis.hist(values, bins=40, range=(low, high), density=True, color="C1", alpha=0.8)
    axis.set_yticks([])
    axis.set_title(name, fontsize=9)
