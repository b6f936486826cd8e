"""Pictures of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from bbvi.dependence.explain import Explanation
from bbvi.dependence.findings import TermReads
from bbvi.plotting._figure import figure_class

MAX_TERMS = 60
MAX_LETTERS = 70
# Of the factor graph, in inches: a row, a letter of a label at the font size, the room for edges.
ROW, LETTER, EDGES, MARGIN = 0.42, 0.078, 3.0, 0.25
FONT_SIZE = 9


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
    figure = figure_class()(figsize=(width, height))
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
