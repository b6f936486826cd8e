"""Patterns in pointers: normal form, affine indices, tables of entries."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bbvi.dependence.pointers import (
    Pointer,
    Shape,
    holds_somewhere,
    is_concrete,
    namespace,
    same,
    shrink,
    simplify,
)

# An extra axis of at most this many affine indices is taken apart.
MAX_WINDOW = 64
# An index that jumps at most so often is cut into affine runs.
MAX_JUMPS = 2


@dataclasses.dataclass(frozen=True)
class Affine:
    """The index ``offset + stride * j`` along one factor axis; a constant if ``axis`` is None."""

    axis: int | None
    offset: int
    stride: int


def affine(index: Any, mask: Any, rank: int) -> Affine | None:
    """The affine form that an index array has wherever the mask holds, or None.

    Args:
      index: index array of a pointer.
      mask: mask of that pointer; a traced one is taken to hold everywhere.
      rank: number of axes of the factor array.

    Example:
      >>> import numpy as np
      >>> affine(np.array([[7, 5, 3]]), None, 2)
      Affine(axis=1, offset=7, stride=-2)
    """
    axes = [axis for axis in range(index.ndim) if index.shape[axis] > 1]
    if not is_concrete(index) or len(axes) > 1 or any(axis >= rank for axis in axes):
        return None
    values = index.reshape(-1).astype(int)
    if not axes:
        return Affine(None, int(values[0]), 0)
    axis = axes[0]
    positions = np.arange(len(values))
    if mask is not None and is_concrete(mask):
        holds = mask.any(tuple(other for other in range(mask.ndim) if other != axis))
        positions = np.flatnonzero(np.broadcast_to(holds, len(values)))
        values = values[positions]
    if not len(values) or (values == values[0]).all():
        return Affine(None, int(values[0]) if len(values) else 0, 0)
    stride = int(values[1] - values[0]) // int(positions[1] - positions[0])
    offset = int(values[0]) - stride * int(positions[0])
    if stride == 0 or not np.array_equal(values, offset + stride * positions):
        return None
    return Affine(axis, offset, stride)


def normal_form(pointers: Sequence[Pointer], rank: int, leaf_shape: Shape) -> list[Pointer]:
    """The same pointers in few: simplified, no axis of size 1 indexed, none that another covers.

    Indices beyond the axes of ``leaf_shape`` are dropped: whoever reads a part reads the block.
    """
    kept: list[Pointer] = []
    for p in pointers:
        if any(a.size == 0 for a in p.arrays):
            continue
        index = tuple(None if n == 1 else a for a, n in zip(p.index, leaf_shape, strict=False))
        is_full = p.mask is not None and is_concrete(p.mask) and p.mask.all()
        p = simplify(Pointer(p.leaf, index, None if is_full else p.mask), rank, leaf_shape)
        parts = [run for part in _windows(p, rank, leaf_shape) for run in _runs(part, rank)]
        for q in parts:
            if holds_somewhere(q) and not any(_covers(other, q) for other in kept):
                kept = [other for other in kept if not _covers(q, other)] + [q]
    return kept


def _windows(p: Pointer, rank: int, leaf_shape: Shape) -> list[Pointer]:
    """The pointer for each extra index separately, if these are few, affine and worth a pass."""
    arrays = [a for a in p.index if a is not None]
    extra = np.broadcast_shapes(*[a.shape[rank:] for a in p.arrays])
    num_entries = math.prod(np.broadcast_shapes(*[a.shape[:rank] for a in arrays]))
    num_targets = math.prod(n for a, n in zip(p.index, leaf_shape, strict=True) if a is not None)
    is_few = 1 < math.prod(extra) <= MAX_WINDOW and 4 * num_entries >= num_targets
    if not (is_few and is_concrete(*arrays)):
        return [p]
    parts = [p.map(functools.partial(_at, position=e, rank=rank)) for e in np.ndindex(extra)]
    is_affine = all(
        affine(a, q.mask, rank) is not None for q in parts for a in q.index if a is not None
    )
    return parts if is_affine else [p]


def _at(array: Any, position: tuple[int, ...], rank: int) -> Any:
    """The array at one extra index."""
    sizes = array.shape[rank:]
    return array[(..., *(min(e, n - 1) for e, n in zip(position, sizes, strict=True)))]


def _runs(p: Pointer, rank: int) -> list[Pointer]:
    """The pointer cut where an index jumps, if it seldom does, as that of ``roll`` does once."""
    for a in p.index:
        if a is None or not is_concrete(a, p.mask) or affine(a, p.mask, rank) is not None:
            continue
        axes = [axis for axis in range(a.ndim) if a.shape[axis] > 1]
        if len(axes) > 1 or axes[0] >= rank:
            continue
        steps = np.diff(a.reshape(-1).astype(int))
        usual = np.median(steps)
        jumps = np.flatnonzero(steps != usual) + 1
        if usual == 0 or len(jumps) > MAX_JUMPS:
            continue
        run = np.searchsorted(jumps, np.arange(a.size), side="right").reshape(a.shape)
        masks = [run == number for number in range(len(jumps) + 1)]
        if p.mask is not None:
            masks = [mask & p.mask for mask in masks]
        return [q for mask in masks for q in _runs(dataclasses.replace(p, mask=mask), rank)]
    return [p]


def _covers(p: Pointer, q: Pointer) -> bool:
    """Whether p certainly reads all that q reads."""
    index = tuple(None if a is None else b for a, b in zip(p.index, q.index, strict=True))
    return same(p, Pointer(q.leaf, index, None if p.mask is None else q.mask))


def coincide(p: Pointer, q: Pointer, rank: int) -> Any:
    """Where q reads, for some extra index, the entry that p, without extra axes, reads."""
    num_extra = q.ndim(rank) - rank
    again: Any = np.ones((1,) * (rank + num_extra), bool)
    for a, b in zip(p.index, q.index, strict=True):
        again = again & (a.reshape(a.shape + (1,) * num_extra) == b)
        if is_concrete(again) and not again.any():
            return again.any(tuple(range(rank, rank + num_extra)))
    if q.mask is not None:
        again = again & q.mask
    return shrink(again.any(tuple(range(rank, rank + num_extra))))


def read_axes(pointers: Sequence[Pointer], rank: int) -> list[int]:
    """The factor axes along which any of the pointers varies."""
    return [
        axis for axis in range(rank) if any(a.shape[axis] > 1 for p in pointers for a in p.arrays)
    ]


def num_extra(p: Pointer, rank: int) -> int:
    """How many extra indices a pointer has: at most so many latent entries per factor entry."""
    return math.prod(np.broadcast_shapes(*[a.shape[rank:] for a in p.arrays]))


def entry_table(pointers: Sequence[Pointer], factor_shape: Shape, leaf_shape: Shape) -> Any:
    """Numbers of the latent entries each factor entry reads, [entries, columns].

    Only the factor axes along which a pointer varies are run over. Every row holds distinct
    numbers; the size of the leaf stands for "none". Traced if a pointer is.

    Args:
      pointers: pointers without "every index".
      factor_shape: shape of the factor array.
      leaf_shape: shape of the leaf.
    """
    read = read_axes(pointers, len(factor_shape))
    row_shape = tuple(n if axis in read else 1 for axis, n in enumerate(factor_shape))
    columns = [_entry_numbers(p, row_shape, leaf_shape) for p in pointers]
    xp = namespace(*columns)
    table = xp.concatenate(columns, axis=1)
    if table.shape[1] == 1:
        return table
    table = xp.sort(table, axis=1)
    is_repeated = xp.pad(table[:, 1:] == table[:, :-1], ((0, 0), (1, 0)))
    return xp.where(is_repeated, math.prod(leaf_shape), table)


def _entry_numbers(p: Pointer, row_shape: Shape, leaf_shape: Shape) -> Any:
    numbers: Any = np.zeros((1,) * p.ndim(len(row_shape)), int)
    for index, size in zip(p.index, leaf_shape, strict=True):
        numbers = numbers * size + index
    if p.mask is not None:
        numbers = namespace(numbers, p.mask).where(p.mask, numbers, math.prod(leaf_shape))
    shape = row_shape + numbers.shape[len(row_shape) :]
    numbers = namespace(numbers).broadcast_to(numbers, shape)
    return numbers.reshape(math.prod(row_shape), -1).astype(np.int32)
