"""Connected components: parts of a model that share no additive term.

Latents of different components are independent under the posterior. So each component has its own
learning signal, its own importance weights and its own evidence, which is a product over them:
log p(x) = sum_c log p_c(x). A batch of data with a latent each is the common case.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bbvi._tree import abstract
from bbvi._types import Data, Latents, LogJoint, PyTree, Site
from bbvi.dependence.blankets import Evaluate, FactorGraph, Term, factor_graph, local_program
from bbvi.dependence.patterns import normal_form, read_axes
from bbvi.dependence.pointers import Pointer, Shape, is_concrete

MAX_KEPT = 64
# Beyond so many (factor entry, latent entry) pairs, all is taken to be one component.
MAX_PAIRS = 8_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class _Labels:
    """The component of each entry of an array, constant along the axes where ``labels`` has 1."""

    labels: np.ndarray
    shape: Shape
    num_components: int

    def total(self, values: Array) -> Array:
        """Sums ``[C]`` over the entries of each component; label -1 belongs to none."""
        axes = tuple(a for a, n in enumerate(self.labels.shape) if n == 1)
        flat = jnp.sum(values, axis=axes).reshape(-1)
        if self._is_range:
            return flat
        return jax.ops.segment_sum(flat, self.labels.reshape(-1), self.num_components)

    def spread(self, values: Array) -> Array:
        """Each entry's component's value, from ``[C]``."""
        flat = self.labels.reshape(-1)
        spread = (values if self._is_range else values[flat]).reshape(self.labels.shape)
        return jnp.broadcast_to(spread, self.shape)

    @property
    def _is_range(self) -> bool:
        return np.array_equal(self.labels.reshape(-1), np.arange(self.num_components))


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """How the blocks of a guide's sites, and the terms of a log joint, fall into components.

    Attributes:
      num_components: C.
      sites: labels of the blocks of each site.
      terms: labels of the entries of each term's array; None for one that reads no latent.
    """

    num_components: int
    sites: Mapping[str, _Labels]
    terms: tuple[_Labels | None, ...]

    def total(self, values: Mapping[str, Array]) -> Array:
        """Sums ``[C]`` of one value per block, ``{site: [*blocks]}``."""
        return sum((self.sites[n].total(v) for n, v in values.items()), jnp.zeros(()))

    def spread(self, values: Array) -> dict[str, Array]:
        """For each block its component's value, ``{site: [*blocks]}`` from ``[C]``."""
        return {name: labels.spread(values) for name, labels in self.sites.items()}

    def is_same(self, other: Components) -> bool:
        """Whether both divide the latents alike."""
        return self.num_components == other.num_components and all(
            np.array_equal(np.broadcast_to(a.labels, a.shape), np.broadcast_to(b.labels, b.shape))
            for a, b in ((labels, other.sites[name]) for name, labels in self.sites.items())
        )

    def sum_terms(self, arrays: Sequence[Array]) -> Array:
        """The log joint by component ``[C]``; what reads no latent is shared out evenly."""
        sums, rest = jnp.zeros(self.num_components), []
        for labels, array in zip(self.terms, arrays, strict=True):
            if labels is None:
                rest.append(jnp.sum(array))
            else:
                sums += labels.total(array)
                if (labels.labels < 0).any():
                    rest.append(jnp.sum(jnp.where(labels.labels < 0, array, 0)))
        return sums + sum(rest) / self.num_components if rest else sums


def find_components(
    log_joint: LogJoint, sites: tuple[Site, ...], x: Data, z: Latents, *args: PyTree
) -> Components:
    """The components of a log joint, from shapes alone.

    Structure that depends on the values of traced data is taken to connect everything, which is
    always right.

    Args:
      log_joint: ``(x, z) -> []`` or ``(x, z, theta) -> []``.
      sites: how the latents divide into independent blocks.
      x: data, or shapes.
      z: one draw, or its shapes.
      *args: theta, where there is one.

    Example:
      >>> import jax.numpy as jnp
      >>> from bbvi.dependence.blankets import entry_sites
      >>> z = jnp.zeros((5, 2))
      >>> log_joint = lambda x, z: -jnp.sum((x - z.sum(1)) ** 2)
      >>> find_components(log_joint, entry_sites(z), jnp.zeros(5), z).num_components
      5
    """
    return _find(log_joint, sites, abstract((x, z, args)), _floating(), is_coarse=False)


