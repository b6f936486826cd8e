"""Which latent entries every entry of an array reads, as a few index arrays.

A *pointer* of an array v says: ``v[j]`` reads ``latent[index[0][j, e], index[1][j, e], ...]`` for
every e. Each index array is broadcastable to the shape of v followed by *extra axes* e; an axis of
size 1 means that the index does not vary along it, and ``None`` in place of an array means every
index of that axis of the latent. So a pointer costs what the pattern costs, never v times latent.
A mask of the same form says for which (j, e) the pointer holds at all.

Operations that move data move the index arrays in the same way; operations that mix entries turn
axes of v into extra axes. Arrays are NumPy arrays, or tracers where they depend on traced data.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]
# A pointer with more entries than this is widened to "every index" (it would cost too much).
MAX_ENTRIES = 50_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Pointer:
    """One set of latent entries read by every entry of an array.

    Attributes:
      leaf: number of the latent leaf.
      index: for each axis of the leaf an integer array, or None for every index.
      mask: boolean array, or None where the pointer always holds.
    """

    leaf: int
    index: tuple[Any, ...]
    mask: Any = None

    @property
    def arrays(self) -> list[Any]:
        """The arrays there are; all have the same number of axes."""
        return [array for array in (*self.index, self.mask) if array is not None]

    def map(self, function: Callable[[Any], Any]) -> Pointer:
        """The pointer with every array replaced by its image."""
        images = [None if a is None else function(a) for a in (*self.index, self.mask)]
        return Pointer(self.leaf, tuple(images[:-1]), images[-1])

    def ndim(self, rank: int) -> int:
        """Axes of the arrays, extra ones included, for an array of this rank."""
        arrays = self.arrays
        return arrays[0].ndim if arrays else rank

    def is_everything(self) -> bool:
        """Whether it reads the whole leaf, everywhere."""
        return not self.arrays

    def is_concrete(self) -> bool:
        """Whether no array is traced."""
        return is_concrete(*self.arrays)


def identity(leaf: int, shape: Shape) -> Pointer:
    """The pointer of a latent to itself."""
    rank = len(shape)
    index = [
        None if n == 1 else np.arange(n).reshape([n if a == axis else 1 for a in range(rank)])
        for axis, n in enumerate(shape)
    ]
    return Pointer(leaf, tuple(index))


def is_concrete(*arrays: Any) -> bool:
    """Whether all arrays are known now rather than traced."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def namespace(*arrays: Any) -> Any:
    """NumPy where all arrays are known, else ``jax.numpy``."""
    return np if is_concrete(*arrays) else jnp


def same(p: Pointer, q: Pointer) -> bool:
    """Whether two pointers are certainly equal."""
    if p.leaf != q.leaf:
        return False
    for a, b in zip((*p.index, p.mask), (*q.index, q.mask), strict=True):
        if a is b:
            continue
        if a is None or b is None or a.shape != b.shape or not is_concrete(a, b):
            return False
        if not np.array_equal(a, b):
            return False
    return True


def union(*lists: Iterable[Pointer]) -> list[Pointer]:
    """All pointers of several lists, without those that never hold or that another one covers."""
    kept: list[Pointer] = []
    for p in itertools.chain(*lists):
        if not holds_somewhere(p):
            continue
        bare = dataclasses.replace(p, mask=None)
        if any(same(p, q) or (q.mask is None and same(bare, q)) for q in kept):
            continue
        if p.mask is None:
            kept = [
                q for q in kept if q.mask is None or not same(p, dataclasses.replace(q, mask=None))
            ]
        kept.append(p)
    whole = {p.leaf for p in kept if p.is_everything()}
    return [p for p in kept if p.is_everything() or p.leaf not in whole]


def merge(pointers: Sequence[Pointer], rank: int) -> list[Pointer]:
    """Join pointers that never hold together (the pieces of a concatenation) into one."""
    merged: list[Pointer] = []
    for p in pointers:
        for position, q in enumerate(merged):
            if _can_merge(p, q, rank):
                index = [
                    None if a is None else shrink(np.where(p.mask, a, b))
                    for a, b in zip(p.index, q.index, strict=True)
                ]
                mask = p.mask | q.mask
                merged[position] = Pointer(p.leaf, tuple(index), None if mask.all() else mask)
                break
        else:
            merged.append(p)
    return merged


