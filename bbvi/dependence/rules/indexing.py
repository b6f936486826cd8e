"""Primitives that look entries up by index: known, traced, or itself dependent on the latents."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from bbvi.dependence.analysis import Analysis, Reads, Value, now, rule
from bbvi.dependence.jaxprs import Equation
from bbvi.dependence.pointers import (
    MAX_ENTRIES,
    along,
    is_concrete,
    lookup,
    merge,
    namespace,
    prepend_axes,
    restrict,
    take,
    union,
)


@rule("gather")
def gather(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """``out[b, o] = v[start[b] + o]``: each component of the start is an operand of its own.

    Where a component is known, its index is followed; where it reads latents, the output may
    come from any position along that axis of v, and also reads what the component reads.
    """
    v, indices = operands
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    rank = equation.outvars[0].aval.ndim
    batch_axes = [d for d in range(rank) if d not in numbers.offset_dims]
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    window_axes = dict(
        zip([d for d in range(v.rank) if d not in dropped], numbers.offset_dims, strict=True)
    )

    def at_batch_axes(a: Any) -> Any:  # from the axes of the indices to those of the output
        shape = [1] * rank
        for axis, n in zip(batch_axes, a.shape, strict=False):
            shape[axis] = n
        return a.reshape(tuple(shape) + a.shape[len(batch_axes) :])

    known = _known_components(indices)
    fills = equation.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    sources: list[Any] = []
    anywhere: list[int] = []
    for d, n in enumerate(v.shape):
        source: Any = np.zeros((1,) * rank, int)
        if d in window_axes:
            source = along(np.arange(sizes[d]), window_axes[d], rank)
        if d in numbers.operand_batching_dims:
            axis = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(d)]
            source = at_batch_axes(along(np.arange(n), axis, len(batch_axes)))
        elif d in numbers.start_index_map and sizes[d] < n:
            component = numbers.start_index_map.index(d)
            if known[component]:
                start, largest = indices.value()[..., component], n - sizes[d]
                source = at_batch_axes(_clip(start, largest)) + source
                if fills and is_concrete(start):
                    inside = (0 <= start) & (start <= largest)
                    source = np.where(at_batch_axes(inside), source, -1)
            else:
                anywhere.append(d)
        sources.append(source)

    reads = [
        lookup(analysis.mix(p, anywhere, v.rank, keepdims=True), sources, v.rank, rank)
        for p in v.reads
    ]
    # One pointer per component, so that ``table[k[1:], k[:-1]]`` reads two slices of k, not pairs.
    last = indices.rank - 1
    for component in range(indices.shape[last]):
        for p in indices.reads:
            q = take(p, last, np.array([component]), indices.rank)
            reads.append(analysis.mix(q, [last], indices.rank).map(at_batch_axes))
    return [union(reads)]


def _clip(start: Any, largest: int) -> Any:
    """Starts moved inside the array; small integer types cannot hold the bound, nor reach it."""
    bound = min(largest, np.iinfo(start.dtype).max)
    return namespace(start).clip(start, 0, bound).astype(int)


def _known_components(indices: Value) -> np.ndarray:
    """Which components of the start indices are free of the latents and have a value."""
    if not indices.reads:
        return np.full(indices.shape[-1], indices.has_value)
    return indices.free_slices(indices.rank - 1)


@rule("dynamic_slice")
def dynamic_slice(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """``out[o] = v[start + o]``, with each start treated like a component of a gather."""
    v, *starts = operands
    sources: list[Any] = []
    anywhere: list[int] = []
    for d, (start, size) in enumerate(zip(starts, equation.params["slice_sizes"], strict=True)):
        offset: Any = np.arange(size)
        if size < v.shape[d]:
            if start.is_known:
                offset = _clip(start.value(), v.shape[d] - size) + offset
            else:
                anywhere.append(d)
        sources.append(along(offset, d, v.rank))
    reads = [
        lookup(analysis.mix(p, anywhere, v.rank, keepdims=True), sources, v.rank, v.rank)
        for p in v.reads
    ]
    return [union(reads, analysis.touched(starts, v.rank))]


@rule("dynamic_update_slice")
def dynamic_update_slice(
    analysis: Analysis, equation: Equation, operands: list[Value]
) -> list[Reads]:
    """Where known starts place it the update is read, elsewhere v; both, for other starts."""
    v, update, *starts = operands
    if all(start.is_constant for start in starts):
        sources, inside = [], np.ones((1,) * v.rank, bool)
        for d, start in enumerate(starts):
            begin = int(_clip(start.value(), v.shape[d] - update.shape[d]))
            source = np.full(v.shape[d], -1)
            source[begin : begin + update.shape[d]] = np.arange(update.shape[d])
            sources.append(along(source, d, v.rank))
            inside = inside & (sources[-1] >= 0)
        outside = [q for p in v.reads for q in restrict(p, ~inside, v.rank)]
        written = [lookup(p, sources, v.rank, v.rank) for p in update.reads]
        return [merge(outside + written, v.rank)]
    moved = [d for d in range(v.rank) if update.shape[d] != v.shape[d]]
    written = [analysis.mix(p, moved, v.rank, keepdims=True) for p in update.reads]
    return [union(v.reads, written, analysis.touched(starts, v.rank))]


@rule(
    "scatter",
    "scatter-add",
    "scatter_add",
    "scatter-sub",
    "scatter_sub",
    "scatter-mul",
    "scatter_mul",
    "scatter_min",
    "scatter_max",
    "scatter-min",
    "scatter-max",
)
def scatter(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Each entry of v reads itself and the updates sent to it."""
    v, indices, update = operands
    table = None
    if indices.is_constant and update.reads:
        table = _senders(equation, v, indices, update)
    if table is None:  # it may be sent any update that agrees with it along whole axes
        to_indices, to_update = _positional_axes(equation, v, update)
        sent = analysis.spread(indices, to_indices, v.rank)
        sent += analysis.spread(update, to_update, v.rank)
        return [union(v.reads, sent)]
    if table.size == 0:
        return [v.reads]
    # One more axis, over the updates sent to an entry.
    rank, shape = v.rank + 1, update.shape or (1,)
    multi = np.unravel_index(np.maximum(table, 0), shape)
    sources = [np.where(table < 0, -1, m).reshape((*v.shape, table.shape[1])) for m in multi]
    rows = [prepend_axes(p, update.rank, len(shape)) for p in update.reads]
    sent = [lookup(p, sources, len(shape), rank) for p in rows]
    return [union(v.reads, [analysis.mix(p, [v.rank], rank) for p in sent])]


