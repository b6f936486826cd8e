"""From pointers to learning signals: sums of factor entries, one per block of latents.

A block is what is drawn jointly: one entry of a latent, one row, or several whole latents. For one
factor array F with entries j and one family of blocks i, a plan is the linear map

    R[i] = sum of F[j] over the factor entries j that read anything of block i.

Every factor entry counts at most once per block. Counting too many is harmless, counting one twice
is not: its score-function gradient would be scaled (Ranganath, Gerrish and Blei, 2014, Black Box
Variational Inference, section 3).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi.dependence.patterns import Affine, affine, coincide, entry_table, normal_form, read_axes
from bbvi.dependence.pointers import Pointer, Shape, holds_somewhere, is_concrete

# Pointers that disagree on where they read every index are listed entry by entry up to this many
# entries, and widened beyond.
MAX_LISTED = 2_000_000

LinearMap = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How the entries of one factor array are summed over the blocks they read.

    Attributes:
      kind: "all", "all (masked)", "slices", "segment_sum", "segment_sum (traced)" or, if nothing is
        read, "none"; several, joined by " + ", where pointers are treated differently.
      num_pairs: number of (factor entry, block) pairs, None where traced data decide it.
      accumulate: the linear map from F to R.
    """

    kind: str
    num_pairs: int | None
    accumulate: LinearMap


def plan(
    pointers: Sequence[Pointer], factor_shape: Shape, leaf_shape: Shape, event_ndims: int
) -> Plan:
    """The plan of one factor array for the blocks of one latent leaf.

    Args:
      pointers: what the factor array reads of this leaf.
      factor_shape: shape of the factor array F.
      leaf_shape: shape of the leaf.
      event_ndims: trailing axes of the leaf that are drawn jointly; R has the shape of the others.

    Returns:
      A plan with ``accumulate(F)`` of shape ``leaf_shape[:len(leaf_shape) - event_ndims]``.

    Example:
      >>> import numpy as np, jax.numpy as jnp
      >>> from bbvi.dependence.pointers import Pointer
      >>> t = np.arange(3)  # z[t] and z[t + 1], for t = 0, 1, 2
      >>> chain = plan([Pointer(0, (t,)), Pointer(0, (t + 1,))], (3,), (4,), 0)
      >>> chain.kind, chain.num_pairs, chain.accumulate(jnp.array([1.0, 10.0, 100.0])).tolist()
      ('slices', 6, [1.0, 11.0, 110.0, 100.0])
    """
    rank = len(factor_shape)
    leaf_shape = leaf_shape[: len(leaf_shape) - event_ndims]
    if 0 in factor_shape or 0 in leaf_shape:
        pointers = []
    pointers = _align(normal_form(pointers, rank, leaf_shape), rank, leaf_shape)
    if not pointers:
        return Plan("none", 0, lambda factor: jnp.zeros(leaf_shape, factor.dtype))

    kept = [axis for axis, a in enumerate(pointers[0].index) if a is not None]
    kept_shape = tuple(leaf_shape[axis] for axis in kept)
    pointers = [Pointer(p.leaf, tuple(p.index[a] for a in kept), p.mask) for p in pointers]
    if kept:
        pieces = _pieces(pointers, factor_shape, kept_shape)
    else:
        pieces = [_everything(pointers, factor_shape)]

    unread = _unread_axes(pointers, rank)
    with_ones = tuple(n if axis in kept else 1 for axis, n in enumerate(leaf_shape))

    def accumulate(factor: Array) -> Array:
        factor = factor.sum(unread, keepdims=True)
        parts = [piece.accumulate(factor) for piece in pieces]
        return jnp.broadcast_to(sum(parts[1:], parts[0]).reshape(with_ones), leaf_shape)

    repeats = math.prod(n for axis, n in enumerate(leaf_shape) if axis not in kept)
    counts = [piece.num_pairs for piece in pieces]
    num_pairs = None if None in counts else repeats * sum(n for n in counts if n is not None)
    return Plan(" + ".join(dict.fromkeys(piece.kind for piece in pieces)), num_pairs, accumulate)


