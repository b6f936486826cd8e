"""The sums over Markov blankets at every value of every entry of a discrete site."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._tree import abstract, named_leaves, with_leaf
from bbvi._types import Data, Latents, LogJoint, PyTree, Site
from bbvi.dependence.blankets import Evaluate, FactorGraph, factor_graph, local_program

MAX_KEPT = 64


@dataclasses.dataclass(frozen=True)
class _LocalValues:
    """``R_i`` with z_i replaced by each of its values, for all entries i of a discrete site."""

    site: Site

    def __call__(self, graph: FactorGraph, evaluate: Evaluate, z: Latents) -> Array:
        colouring = graph.colouring(self.site)
        if colouring is None:
            raise ValueError(
                f"site '{self.site.name}' cannot be coloured: which of its entries share a term "
                "depends on data. Use ScoreFunction for it."
            )
        colours = jnp.asarray(colouring.colours)
        (name,) = self.site.leaves
        leaf = named_leaves(z, "latents")[name]

        def at(value: Array, colour: Array) -> Array:
            flipped = jnp.where(colours == colour, value.astype(leaf.dtype), leaf)
            sums = graph.blanket_sums(evaluate(with_leaf(z, "latents", name, flipped)))
            return jnp.where(colours == colour, sums[self.site.name], 0)

        assert self.site.num_values is not None
        values = jnp.arange(self.site.num_values)

        def add(total: Array, colour: Array) -> tuple[Array, None]:
            return total + jax.vmap(lambda value: at(value, colour))(values), None

        first = jax.vmap(lambda value: at(value, jnp.zeros((), int)))(values)
        if colouring.num_colours == 1:
            return first
        return jax.lax.scan(add, first, jnp.arange(1, colouring.num_colours))[0]


def local_values(
    log_joint: LogJoint, sites: tuple[Site, ...], site: Site, x: Data, z: Latents, *args: PyTree
) -> Array:
    """Blanket sums ``[K, *shape]`` of a discrete site with each entry set to each of its K values.

    Differences along the first axis are those of the log joint. Entries that share no term are
    changed together, so the cost is K values of ``log_joint`` per colour, not per entry.

    Raises:
      ValueError: which entries share a term depends on data.
    """
    return local_program(_LocalValues(site), log_joint, sites, x, z, args)


def num_colours(
    log_joint: LogJoint, sites: tuple[Site, ...], x: Data, z: Latents, *args: PyTree
) -> dict[str, int | None]:
    """For each discrete site how many colours ``local_values`` needs; None where it is refused."""
    floating = jnp.zeros(()).dtype  # float64 when x64 is on: another program
    return _num_colours(log_joint, sites, abstract((x, z, args)), floating)


@functools.lru_cache(maxsize=MAX_KEPT)
def _num_colours(
    log_joint: LogJoint, sites: tuple[Site, ...], structure: Any, floating: Any
) -> dict[str, int | None]:
    found: dict[str, int | None] = {}

    def run(x: Data, z: Latents, args: tuple[PyTree, ...]) -> tuple[()]:
        graph, _ = factor_graph(log_joint, x, z, *args, sites=sites)
        for site in sites:
            if site.num_values is not None and site.event_ndims == 0:
                colouring = graph.colouring(site)
                found[site.name] = None if colouring is None else colouring.num_colours
        return ()

    jax.make_jaxpr(run)(*jax.tree.unflatten(*structure))
    return found
