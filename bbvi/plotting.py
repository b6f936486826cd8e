"""Pictures of a fit and of a model; needs matplotlib (the ``plot`` extra)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bbvi._tree import named_leaves
from bbvi.dependence.explain import Explanation
from bbvi.dependence.findings import TermReads
from bbvi.infer.result import FitResult

MAX_MARGINALS = 11
NUM_DRAWS = 4000
MAX_TERMS = 60
MAX_LETTERS = 70
# Of the factor graph, in inches: a row, a letter of a label at the font size, the room for edges.
ROW, LETTER, EDGES, MARGIN = 0.42, 0.078, 3.0, 0.25
FONT_SIZE = 9


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
    new_figure = _figure_class()
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


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'bbvi[plot]'.") from error
    return Figure


def _marginals(draws: Any) -> dict[str, np.ndarray]:
    """Draws of every scalar by its name; small latents first, as the most often asked for."""
    scalars = {}
    leaves = named_leaves(draws, "latents")
    for name, leaf in sorted(leaves.items(), key=lambda item: item[1].size):
        values = np.asarray(leaf)
        for index in np.ndindex(values.shape[1:]):
            label = name + ("[" + ",".join(map(str, index)) + "]" if index else "")
            scalars[label] = values[(slice(None), *index)]
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


def plot_factor_graph(explanation: Explanation, path: str | None = None) -> Any:
    """Latents, terms, and which reads which: the factor graph of a log joint.

    A circle is a latent, a square a term, each with the shape of its array, and with what the
    entry i, j, ... of the term reads. A thick line means that it reads the whole latent.

    Args:
      explanation: what ``bbvi.explain`` returned.
      path: where to write the picture; nowhere by default.

    Returns:
      The matplotlib figure.

    Raises:
      ImportError: matplotlib is not installed.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return -jnp.sum(z["w"] ** 2) - jnp.sum((x - z["w"].sum()) ** 2)
      >>> figure = bbvi.explain(log_joint, jnp.ones(3), {"w": jnp.ones(2)}).plot()
      >>> sorted(text.get_text() for text in figure.axes[0].texts)[-1]
      'w [2]'

    References:
      Kschischang, Frey and Loeliger (2001), Factor Graphs and the Sum-Product Algorithm.
    """
    latents = {latent.name: f"{latent.name} {list(latent.shape)}" for latent in explanation.latents}
    terms = explanation.terms[:MAX_TERMS]
    rank = {name: position / len(latents) for position, name in enumerate(latents)}
    # Each term at the height of what it reads, so that few lines cross.
    terms = tuple(sorted(terms, key=lambda t: np.mean([rank[read.latent] for read in t.reads])))
    labels = [_term_text(term) for term in terms]

    left = MARGIN + LETTER * max(map(len, latents.values()), default=0)
    right = left + EDGES
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    width = right + LETTER * longest + 2 * MARGIN
    height = ROW * (max(len(latents), len(terms)) + 2)
    figure = _figure_class()(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    heights = dict(zip(latents, _spread(len(latents), height), strict=True))
    for term, label, y in zip(terms, labels, _spread(len(terms), height), strict=True):
        _plot_reads(axis, term, (left + MARGIN, right), y, heights)
        axis.plot(right, y, "s", color="C0", markersize=6, zorder=3)
        axis.text(right + MARGIN, y, label, va="center", fontsize=FONT_SIZE)
    for name, y in heights.items():
        axis.plot(left + MARGIN, y, "o", color="C1", markersize=9, zorder=3)
        axis.text(left, y, latents[name], va="center", ha="right", fontsize=FONT_SIZE)
    lines = "thick: each entry of the term reads all of the latent"
    if len(terms) < len(explanation.terms):
        lines += f"; the first {len(terms)} of {len(explanation.terms)} terms"
    axis.text(MARGIN, ROW / 2, lines, va="center", fontsize=FONT_SIZE - 1, color="0.4")
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _term_text(term: TermReads) -> str:
    """A term, and below it what it reads, both cut short where they are long."""
    reads = ", ".join(read.latent + read.entries for read in term.reads)
    lines = f"{list(term.shape)} {term.label}", f"reads {reads}"
    return "\n".join(
        line if len(line) <= MAX_LETTERS else line[: MAX_LETTERS - 1] + "…" for line in lines
    )


def _spread(count: int, height: float) -> list[float]:
    """Heights of rows, from above, over a legend at the bottom."""
    return [height - (height - ROW) * (k + 0.5) / count for k in range(count)]


def _plot_reads(
    axis: Any, term: TermReads, ends: tuple[float, float], y: float, heights: dict[str, float]
) -> None:
    for read in term.reads:
        style = {"color": "C3", "lw": 2.2} if read.kind == "dense" else {"color": "0.6", "lw": 0.9}
        axis.plot(ends, (heights[read.latent], y), zorder=2 if read.kind == "dense" else 1, **style)