def joint_plan(pointers_by_leaf: Mapping[int, Sequence[Pointer]], factor_shape: Shape) -> Plan:
    """The plan of one factor array for one block that covers several whole leaves.

    Args:
      pointers_by_leaf: what the factor array reads of each leaf of the block.
      factor_shape: shape of the factor array F.

    Returns:
      A plan with a scalar ``accumulate(F)``: the sum of the entries that read any of the leaves.

    Example:
      >>> import numpy as np, jax.numpy as jnp
      >>> from bbvi.dependence.pointers import Pointer
      >>> first = Pointer(0, (), mask=np.array([True, False, False]))
      >>> both = joint_plan({0: [first], 1: [Pointer(1, (np.array([5]),), first.mask)]}, (3,))
      >>> both.kind, float(both.accumulate(jnp.array([1.0, 10.0, 100.0])))
      ('all (masked)', 1.0)
    """
    pointers = [p for of_leaf in pointers_by_leaf.values() for p in of_leaf if holds_somewhere(p)]
    if not pointers or 0 in factor_shape:
        return Plan("none", 0, lambda factor: jnp.zeros((), factor.dtype))
    return _everything(pointers, factor_shape)


def _align(pointers: list[Pointer], rank: int, leaf_shape: Shape) -> list[Pointer]:
    """Pointers that read "every index" along the same axes of the leaf."""
    patterns = [[p.index[axis] is None for p in pointers] for axis in range(len(leaf_shape))]
    mixed = [axis for axis, whole in enumerate(patterns) if any(whole) and not all(whole)]
    if not mixed:
        return pointers
    listed = [_list_indices(p, mixed, rank, leaf_shape) for p in pointers]
    shapes = [np.broadcast_shapes(*[a.shape for a in p.arrays]) for p in listed]
    if sum(math.prod(shape) for shape in shapes) <= MAX_LISTED:
        return listed
    widened = [
        Pointer(p.leaf, tuple(None if b in mixed else a for b, a in enumerate(p.index)), p.mask)
        for p in pointers
    ]
    return _align(normal_form(widened, rank, leaf_shape), rank, leaf_shape)


def _list_indices(p: Pointer, axes: Sequence[int], rank: int, leaf_shape: Shape) -> Pointer:
    """The pointer with "every index" along these axes written out, on new extra axes."""
    whole = [axis for axis in axes if p.index[axis] is None]
    ndim = p.ndim(rank)
    p = p.map(lambda a: a.reshape(a.shape + (1,) * len(whole)))
    index = list(p.index)
    for number, axis in enumerate(whole):
        shape = [1] * (ndim + len(whole))
        shape[ndim + number] = leaf_shape[axis]
        index[axis] = np.arange(leaf_shape[axis]).reshape(shape)
    return Pointer(p.leaf, tuple(index), p.mask)


def _unread_axes(pointers: Sequence[Pointer], rank: int) -> tuple[int, ...]:
    """The factor axes to sum out first."""
    read = read_axes(pointers, rank)
    return tuple(axis for axis in range(rank) if axis not in read)


def _masked(factor: Array, mask: Any) -> Array:
    return factor if mask is None else jnp.where(mask, factor, 0)


def _num_entries(mask: Any, factor_shape: Shape) -> int | None:
    """How many factor entries a mask lets through."""
    if mask is None:
        return math.prod(factor_shape)
    if not is_concrete(mask):
        return None
    return int(mask.sum()) * math.prod(
        n for n, m in zip(factor_shape, mask.shape, strict=True) if m == 1
    )


def _everything(pointers: Sequence[Pointer], factor_shape: Shape) -> Plan:
    """One block: every entry that reads anything."""
    rank = len(factor_shape)
    mask: Any = np.zeros((1,) * rank, bool)
    for p in pointers:
        if p.mask is None:
            return Plan("all", math.prod(factor_shape), jnp.sum)
        mask = mask | p.mask.any(tuple(range(rank, p.mask.ndim)))
    return Plan("all (masked)", _num_entries(mask, factor_shape), lambda f: _masked(f, mask).sum())


def _pieces(pointers: Sequence[Pointer], factor_shape: Shape, leaf_shape: Shape) -> list[Plan]:
    """Plans that add up: no factor entry is in two of them for the same latent entry."""
    rank = len(factor_shape)
    sets = [p for p in pointers if p.ndim(rank) > rank]
    pieces = [_table(sets, factor_shape, leaf_shape)] if sets else []
    done = list(sets)
    for p in pointers:
        if p.ndim(rank) > rank:
            continue
        fresh = _except(p, done, rank)
        done.append(p)
        if not holds_somewhere(fresh):
            continue
        found = [affine(a, fresh.mask, rank) for a in fresh.index]
        forms = [form for form in found if form is not None]
        axes = [form.axis for form in forms if form.axis is not None]
        if len(forms) == len(found) and len(set(axes)) == len(axes):
            pieces.append(_slices(fresh.mask, forms, factor_shape, leaf_shape))
        else:
            pieces.append(_table([fresh], factor_shape, leaf_shape))
    return pieces