def _can_merge(p: Pointer, q: Pointer, rank: int) -> bool:
    return (
        p.leaf == q.leaf
        and p.mask is not None
        and q.mask is not None
        and p.is_concrete()
        and q.is_concrete()
        and p.ndim(rank) == q.ndim(rank) == rank
        and [a is None for a in p.index] == [a is None for a in q.index]
        and not np.any(p.mask & q.mask)
    )


def shrink(array: Any) -> Any:
    """The array with axes along which it is constant cut to size 1 (known arrays only)."""
    if not is_concrete(array):
        return array
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            first = array.take([0], axis)
            if (array == first).all():
                array = first
    return array


def prepend_axes(p: Pointer, rank: int, new_rank: int) -> Pointer:
    """The pointer of an array broadcast to a higher rank from the left."""
    added = (1,) * (new_rank - rank)
    return p.map(lambda a: a.reshape(added + a.shape)) if added else p


def mix(
    p: Pointer, axes: Iterable[int], rank: int, leaf_shape: Shape, *, keepdims: bool = False
) -> Pointer:
    """The pointer after a reduction: the axes become extra ones ("for every e")."""
    axes = sorted(axes)
    if not axes:
        return p

    def move(a: Any) -> Any:
        moved = namespace(a).moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
        return namespace(a).expand_dims(moved, tuple(axes)) if keepdims else moved

    return simplify(p.map(move), rank if keepdims else rank - len(axes), leaf_shape)


def simplify(p: Pointer, rank: int, leaf_shape: Shape) -> Pointer:
    """Drop extra axes nothing varies along, and write "every index" as None.

    An index array that varies along extra axes only, and alone, is a free set of indices. If it
    holds all of them it becomes None. A pointer that would be too large is widened.
    """
    total = p.ndim(rank)
    if total == rank:
        return p
    index, mask = list(p.index), p.mask
    for axis, a in enumerate(index):
        if a is None:
            continue
        varying = _varying(a)
        rest = [b for other, b in enumerate((*index, mask)) if other != axis and b is not None]
        if not varying or min(varying) < rank or any(_varying(b) & varying for b in rest):
            continue
        if is_concrete(a):
            values = np.unique(a)
            if len(values) == leaf_shape[axis]:
                index[axis] = None
            else:
                index[axis] = values.reshape(_axis_shape(total, max(varying), len(values)))
        elif a.size >= leaf_shape[axis]:
            index[axis] = None
    if mask is not None:
        mask = _project_mask(mask, index, rank)
    p = Pointer(p.leaf, tuple(index), mask)
    arrays = p.arrays
    if not arrays:
        return p
    used = [axis for axis in range(rank, total) if any(a.shape[axis] > 1 for a in arrays)]
    if used and math.prod(np.broadcast_shapes(*[a.shape for a in arrays])) > MAX_ENTRIES:
        widened = [None if a is not None and _varying(a) & set(used) else a for a in p.index]
        return simplify(Pointer(p.leaf, tuple(widened)), rank, leaf_shape)
    return p.map(lambda a: a.reshape(a.shape[:rank] + tuple(a.shape[axis] for axis in used)))


def _project_mask(mask: Any, index: Sequence[Any], rank: int) -> Any:
    """The mask without extra axes that no index varies along: there "for some e" is enough."""
    axes = tuple(
        axis
        for axis in range(rank, mask.ndim)
        if mask.shape[axis] > 1 and all(a is None or a.shape[axis] == 1 for a in index)
    )
    if axes:
        mask = mask.any(axes, keepdims=True)
    return None if is_concrete(mask) and mask.all() else mask


def _varying(a: Any) -> set[int]:
    return {axis for axis in range(a.ndim) if a.shape[axis] > 1}


def _axis_shape(ndim: int, axis: int, n: int) -> list[int]:
    return [n if a == axis else 1 for a in range(ndim)]


def collapse(p: Pointer, rank: int, leaf_shape: Shape) -> Pointer:
    """What any entry of the array reads: a pointer of a scalar."""
    q = mix(p, range(rank), rank, leaf_shape)
    arrays = q.arrays
    if not arrays or not is_concrete(*arrays) or (len(arrays) == 1 and arrays[0].ndim <= 1):
        return q
    columns = [array.reshape(-1) for array in np.broadcast_arrays(*arrays)]
    if q.mask is not None:
        *columns, mask = columns
        columns = [column[mask] for column in columns]
    if not columns:
        return Pointer(q.leaf, q.index)
    distinct = iter(np.unique(np.stack(columns), axis=1))
    index = tuple(None if a is None else next(distinct) for a in q.index)
    return simplify(Pointer(q.leaf, index), 0, leaf_shape)


