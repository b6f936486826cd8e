"""Pictures of a fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bbvi._tree import entry_name, named_leaves, shapes
from bbvi._types import Latents
from bbvi.diagnostics import SmoothedWeights, smoothed_weights
from bbvi.infer.draws import evaluated_draws
from bbvi.infer.result import FitResult
from bbvi.plotting._figure import COLOURS, figure_class

MAX_MARGINALS = 11
MAX_TRACES, MAX_LINES, MAX_POINTS = 3, len(COLOURS), 1000
NUM_DRAWS = 4000
POSTERIOR, PRIOR = "C1", "0.35"


def plot_result(result: FitResult, path: str | None = None, *, prior: Latents | None = None) -> Any:
    """ELBO, what was traced, importance weights with their k-hat, and posterior marginals.

    The largest weights p / q of the draws should follow their smooth tail and not be many times
    their mean: they are the draws for which the guide has too little mass. After a fit with
    minibatches they are left out, since a draw has none for all data.

    Args:
      result: what ``fit`` returned.
      path: where to write the picture; nowhere by default.
      prior: draws from the prior, leaves ``[S, ...]`` like those of the latents; they are drawn as
        outlines, in the range of the posterior.

    Returns:
      The matplotlib figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: ``prior`` is not like draws of the latents.

    Example:
      >>> import bbvi
      >>> from bbvi.plotting import plot_result
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal()})
      >>> result = bbvi.fit(
      ...     lambda x, z: -0.5 * z["mu"] ** 2,
      ...     guide,
      ...     num_steps=200,
      ...     progress=False,
      ...     trace_fn=lambda info: {"gradient norm": info.gradient_norm},
      ... )
      >>> [axis.get_title() for axis in plot_result(result).axes]
      ['ELBO (nats), ± 2 s.e.', 'gradient norm', 'largest importance weights', 'mu']
    """
    new_figure = figure_class()
    draws, weights = _draws_and_weights(result)
    before = {} if prior is None else _marginals(_checked(prior, draws))
    marginals = list(_marginals(draws).items())
    shown = marginals[:MAX_MARGINALS]
    traces = list(named_leaves(result.history.trace, "traced").items())
    panels: list[tuple[Callable[..., None], tuple[Any, ...]]]
    panels = [(_plot_elbo, (result.history.loss,))]
    panels += [(_plot_trace, trace) for trace in traces[:MAX_TRACES]]
    if weights is not None:
        panels.append((_plot_weights, weights))
    panels += [(_plot_marginal, (name, values, before.get(name))) for name, values in shown]

    columns = 4 if len(panels) > 3 else len(panels)
    rows = -(-len(panels) // columns)
    figure = new_figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (plot, arguments) in zip(axes, panels, strict=False):
        plot(axis, *arguments)
        axis.tick_params(labelsize=8)
    if before:
        handles, labels = axes[len(panels) - 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    for axis in axes[len(panels) :]:
        figure.delaxes(axis)
    title = f"{result.status}, {int(result.state.step)} steps"
    if weights is not None and math.isfinite(weights[1].khat):
        title += f", k-hat {weights[1].khat:.2f}"
    for kind, drawn, count in (
        ("traces", MAX_TRACES, len(traces)),
        ("marginals", MAX_MARGINALS, len(marginals)),
    ):
        title += f"; the first {drawn} of {count} {kind}" if count > drawn else ""
    figure.suptitle(title, fontsize=10)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _draws_and_weights(
    result: FitResult,
) -> tuple[Latents, tuple[np.ndarray, SmoothedWeights] | None]:
    """Draws, and where each has a weight for all data, these as they are and smoothed."""
    key = jax.random.key(0)
    if result.batching is not None:
        return result.sample(key, NUM_DRAWS), None
    z, log_p, log_q = evaluated_draws(result.problem, key, result.params, result.x, NUM_DRAWS)
    logs = np.asarray(log_p - log_q, np.float64)
    if not np.isfinite(logs).all():
        return z, None
    weights = np.exp(logs - logs.max())
    return z, (weights / weights.sum(), smoothed_weights(log_p - log_q))


def _checked(prior: Latents, draws: Latents) -> Latents:
    """The draws from the prior, or an error if they are not of the latents."""

    def form(tree: Latents) -> Any:
        return jax.tree.map(lambda leaf: np.shape(leaf)[1:], tree), jax.tree.structure(tree)

    if form(prior) != form(draws):
        raise ValueError(
            f"prior must hold draws of the latents, {shapes(draws, 'latents')} with any number in "
            f"place of {NUM_DRAWS}, got {shapes(prior, 'latents')}."
        )
    return prior


def _marginals(draws: Any) -> dict[str, np.ndarray]:
    """Draws of every scalar by its name; small latents first, as the most often asked for."""
    scalars = {}
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(draws, "latents").items()}
    for name, values in sorted(leaves.items(), key=lambda item: item[1][0].size):
        for index in np.ndindex(values.shape[1:]):
            scalars[entry_name(name, index)] = values[(slice(None), *index)]
    return scalars


def _plot_elbo(axis: Any, losses: np.ndarray) -> None:
    """Mean ELBO of windows of steps with a band of two standard errors."""
    axis.set_title("ELBO (nats), ± 2 s.e.", fontsize=9)
    axis.set_xlabel("step", fontsize=8)
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


def _plot_trace(axis: Any, name: str, values: np.ndarray) -> None:
    """What ``trace_fn`` recorded along the run, a line for each of the first entries."""
    steps = np.arange(0, len(values), max(1, len(values) // MAX_POINTS))
    lines = np.asarray(values, np.float64).reshape(len(values), -1)
    shown = lines[steps, :MAX_LINES]
    axis.set_prop_cycle(color=COLOURS)
    axis.plot(steps, shown, lw=0.8)
    finite = shown[np.isfinite(shown)]
    if finite.size and 0 < 100 * finite.min() < finite.max():
        axis.set_yscale("log")
    more = f" (the first {MAX_LINES} of {lines.shape[1]})" if lines.shape[1] > MAX_LINES else ""
    axis.set_title(name + more, fontsize=9)
    axis.set_xlabel("step", fontsize=8)


def _plot_weights(axis: Any, weights: np.ndarray, smoothed: SmoothedWeights) -> None:
    """The largest weights by rank, as multiples of their mean, and the tail fitted to them."""
    length = int(min(0.2 * len(weights), 3 * math.sqrt(len(weights))))  # what k-hat is fitted to
    ranks = 1 + np.arange(length)
    for values, style in (
        (weights, {"ls": "none", "marker": "o", "ms": 2, "color": "C0", "label": "as drawn"}),
        (smoothed.probabilities, {"lw": 1, "color": "black", "label": "smoothed"}),
    ):
        axis.plot(ranks, len(weights) * np.sort(values)[::-1][:length], **style)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.legend(fontsize=7, frameon=False)
    axis.set_title("largest importance weights", fontsize=9)
    axis.set_xlabel("rank", fontsize=8)
    axis.set_ylabel("multiple of their mean", fontsize=8)


def _plot_marginal(axis: Any, name: str, values: np.ndarray, prior: np.ndarray | None) -> None:
    if np.issubdtype(values.dtype, np.integer):
        levels, counts = np.unique(values, return_counts=True)
        axis.bar(levels, counts / counts.sum(), color=POSTERIOR, label="posterior")
        if prior is not None:
            levels, counts = np.unique(prior, return_counts=True)
            style = {"fill": False, "edgecolor": PRIOR, "lw": 1.2, "label": "prior"}
            axis.bar(levels, counts / counts.sum(), **style)
        axis.set_xticks(levels[:20])
        axis.set_ylabel("probability", fontsize=8)
    else:
        low, high = np.quantile(values, [0.002, 0.998])
        edges = np.linspace(low, high, 41)
        style = {"color": POSTERIOR, "alpha": 0.8, "label": "posterior"}
        axis.hist(values, edges, density=True, **style)
        if prior is not None:
            # Of all its draws, of which few may fall where the posterior is.
            density = np.histogram(prior, edges)[0] / (len(prior) * np.diff(edges))
            axis.stairs(density, edges, color=PRIOR, lw=1.2, label="prior")
        axis.set_ylabel("density", fontsize=8)
    axis.set_yticks([])
    axis.set_title(name, fontsize=9)