def _except(p: Pointer, others: Sequence[Pointer], rank: int) -> Pointer:
    """The pointer (without extra axes) where none of the others reads the same latent entry."""
    mask = p.mask
    for q in others:
        again = coincide(p, q, rank)
        if not is_concrete(again) or again.any():
            mask = ~again if mask is None else mask & ~again
    return dataclasses.replace(p, mask=mask)


def _slices(mask: Any, forms: Sequence[Affine], factor_shape: Shape, leaf_shape: Shape) -> Plan:
    """Affine indices: a sum and a padding, without lookups. What misses the leaf is cut off."""
    rank = len(factor_shape)
    num_pairs = _num_entries(mask, factor_shape)
    if _only_cuts_off(mask, forms, factor_shape, leaf_shape):
        mask = None
    used = sorted(form.axis for form in forms if form.axis is not None)
    summed = tuple(axis for axis in range(rank) if axis not in used)
    order = [used.index(form.axis) for form in forms if form.axis is not None]
    constant = [position for position, form in enumerate(forms) if form.axis is None]
    reverse = [position for position, form in enumerate(forms) if form.stride < 0]
    padding = []
    for form, size in zip(forms, leaf_shape, strict=True):
        n = 1 if form.axis is None else factor_shape[form.axis]
        step = max(abs(form.stride), 1)
        low = min(form.offset, form.offset + (n - 1) * form.stride)
        padding.append((low, size - low - (n - 1) * step - 1, step - 1))

    def accumulate(factor: Array) -> Array:
        rows = _masked(factor, mask).sum(summed).transpose(order)
        rows = jax.lax.rev(jnp.expand_dims(rows, constant), reverse)
        return jax.lax.pad(rows, jnp.zeros((), rows.dtype), padding)

    return Plan("slices", num_pairs, accumulate)


def _only_cuts_off(
    mask: Any, forms: Sequence[Affine], factor_shape: Shape, leaf_shape: Shape
) -> bool:
    """Whether a mask holds exactly where the affine indices are within the leaf."""
    if mask is None or not is_concrete(mask):
        return False
    inside: Any = np.ones((1,) * mask.ndim, bool)
    for form, size in zip(forms, leaf_shape, strict=True):
        if form.axis is not None:
            index = form.offset + form.stride * np.arange(factor_shape[form.axis])
            shape = [len(index) if axis == form.axis else 1 for axis in range(mask.ndim)]
            inside = inside & ((0 <= index) & (index < size)).reshape(shape)
    return inside.shape == mask.shape and bool((inside == mask).all())


def _table(pointers: Sequence[Pointer], factor_shape: Shape, leaf_shape: Shape) -> Plan:
    """General indices: a table of the latent entries each factor entry reads.

    Scattering is the fastest way on a CPU, and its transpose, a gather, more so. Tables inverted
    to gather, or sorted by target, came out slower.
    """
    rank = len(factor_shape)
    num_targets = math.prod(leaf_shape)
    unread = _unread_axes(pointers, rank)
    table = entry_table(pointers, factor_shape, leaf_shape)
    num_rows, num_columns = table.shape

    targets = table.reshape(-1)
    sources: Any = np.repeat(np.arange(num_rows), num_columns)
    num_pairs = None
    if is_concrete(table):
        present = targets < num_targets
        sources, targets = sources[present], targets[present]
        num_pairs = len(targets) * math.prod(factor_shape[axis] for axis in unread)
    if num_columns == 1 and len(sources) == num_rows:
        sources = slice(None)

    def accumulate(factor: Array) -> Array:
        values = factor.sum(unread).reshape(num_rows)[sources]
        return jax.ops.segment_sum(values, targets, num_targets).reshape(leaf_shape)

    kind = "segment_sum" if is_concrete(table) else "segment_sum (traced)"
    return Plan(kind, num_pairs, accumulate)
