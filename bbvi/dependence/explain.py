"""What the analysis of a log joint found, as tables, advice and a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from bbvi._log_joint import trace_log_joint
from bbvi._tree import as_arrays, is_floating
from bbvi._types import Data, Latents, LogJoint, PyTree
from bbvi.dependence.advice import advise
from bbvi.dependence.describe import axis_name
from bbvi.dependence.draws import draw_and_sites
from bbvi.dependence.findings import LatentBlanket, Model, TermReads, find

HEADING = (
    "This is what fit uses. It traces x: index data are followed whatever their values, zeros and\n"
    "masks in x are not used; constants that log_joint closes over are known."
)


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """The factor graph of a log joint; prints as a table of terms, one of latents, and advice.

    Attributes:
      terms: the additive terms, and which entries of which latents each of their entries reads.
      latents: the latents, and how large the Markov blankets of their entries are.
      advice: what to change for smaller blankets, and what to know; full sentences.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> found = bbvi.explain(lambda x, z: -jnp.sum((x - z) ** 2), jnp.ones(3), jnp.ones(3))
      >>> found.latents[0].max_blanket
      0
    """

    terms: tuple[TermReads, ...]
    latents: tuple[LatentBlanket, ...]
    advice: tuple[str, ...]

    def plot(self, path: str | None = None) -> Any:
        """Draw latents, terms and who reads whom; returns the matplotlib figure.

        Args:
          path: where to write the picture; nowhere by default.
        """
        from bbvi.plotting import plot_factor_graph

        return plot_factor_graph(self, path)

    def __repr__(self) -> str:
        num_entries = sum(latent.size for latent in self.latents)
        num_factors = sum(math.prod(term.shape) for term in self.terms)
        lines = [
            f"log_joint: {len(self.terms)} terms with {num_factors} entries, "
            f"{len(self.latents)} latent leaves with {num_entries} entries",
            HEADING,
            "",
            *_table(("term", "shape", "each entry reads", "how many", ""), self._term_rows()),
            "",
            *_table(
                ("latent", "shape", "shares terms with (mean, max)", "read by", "colours"),
                self._latent_rows(num_entries - 1),
            ),
        ]
        if self.advice:
            lines += ["", *(f"- {sentence}" for sentence in self.advice)]
        return "\n".join(lines)

    def _term_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for term in self.terms:
            axes = [f"{axis_name(k)}={n}" for k, n in enumerate(term.shape)]
            head = (term.label, f"[{', '.join(axes)}]")
            for read in term.reads:
                kind = "" if read.kind == "scalar" else read.kind
                rows.append((*head, read.latent + read.entries, f"{read.count:.4g}", kind))
                head = ("", "")
        return rows

    def _latent_rows(self, num_others: int) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for latent in self.latents:
            blanket = f"{latent.mean_blanket:.4g}, {latent.max_blanket} of {num_others} others"
            if latent.num_measured < latent.size:
                blanket += f", measured at {latent.num_measured}"
            colours = "" if is_floating(latent) else str(latent.num_colours or "data decide")
            shape = f"{latent.dtype}{list(latent.shape)}"
            rows.append((latent.name, shape, blanket, f"{latent.share:.2%} of entries", colours))
        return rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    columns = zip(header, *rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows)]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def explain(log_joint: LogJoint, x: Data, z: Latents, *model_args: PyTree) -> Explanation:
    r"""Which additive terms of a log joint read which entries of which latent.

    ``fit`` Rao-Blackwellizes score-function gradients by this graph: the learning signal of
    latent entry i is the sum of the terms that read it, :math:`R_i = \sum_{j : i \in D(j)} F_j`.
    The fewer entries share a term, the smaller its variance. What is shown is what ``fit`` finds,
    with x traced; where the values of x would make blankets smaller, the advice says so.

    An entry of a term is written with indices i, j, k of the term's array: it reads ``a[i-1]``,
    the latent's entry before; ``a[idx(i)]``, the one that an index array names; ``a[:]``, all of
    them. A read is "dense" if each entry of the term reads the whole latent, else "aligned".

    Args:
      log_joint: ``(x, z) -> []`` or ``(x, z, theta) -> []``.
      x: data.
      z: one draw of the latents, or its shapes (``jax.ShapeDtypeStruct``), or a guide.
      *model_args: theta, where there is one.

    Returns:
      Terms, latents and advice; print it, or call its ``plot``.

    Raises:
      ValueError: ``log_joint`` cannot be traced, or does not return one scalar.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return -jnp.sum(z["a"] ** 2) - jnp.sum((x["y"] - z["a"][x["group"]]) ** 2)
      >>> x = {"y": jnp.arange(4.0), "group": jnp.array([0, 0, 1, 1])}
      >>> guide = bbvi.MeanField({"a": bbvi.Normal((2,))})
      >>> [read.entries for term in bbvi.explain(log_joint, x, guide).terms for read in term.reads]
      ['[i]', '[idx(i)]']

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference, section 3.
    """
    x = as_arrays(x)
    shapes = jax.eval_shape(lambda: draw_and_sites(x, z)[0])
    trace_log_joint(log_joint, x, shapes, *model_args)
    terms, latents, unused = find(Model(log_joint, x, shapes, model_args))
    return Explanation(tuple(terms), tuple(latents), tuple(advise(terms, latents, unused)))