def lookup(p: Pointer, sources: Sequence[Any], rank: int, out_rank: int) -> Pointer:
    """The pointer of ``out`` where ``out[j] = v[sources[0][j], sources[1][j], ...]``.

    Args:
      p: pointer of v.
      sources: for each axis of v an integer array of ``out_rank`` axes, broadcastable to the
        shape of ``out``; a negative entry means that ``out[j]`` is not taken from v. Traced
        sources must not hold negative entries.
      rank: axes of v.
      out_rank: axes of ``out``.

    Returns:
      The pointer, masked where the entry is not taken from v.
    """

    def pick(a: Any) -> Any:
        axes = [axis for axis in range(rank) if a.shape[axis] > 1]
        extra = a.shape[rank:]
        if not axes:
            return a.reshape((1,) * out_rank + extra)
        picks = [namespace(sources[axis]).maximum(sources[axis], 0) for axis in axes]
        table = a.reshape(tuple(a.shape[axis] for axis in axes) + extra)
        if is_concrete(table, *picks):
            return table[tuple(picks)]
        return jnp.asarray(table).at[tuple(picks)].get(mode="clip")

    q = p.map(pick)
    gaps = [s for s in sources if is_concrete(s) and (s < 0).any()]
    if not gaps:
        return q
    present = functools.reduce(lambda a, b: a & b, [s >= 0 for s in gaps])
    present = present.reshape(present.shape + (1,) * (q.ndim(out_rank) - out_rank))
    return dataclasses.replace(q, mask=present if q.mask is None else q.mask & present)


def along(values: Any, axis: int, rank: int) -> Any:
    """A vector laid along one axis of a broadcastable array of ``rank`` axes."""
    return values.reshape(_axis_shape(rank, axis, values.shape[0]))


def take(p: Pointer, axis: int, source: Any, rank: int) -> Pointer:
    """The pointer after ``v.take(source, axis)``; a negative source stands for "not from v"."""
    arrays = p.arrays
    size = max((a.shape[axis] for a in arrays), default=1)
    if size == 1 and not (is_concrete(source) and (source < 0).any()):
        return p
    sources = [
        along(source if other == axis else np.arange(_length(arrays, other)), other, rank)
        for other in range(rank)
    ]
    return lookup(p, sources, rank, rank)


def _length(arrays: Sequence[Any], axis: int) -> int:
    return max((a.shape[axis] for a in arrays), default=1)


def restrict(p: Pointer, mask: Any, rank: int) -> list[Pointer]:
    """The pointer where ``mask``, broadcastable to the array's shape, holds; maybe none."""
    if is_concrete(mask):
        mask = shrink(mask)
        if mask.all():
            return [p]
        if not mask.any():
            return []
    num_extra = p.ndim(rank) - rank
    mask = mask.reshape((1,) * (rank - mask.ndim) + mask.shape + (1,) * num_extra)
    return [dataclasses.replace(p, mask=mask if p.mask is None else p.mask & mask)]


def holds_somewhere(p: Pointer) -> bool:
    """False only if the mask is known to be false everywhere."""
    return p.mask is None or not is_concrete(p.mask) or bool(p.mask.any())


@functools.lru_cache(maxsize=4096)
def axis_groups(old: Shape, new: Shape) -> tuple[tuple[range, range], ...]:
    """Two shapes of equal size cut into the shortest runs of axes of equal size."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        size_old = old[i] if i < len(old) else 1
        size_new = new[j] if j < len(new) else 1
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while size_old != size_new:
            if size_old < size_new and i < len(old):
                size_old, i = size_old * old[i], i + 1
            elif j < len(new):
                size_new, j = size_new * new[j], j + 1
            else:  # only with axes of size 0
                return ((range(len(old)), range(len(new))),)
        groups.append((range(start_i, i), range(start_j, j)))
    return tuple(groups)


def reshape(p: Pointer, old: Shape, new: Shape) -> Pointer:
    """The pointer after a reshape: only runs of axes the arrays vary along are written out."""
    groups = axis_groups(old, new)

    def change(a: Any) -> Any:
        full: list[int] = []
        shape: list[int] = []
        for before, after in groups:
            is_constant = all(a.shape[axis] == 1 for axis in before)
            full += [1 if is_constant else old[axis] for axis in before]
            shape += [1 if is_constant else new[axis] for axis in after]
        extra = a.shape[len(old) :]
        return namespace(a).broadcast_to(a, (*full, *extra)).reshape((*shape, *extra))

    return p.map(change)