@functools.lru_cache(maxsize=MAX_KEPT)
def _find(
    log_joint: LogJoint, sites: tuple[Site, ...], structure: Any, floating: Any, *, is_coarse: bool
) -> Components:
    found: list[Components] = []

    def run(x: Data, z: Latents, args: tuple[PyTree, ...]) -> tuple[()]:
        graph, _ = factor_graph(log_joint, x, z, *args, sites=sites, is_coarse=is_coarse)
        found.append(of_graph(graph))
        return ()

    jax.make_jaxpr(run)(*jax.tree.unflatten(*structure))
    return found[0]


def component_sums(
    log_joint: LogJoint, sites: tuple[Site, ...], x: Data, z: Latents, *args: PyTree
) -> Array:
    """The log joint of one draw by component, ``[C]``; its sum is the log joint."""
    find = functools.partial(_find, log_joint, sites, abstract((x, z, args)), _floating())
    # Terms as large as they can be without joining two components: the fewest operations.
    is_coarse = find(is_coarse=True).is_same(find(is_coarse=False))
    return local_program(_component_sums, log_joint, sites, x, z, args, is_coarse=is_coarse)


def _floating() -> Any:
    return jnp.zeros(()).dtype  # float64 when x64 is on: another program


def _component_sums(graph: FactorGraph, evaluate: Evaluate, z: Latents) -> Array:
    return of_graph(graph).sum_terms(evaluate(z))


def local_sums(
    log_joint: LogJoint, sites: tuple[Site, ...], x: Data, z: Latents, *args: PyTree
) -> tuple[Array, dict[str, Array]]:
    """``component_sums`` and ``blanket_sums`` from one evaluation."""
    return local_program(_local_sums, log_joint, sites, x, z, args)


def _local_sums(
    graph: FactorGraph, evaluate: Evaluate, z: Latents
) -> tuple[Array, dict[str, Array]]:
    arrays = evaluate(z)
    return of_graph(graph).sum_terms(arrays), graph.blanket_sums(arrays)


def of_graph(graph: FactorGraph) -> Components:
    """Components of a factor graph; one for everything where they cannot be told apart."""
    return _Search(graph).components() or _one(graph)


def _one(graph: FactorGraph) -> Components:
    """Everything in one component."""

    def zeros(shape: Shape) -> _Labels:
        return _Labels(np.zeros((1,) * len(shape), int), shape, 1)

    sites = {site.name: zeros(graph.block_shape(site)) for site in graph.sites}
    return Components(1, sites, tuple(zeros(t.shape) if t.reads else None for t in graph.terms))


