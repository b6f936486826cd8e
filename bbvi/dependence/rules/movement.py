"""Primitives that move entries: each output entry is one operand entry, known in advance.

Such a primitive is described by its *sources*: for every axis of the operand, the index there that
an output entry comes from, negative where it comes from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bbvi.dependence.analysis import Analysis, Reads, Value, rule
from bbvi.dependence.jaxprs import Equation
from bbvi.dependence.pointers import (
    along,
    lookup,
    merge,
    namespace,
    prepend_axes,
    reshape,
    take,
    union,
)


def _moved(v: Value, sources: Sequence[np.ndarray], out_rank: int) -> Reads:
    return [lookup(p, sources, v.rank, out_rank) for p in v.reads]


@rule("broadcast_in_dim")
def broadcast_in_dim(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Axis k of v runs along axis ``broadcast_dimensions[k]`` of the output."""
    axes = equation.params["broadcast_dimensions"]
    return [analysis.spread(operands[0], dict(enumerate(axes)), len(equation.params["shape"]))]


@rule("transpose")
def transpose(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Axis ``permutation[k]`` of v runs along axis k of the output."""
    return [_transposed(analysis, operands[0], equation.params["permutation"])]


def _transposed(analysis: Analysis, v: Value, permutation: Sequence[int]) -> Reads:
    return analysis.spread(v, {d: k for k, d in enumerate(permutation)}, v.rank)


@rule("rev")
def rev(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Some axes in reverse."""
    v, reversed_axes = operands[0], equation.params["dimensions"]
    orders = [np.arange(n)[:: -1 if d in reversed_axes else 1] for d, n in enumerate(v.shape)]
    return [_moved(v, [along(order, d, v.rank) for d, order in enumerate(orders)], v.rank)]


@rule("slice")
def slice_(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Every ``stride``-th index from ``start`` up to ``limit``."""
    v, params = operands[0], equation.params
    strides = params["strides"] or (1,) * v.rank
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    sources = [along(np.arange(*bound), d, v.rank) for d, bound in enumerate(bounds)]
    return [_moved(v, sources, v.rank)]


@rule("split")
def split(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Consecutive runs along one axis."""
    v, axis, start, parts = operands[0], equation.params["axis"], 0, []
    for size in equation.params["sizes"]:
        source = np.arange(start, start + size)
        parts.append([take(p, axis, source, v.rank) for p in v.reads])
        start += size
    return parts


@rule("pad")
def pad(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Entries of v move apart, some out of sight; the fill counts as read everywhere."""
    v, fill = operands
    sources = []
    for d, (low, _, interior) in enumerate(equation.params["padding_config"]):
        source = np.full(equation.outvars[0].aval.shape[d], -1)
        position = low + np.arange(v.shape[d]) * (interior + 1)
        inside = (position >= 0) & (position < len(source))
        source[position[inside]] = np.arange(v.shape[d])[inside]
        sources.append(along(source, d, v.rank))
    return [union(_moved(v, sources, v.rank), [prepend_axes(p, 0, v.rank) for p in fill.reads])]


@rule("concatenate")
def concatenate(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Each operand at its own positions, disjoint from the others."""
    axis, start, reads = equation.params["dimension"], 0, []
    for v in operands:
        source = np.full(equation.outvars[0].aval.shape[axis], -1)
        source[start : start + v.shape[axis]] = np.arange(v.shape[axis])
        start += v.shape[axis]
        reads += [take(p, axis, source, v.rank) for p in v.reads]
    return [merge(reads, operands[0].rank)]


@rule("stack")
def stack(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Each operand at its own index of a new axis."""
    axis, reads = equation.params["axis"], []
    for number, v in enumerate(operands):
        source = np.where(np.arange(len(operands)) == number, 0, -1)
        widened = [p.map(lambda a: namespace(a).expand_dims(a, axis)) for p in v.reads]
        reads += [take(p, axis, source, v.rank + 1) for p in widened]
    return [merge(reads, equation.outvars[0].aval.ndim)]


@rule("unstack")
def unstack(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """One output per index of an axis, which goes."""
    v, axis = operands[0], equation.params["axis"]
    rows = [[take(p, axis, np.array([k]), v.rank) for p in v.reads] for k in range(v.shape[axis])]
    return [[p.map(lambda a: a.squeeze(axis)) for p in row] for row in rows]


@rule("tile")
def tile(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Whole copies one after the other along every axis."""
    v = operands[0]
    repeats = equation.params["reps"]
    if len(repeats) != v.rank:
        return analysis.reads_everything(equation, operands)
    sources = [
        along(np.tile(np.arange(n), r), d, v.rank)
        for d, (n, r) in enumerate(zip(v.shape, repeats, strict=True))
    ]
    return [_moved(v, sources, v.rank)]


@rule("reshape", "squeeze", "expand_dims")
def reshape_(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """The same entries in row-major order."""
    v, out = operands[0], equation.outvars[0].aval
    reads, shape = v.reads, v.shape
    order = equation.params["dimensions"] if equation.primitive.name == "reshape" else None
    if order is not None:  # column-major, say
        reads, shape = _transposed(analysis, v, order), tuple(shape[d] for d in order)
    return [[reshape(p, shape, out.shape) for p in reads]]