def _positional_axes(
    equation: Equation, v: Value, update: Value
) -> tuple[dict[int, int], dict[int, int]]:
    """Axes of the indices, and of the update, that run along an axis of v whatever the indices."""
    numbers = equation.params["dimension_numbers"]
    axes = [d for d in range(update.rank) if d not in numbers.update_window_dims]
    to_indices = dict(
        zip(numbers.scatter_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    )
    to_update = {axes[batch]: d for batch, d in to_indices.items()}
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = [d for d in range(v.rank) if d not in dropped]
    for axis, d in zip(numbers.update_window_dims, window, strict=True):
        if update.shape[axis] == v.shape[d]:
            to_update[axis] = d
    return to_indices, to_update


def _senders(equation: Equation, v: Value, indices: Value, update: Value) -> np.ndarray | None:
    """For each entry of v the flat positions of the updates sent to it, padded with -1."""
    numbers = equation.params["dimension_numbers"]
    as_gather = jax.lax.GatherDimensionNumbers(
        offset_dims=numbers.update_window_dims,
        collapsed_slice_dims=numbers.inserted_window_dims,
        start_index_map=numbers.scatter_dims_to_operand_dims,
        operand_batching_dims=numbers.operand_batching_dims,
        start_indices_batching_dims=numbers.scatter_indices_batching_dims,
    )
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = [d for d in range(v.rank) if d not in dropped]
    sizes = [1] * v.rank
    for d, axis in zip(window, numbers.update_window_dims, strict=True):
        sizes[d] = update.shape[axis]
    # Out-of-range updates are moved inside under "clip", dropped otherwise.
    clips = equation.params["mode"] == jax.lax.GatherScatterMode.CLIP
    size = math.prod(v.shape)
    with now():
        positions = jax.lax.gather(
            np.arange(size).reshape(v.shape),
            indices.value().astype(int),
            as_gather,
            tuple(sizes),
            mode="clip" if clips else "fill",
            fill_value=-1,
        )
    target = np.asarray(positions).reshape(-1)
    sent = np.flatnonzero(target >= 0)
    order = sent[np.argsort(target[sent], kind="stable")]
    count = np.bincount(target[sent], minlength=size)
    degree = int(count.max(initial=0))
    if size * degree > MAX_ENTRIES:
        return None
    table = np.full((size, degree), -1)
    table[target[order], np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)] = order
    return table