class _Search:
    """Nodes are the blocks of the sites, without axes that some term reads whole."""

    def __init__(self, graph: FactorGraph):
        self.graph = graph
        self.site_of = {leaf: site for site in graph.sites for leaf in site.leaves}
        self.kept: dict[str, list[int]] = {}
        self.first: dict[str, int] = {}
        self.num_nodes = 0
        for site in graph.sites:
            shape = graph.block_shape(site)
            whole = {
                axis
                for term in graph.terms
                for leaf, p in self._pointers(term)
                if self.site_of[leaf] is site
                for axis, index in enumerate(p.index)
                if index is None and shape[axis] > 1
            }
            self.kept[site.name] = [
                axis for axis, n in enumerate(shape) if n > 1 and axis not in whole
            ]
            self.first[site.name] = self.num_nodes
            self.num_nodes += math.prod(self._node_shape(site))

    def _node_shape(self, site: Site) -> Shape:
        shape = self.graph.block_shape(site)
        return tuple(n if axis in self.kept[site.name] else 1 for axis, n in enumerate(shape))

    def _pointers(self, term: Term) -> list[tuple[str, Pointer]]:
        """What a term reads, leaf by leaf, without the axes inside blocks."""
        return [
            (leaf, p)
            for leaf, pointers in term.reads.items()
            for p in normal_form(
                pointers, len(term.shape), self.graph.block_shape(self.site_of[leaf])
            )
        ]

    def components(self) -> Components | None:
        """The components, or None if structure depends on traced data or is too long to list."""
        rows, nodes, num_rows, num_pairs = [], [], 0, 0
        row_shapes: list[tuple[int, Shape] | None] = []
        for term in self.graph.terms:
            pointers = [(leaf, self._onto_kept(leaf, p)) for leaf, p in self._pointers(term)]
            if not pointers:
                row_shapes.append(None)
                continue
            if not all(p.is_concrete() for _, p in pointers):
                return None
            read = read_axes([p for _, p in pointers], len(term.shape))
            row_shape = tuple(n if axis in read else 1 for axis, n in enumerate(term.shape))
            for leaf, p in pointers:
                num_pairs += math.prod(
                    np.broadcast_shapes(row_shape, *[a.shape[: len(row_shape)] for a in p.arrays])
                ) * math.prod(np.broadcast_shapes(*[a.shape[len(row_shape) :] for a in p.arrays]))
                if num_pairs > MAX_PAIRS:
                    return None
                row, node = self._pairs(leaf, p, row_shape)
                rows.append(num_rows + row)
                nodes.append(node)
            row_shapes.append((num_rows, row_shape))
            num_rows += math.prod(row_shape)
        return self._label(rows, nodes, row_shapes, num_rows)

    def _onto_kept(self, leaf: str, p: Pointer) -> Pointer:
        kept = self.kept[self.site_of[leaf].name]
        index = tuple(a if axis in kept else None for axis, a in enumerate(p.index))
        mask = p.mask if is_concrete(p.mask) else None  # where it does not hold, nothing is read
        return Pointer(p.leaf, index, mask)

    def _pairs(self, leaf: str, p: Pointer, row_shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the rows of a factor array and of the nodes that they read."""
        site, rank = self.site_of[leaf], len(row_shape)
        number: Any = np.zeros((1,) * max(p.ndim(rank), rank), int)
        for a, n in zip(p.index, self._node_shape(site), strict=True):
            number = number * n + (0 if a is None else a)
        holds = np.ones((1,) * number.ndim, bool) if p.mask is None else p.mask
        row = np.arange(math.prod(row_shape)).reshape(row_shape + (1,) * (number.ndim - rank))
        holds = holds.reshape(holds.shape + (1,) * (number.ndim - holds.ndim))
        number, holds, row = np.broadcast_arrays(number, holds, row)
        return row[holds], self.first[site.name] + number[holds]

    def _label(
        self,
        rows: list[np.ndarray],
        nodes: list[np.ndarray],
        row_shapes: list[tuple[int, Shape] | None],
        num_rows: int,
    ) -> Components:
        size = self.num_nodes + num_rows
        row = np.concatenate([np.zeros(0, int), *rows])
        node = np.concatenate([np.zeros(0, int), *nodes])
        pairs = coo_matrix((np.ones(len(row)), (node, self.num_nodes + row)), (size, size))
        _, raw = connected_components(pairs, directed=False)
        # Numbered in the order of the nodes, so that a batch axis gets 0, 1, 2, ...; rows that
        # read nothing are connected to no node.
        known, start = np.unique(raw[: self.num_nodes], return_index=True)
        number = np.full(raw.max(initial=0) + 1, -1)
        number[known[np.argsort(start)]] = np.arange(len(known))
        labels, count = number[raw], len(known)

        sites = {}
        for site in self.graph.sites:
            shape, first = self._node_shape(site), self.first[site.name]
            mine = labels[first : first + math.prod(shape)].reshape(shape)
            sites[site.name] = _Labels(mine, self.graph.block_shape(site), count)
        terms: list[_Labels | None] = []
        for term, placed in zip(self.graph.terms, row_shapes, strict=True):
            if placed is None:
                terms.append(None)
                continue
            first, shape = self.num_nodes + placed[0], placed[1]
            mine = labels[first : first + math.prod(shape)].reshape(shape)
            terms.append(_Labels(mine, term.shape, count))
        return Components(count, sites, tuple(terms))
