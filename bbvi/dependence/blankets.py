"""From one plain ``log_joint``: its additive terms, what each reads, and sums over blankets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core as jex_core

from bbvi._tree import named_leaves
from bbvi._types import Data, Latents, LogJoint, PyTree, Site
from bbvi.dependence import rules  # noqa: F401  registers the rules
from bbvi.dependence.analysis import Analysis, Value, constant
from bbvi.dependence.colouring import Colouring, colour
from bbvi.dependence.plan import Plan, joint_plan, plan
from bbvi.dependence.pointers import Pointer, Shape
from bbvi.dependence.programs import traced_once
from bbvi.dependence.split import additive_factors


@dataclasses.dataclass(frozen=True)
class Term:
    """One additive term of a log joint: an array of factor entries that all look alike.

    Attributes:
      label: the operation that made it, and where.
      shape: shape of the array.
      reads: for each latent leaf it reads, which entries each factor entry reads.
      plans: for each site it reads, the sum over the factor entries that read a block.
    """

    label: str
    shape: Shape
    reads: Mapping[str, tuple[Pointer, ...]]
    plans: Mapping[str, Plan]


@dataclasses.dataclass(frozen=True)
class FactorGraph:
    """Which additive terms of a log joint read which entries of which latent.

    Attributes:
      terms: the additive terms that read latents.
      latents: shapes of the latent leaves by name.
      sites: how the latents divide into independent blocks.
      unknown: how often each primitive without a rule was met, and taken to read everything.
    """

    terms: tuple[Term, ...]
    latents: Mapping[str, Shape]
    sites: tuple[Site, ...]
    unknown: Mapping[str, int]

    def block_shape(self, site: Site) -> Shape:
        """Shape of the independent blocks of a site."""
        if site.event_ndims is None:
            return ()
        shape = self.latents[site.leaves[0]]
        return shape[: len(shape) - site.event_ndims]

    def colouring(self, site: Site) -> Colouring | None:
        """Colours of the entries of a site of one leaf: no term reads two entries of a colour."""
        (name,) = site.leaves
        factors = [(term.shape, term.reads[name]) for term in self.terms if name in term.reads]
        return colour(self.latents[name], factors)

    def blanket_sums(self, arrays: Sequence[Array]) -> dict[str, Array]:
        """For each block of each site the sum of the factor entries that read it."""
        dtype = jnp.result_type(*arrays) if arrays else jnp.zeros(()).dtype
        sums = {site.name: jnp.zeros(self.block_shape(site), dtype) for site in self.sites}
        for term, array in zip(self.terms, arrays, strict=True):
            for name, summed in term.plans.items():
                sums[name] = sums[name] + summed.accumulate(array)
        return sums

    def factor_sums(self, values: Mapping[str, Array]) -> list[Array]:
        """For each factor entry the sum of a value per block over the blocks it reads.

        The transpose of ``blanket_sums``.
        """
        totals = []
        for term in self.terms:
            total = jnp.zeros(term.shape)
            for name, summed in term.plans.items():
                value = values[name]
                like = jax.ShapeDtypeStruct(term.shape, value.dtype)
                (part,) = jax.linear_transpose(summed.accumulate, like)(value)
                total = total + part
            totals.append(total)
        return totals


def entry_sites(z: Latents) -> tuple[Site, ...]:
    """Every entry of every latent leaf a block of its own."""
    return tuple(
        Site(name, (name,), "latent", reparameterized=False, event_ndims=0)
        for name in named_leaves(z, "latents")
    )


def factor_graph(
    log_joint: LogJoint,
    x: Data,
    z: Latents,
    *model_args: PyTree,
    sites: Sequence[Site] = (),
    is_coarse: bool = False,
) -> tuple[FactorGraph, Any]:
    """Analyse ``log_joint`` at data x, which may be traced.

    Index data in x that are known now are followed by value, and masks and zeros too. A graph of
    traced x holds tracers, and is valid inside that trace for all data of these shapes; a graph
    of known x is valid for that x only. A coarse graph has fewer and larger terms.

    Returns:
      The graph, and the program ``(x, z, *model_args) -> factor arrays`` as a closed jaxpr.
    """
    z_shapes = jax.eval_shape(lambda: z)
    sites = tuple(sites) or entry_sites(z_shapes)
    labels: list[str] = []

    def arrays(x: Data, z: Latents, *model_args: PyTree) -> list[Array]:
        factors = additive_factors(log_joint, x, z, *model_args, is_coarse=is_coarse)
        labels[:] = factors.labels
        return factors.arrays

    closed = jax.make_jaxpr(arrays)(x, z_shapes, *model_args)
    leaves = named_leaves(z_shapes, "latents")
    analysis = Analysis([leaf.shape for leaf in leaves.values()])
    inputs = [constant(leaf) for leaf in jax.tree.leaves(x)]
    inputs += [analysis.latent(k, leaf.dtype) for k, leaf in enumerate(leaves.values())]
    # Learned parameters change from step to step: never part of the structure.
    inputs += [Value(np.shape(leaf)) for leaf in jax.tree.leaves(model_args)]
    outputs = analysis.run(closed.jaxpr, closed.consts, inputs)
    terms = [
        _term(label, out, sites, list(leaves), analysis.leaf_shapes)
        for label, out in zip(labels, outputs, strict=True)
    ]
    shapes = dict(zip(leaves, analysis.leaf_shapes, strict=True))
    return FactorGraph(tuple(terms), shapes, sites, dict(analysis.unknown)), closed


def _term(
    label: str, out: Value, sites: Sequence[Site], names: list[str], shapes: list[Shape]
) -> Term:
    by_leaf: dict[str, list[Pointer]] = {}
    for p in out.reads:
        by_leaf.setdefault(names[p.leaf], []).append(p)
    plans = {}
    for site in sites:
        mine = {names.index(leaf): by_leaf[leaf] for leaf in site.leaves if leaf in by_leaf}
        if not mine:
            continue
        if site.event_ndims is None:
            plans[site.name] = joint_plan(mine, out.shape)
        else:
            ((leaf, pointers),) = mine.items()
            plans[site.name] = plan(pointers, out.shape, shapes[leaf], site.event_ndims)
    return Term(label, out.shape, {n: tuple(p) for n, p in by_leaf.items()}, plans)


Evaluate = Callable[[Latents], list[Array]]
Build = Callable[..., PyTree]


def local_program(
    build: Build,
    log_joint: LogJoint,
    sites: tuple[Site, ...],
    x: Data,
    z: Latents,
    model_args: tuple[PyTree, ...],
    *extra: PyTree,
    is_coarse: bool = False,
) -> PyTree:
    """Evaluate ``build(graph, evaluate, z, *extra)``; the analysis runs once per shape.

    ``evaluate(z)`` gives the factor arrays at any latents. The analysis and all that ``build``
    makes of it become one program of ``(x, z, model_args, extra)``, kept under the function, the
    sites and the shapes. Data are traced in it, so that it holds for any data of these shapes;
    only constants that ``log_joint`` closes over are used by value.
    """

    def run(x: Data, z: Latents, model_args: tuple[PyTree, ...], extra: PyTree) -> PyTree:
        graph, factors = factor_graph(
            log_joint, x, z, *model_args, sites=sites, is_coarse=is_coarse
        )

        def evaluate(z: Latents) -> list[Array]:
            return jex_core.jaxpr_as_fun(factors)(*jax.tree.leaves((x, z, model_args)))

        return build(graph, evaluate, z, *extra)

    return traced_once((build, log_joint, sites, is_coarse), run, x, z, model_args, extra)


def _sums(graph: FactorGraph, evaluate: Evaluate, z: Latents) -> tuple[Array, dict[str, Array]]:
    arrays = evaluate(z)
    log_p = sum((jnp.sum(array) for array in arrays), jnp.zeros(()))
    return log_p, graph.blanket_sums(arrays)


def blanket_sums(
    log_joint: LogJoint, sites: tuple[Site, ...], x: Data, z: Latents, *model_args: PyTree
) -> tuple[Array, dict[str, Array]]:
    r"""The log joint of one draw, and for each block the sum of the terms that read it.

    For block i of a site :math:`R_i = \sum_{j : i \in D(j)} F_j`, with the additive entries
    :math:`\sum_j F_j = \log p(x, z)` and D(j) the blocks that entry j reads. Changing block i
    alone changes :math:`R_i` exactly as it changes the log joint.

    Args:
      log_joint: ``(x, z) -> []`` or ``(x, z, theta) -> []``.
      sites: how the latents divide into independent blocks, such as ``guide.sites()``.
      x: data.
      z: one draw of the latents.
      *model_args: theta, where there is one.

    Returns:
      log p, a scalar, and R by site, each of the site's block shape.
    """
    return local_program(_sums, log_joint, sites, x, z, model_args)
