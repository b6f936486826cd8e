"""Colourings of a latent leaf: entries of one colour never meet in a factor entry.

Such entries are conditionally independent given the others, so all of one colour can be flipped
together: exact expectations over every discrete entry cost one evaluation per colour and value
instead of one per entry and value. Nearby entries of chains and grids repeat one small pattern of
colours, the lattice ``coefficients . i mod num_colours``; other conflicts are listed and coloured
greedily.

References:
  Titsias and Lázaro-Gredilla (2015), Local Expectation Gradients for Black Box Variational
  Inference. Curtis, Powell and Reid (1974), On the Estimation of Sparse Jacobian Matrices.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bbvi.dependence.patterns import (
    affine,
    coincide,
    entry_table,
    normal_form,
    num_extra,
    read_axes,
)
from bbvi.dependence.pointers import Pointer, Shape, is_concrete, same

# Sizes up to which lattices are searched and conflicts are listed.
MAX_LATTICE_COLOURS = 256
MAX_LATTICES = 100_000
MAX_CONFLICTS = 1_000_000

Factor = tuple[Shape, Sequence[Pointer]]
Offset = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Colouring:
    """Colours of the entries of one latent leaf.

    Attributes:
      colours: integer array of the leaf's shape, from 0 to ``num_colours - 1``.
      num_colours: how many colours there are.
    """

    colours: np.ndarray
    num_colours: int


def colour(leaf_shape: Shape, factors: Sequence[Factor]) -> Colouring | None:
    """Colour a leaf so that no factor entry reads two entries of one colour.

    Args:
      leaf_shape: shape of the leaf.
      factors: for every factor array its shape and what it reads of this leaf.

    Returns:
      A colouring, of as few colours as were found; None if conflicts depend on traced data or are
      irregular and too many to list.

    Example:
      >>> import numpy as np
      >>> from bbvi.dependence.pointers import Pointer
      >>> t = np.arange(4)  # a chain: z[t] meets z[t + 1]
      >>> colour((5,), [((4,), [Pointer(0, (t,)), Pointer(0, (t + 1,))])]).colours.tolist()
      [0, 1, 0, 1, 0]
    """
    kept, factors = _indexed(leaf_shape, factors)
    kept_shape = tuple(leaf_shape[axis] for axis in kept)
    outer = _lattice(kept_shape, factors)
    if outer is None:
        outer = _greedy(kept_shape, factors)
    if outer is None:
        return None
    outer = outer.reshape([n if axis in kept else 1 for axis, n in enumerate(leaf_shape)])
    inner_shape = [1 if axis in kept else n for axis, n in enumerate(leaf_shape)]
    num_inner = math.prod(inner_shape)
    colours = outer * num_inner + np.arange(num_inner).reshape(inner_shape)
    return Colouring(colours, int(colours.max(initial=-1)) + 1)


def _indexed(leaf_shape: Shape, factors: Sequence[Factor]) -> tuple[list[int], list[Factor]]:
    """Axes of the leaf along which nothing reads every index, and the pointers to these axes."""
    kept = list(range(len(leaf_shape)))
    while True:
        shape = tuple(leaf_shape[axis] for axis in kept)
        factors = [(f, normal_form(ps, len(f), shape)) for f, ps in factors if 0 not in f]
        whole = {
            axis for _, ps in factors for p in ps for axis, a in enumerate(p.index) if a is None
        }
        if not whole:
            return kept, factors
        indexed = [axis for axis in range(len(kept)) if axis not in whole]
        factors = [
            (f, [Pointer(p.leaf, tuple(p.index[axis] for axis in indexed), p.mask) for p in ps])
            for f, ps in factors
        ]
        kept = [kept[axis] for axis in indexed]


def _lattice(leaf_shape: Shape, factors: Sequence[Factor]) -> np.ndarray | None:
    """The first lattice that separates all entries that meet, if they meet at fixed offsets."""
    if not leaf_shape:
        return np.zeros((), int)
    offsets = _offsets(leaf_shape, factors)
    if offsets is None:
        return None
    ndim = len(leaf_shape)
    deltas = np.array(sorted(offsets), int).reshape(-1, ndim)
    for modulus in range(1, MAX_LATTICE_COLOURS + 1):
        if modulus**ndim > MAX_LATTICES:
            break
        coefficients = np.indices((modulus,) * ndim).reshape(ndim, -1).T
        separates = ((coefficients @ deltas.T) % modulus != 0).all(1)
        if separates.any():
            chosen = coefficients[separates.argmax()]
            grid = np.ix_(*(c * np.arange(n) for c, n in zip(chosen, leaf_shape, strict=True)))
            return sum(grid, np.zeros((1,) * ndim, int)) % modulus
    return None


def _offsets(leaf_shape: Shape, factors: Sequence[Factor]) -> set[Offset] | None:
    """Between which offsets entries meet; None if that differs from place to place."""
    offsets: set[Offset] = set()
    for shape, pointers in factors:
        rank = len(shape)
        if any(p.ndim(rank) > rank for p in pointers):
            return None
        for p, q in itertools.combinations(pointers, 2):
            mask = _meeting(p, q, rank)
            if mask is not None and not mask.any():
                continue
            pairs = zip(p.index, q.index, strict=True)
            differences = [_difference(a, b, mask, rank) for a, b in pairs]
            offset = tuple(d for d in differences if d is not None)
            if len(offset) < len(differences):
                return None
            if any(offset) and all(abs(d) < n for d, n in zip(offset, leaf_shape, strict=True)):
                offsets.add(offset)
    return offsets


def _meeting(p: Pointer, q: Pointer, rank: int) -> np.ndarray | None:
    """Where two pointers read two different entries; None if that is not known."""
    mask = ~coincide(p, q, rank)
    for other in (p.mask, q.mask):
        mask = mask if other is None else mask & other
    return mask if is_concrete(mask) else None


def _difference(a: Any, b: Any, mask: np.ndarray | None, rank: int) -> int | None:
    """How far apart two index arrays are, if it is the same wherever the mask holds."""
    if same(Pointer(0, (a,)), Pointer(0, (b,))):
        return 0
    first, second = affine(a, mask, rank), affine(b, mask, rank)
    if first is None or second is None:
        return None
    is_parallel = (first.axis, first.stride) == (second.axis, second.stride)
    return first.offset - second.offset if is_parallel else None


def _greedy(leaf_shape: Shape, factors: Sequence[Factor]) -> np.ndarray | None:
    """Colours from a list of all conflicts, if it can be made and is not too long."""
    size = math.prod(leaf_shape)
    conflicts = [np.zeros(0, int)]
    for shape, pointers in factors:
        found = _conflicts(shape, pointers, leaf_shape)
        if found is None or sum(map(len, conflicts)) + len(found) > MAX_CONFLICTS:
            return None
        conflicts.append(found)
    first, second = np.divmod(np.unique(np.concatenate(conflicts)), size)
    return _colour_graph(np.bincount(first, minlength=size), second).reshape(leaf_shape)


def _conflicts(
    factor_shape: Shape, pointers: Sequence[Pointer], leaf_shape: Shape
) -> np.ndarray | None:
    """Every ordered pair of entries that meet in a factor entry, as one number."""
    rank, size = len(factor_shape), math.prod(leaf_shape)
    if all(p.ndim(rank) == rank for p in pointers) and len(pointers) < 2:
        return np.zeros(0, int)  # no two entries meet, whichever they are
    pointers = [p if is_concrete(p.mask) else Pointer(p.leaf, p.index) for p in pointers]
    if not all(p.is_concrete() for p in pointers):
        return None
    num_rows = math.prod(factor_shape[axis] for axis in read_axes(pointers, rank))
    num_columns = sum(num_extra(p, rank) for p in pointers)
    if num_rows * num_columns * (num_columns - 1) > MAX_CONFLICTS:
        return None
    table = entry_table(pointers, factor_shape, leaf_shape).astype(np.int64)
    left, right = (table[:, columns] for columns in np.triu_indices(num_columns, 1))
    is_pair = (left < size) & (right < size)
    left, right = left[is_pair], right[is_pair]
    return np.concatenate([left * size + right, right * size + left])


def _colour_graph(degrees: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Greedy colouring, breadth first: two colours where two are enough.

    On a connected bipartite graph every entry after the first has a coloured neighbour, and all
    its coloured neighbours have one colour.
    """
    ends = np.cumsum(degrees)
    starts, stops, adjacent = (ends - degrees).tolist(), ends.tolist(), neighbours.tolist()
    colours = [-1] * len(degrees)
    for root in np.argsort(-degrees, kind="stable").tolist():
        queue = collections.deque([root])
        while queue:
            entry = queue.popleft()
            if colours[entry] >= 0:
                continue
            near = adjacent[starts[entry] : stops[entry]]
            taken = {colours[other] for other in near}
            colours[entry] = next(c for c in itertools.count() if c not in taken)
            queue.extend(other for other in near if colours[other] < 0)
    return np.array(colours, int)
