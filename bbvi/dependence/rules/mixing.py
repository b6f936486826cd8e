"""Primitives whose output entry reads all operand entries along some axes."""

from __future__ import annotations

import numpy as np

from bbvi.dependence.analysis import Analysis, Reads, Value, rule
from bbvi.dependence.jaxprs import Equation
from bbvi.dependence.pointers import along, lookup, union

# Linear algebra works on the last axes; all axes before them are a batch.
NUM_CORE_AXES = {
    "cholesky": 2,
    "lu": 2,
    "qr": 2,
    "geqrf": 2,
    "householder_product": 2,
    "eigh": 2,
    "eig": 2,
    "svd": 2,
    "schur": 2,
    "hessenberg": 2,
    "tridiagonal": 2,
    "tridiagonal_solve": 2,
    "lu_pivots_to_permutation": 1,
}


@rule(
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
    "argmax",
    "argmin",
)
def reduce(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """All entries along the reduced axes."""
    axes, (v,) = equation.params["axes"], operands
    return [[analysis.mix(p, axes, v.rank) for p in v.reads]]


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """The whole axis rather than the prefix: coarser than the truth."""
    axis, (v,) = equation.params["axis"], operands
    return [[analysis.mix(p, [axis], v.rank, keepdims=True) for p in v.reads]]


@rule("sort")
def sort(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Operands are reordered together: all entries of all of them along the axis."""
    axis = equation.params["dimension"]
    reads = union(
        *[[analysis.mix(p, [axis], v.rank, keepdims=True) for p in v.reads] for v in operands]
    )
    return [reads] * len(equation.outvars)


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def reduce_window(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """The whole of every axis that a window spans, moves or dilates: coarser than the truth."""
    (v,), params = operands, equation.params
    windows = zip(
        *(params["window_dimensions"], params["window_strides"], params["padding"]),
        params["base_dilation"],
        strict=True,
    )
    axes = [d for d, window in enumerate(windows) if window != (1, 1, (0, 0), 1)]
    return [[analysis.mix(p, axes, v.rank, keepdims=True) for p in v.reads]]


@rule("top_k")
def top_k(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """All entries along the axis."""
    (v,) = operands
    axis = equation.params.get("axis", -1) % v.rank
    reads = [analysis.mix(p, [axis], v.rank, keepdims=True) for p in v.reads]
    return [reads] * len(equation.outvars)


@rule("fft")
def fft(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """All entries along the transformed axes."""
    (v,) = operands
    axes = range(v.rank - len(equation.params["fft_lengths"]), v.rank)
    return [[analysis.mix(p, axes, v.rank, keepdims=True) for p in v.reads]]


@rule(*NUM_CORE_AXES)
def linear_algebra(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """All entries of the matrices, but matrices of a batch stay apart."""
    num_batch = min(v.rank for v in operands) - NUM_CORE_AXES[equation.primitive.name]
    batch = operands[0].shape[: max(num_batch, 0)]
    is_batched = num_batch > 0 and all(v.shape[:num_batch] == batch for v in operands)
    if not is_batched or any(out.aval.shape[:num_batch] != batch for out in equation.outvars):
        return analysis.reads_everything(equation, operands)
    to = {d: d for d in range(num_batch)}
    return [
        union(*[analysis.spread(v, to, out.aval.ndim) for v in operands])
        for out in equation.outvars
    ]


@rule("triangular_solve")
def triangular_solve(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Right-hand sides stay apart: a shared matrix solves for a batch of them as its columns."""
    matrix, sides = operands
    to = {d: d for d in range(sides.rank - 2)}
    free = sides.rank - (1 if equation.params["left_side"] else 2)
    reads = analysis.spread(sides, to | {free: free}, sides.rank)
    return [union(reads, analysis.spread(matrix, to, sides.rank))]


@rule("custom_linear_solve")
def linear_solve(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """A call of the solver, which stands beside the operator and its transpose."""
    lengths, solve = equation.params["const_lengths"], equation.params["jaxprs"].solve
    start = lengths.matvec + lengths.vecmat
    args = operands[start : start + lengths.solve] + operands[sum(lengths) :]
    return [out.reads for out in analysis.run(solve.jaxpr, solve.consts, args)]


@rule("conv_general_dilated")
def convolution(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Each image of the batch is read by its own outputs; positions and channels mix."""
    if equation.params["batch_group_count"] != 1:
        return analysis.reads_everything(equation, operands)
    image, kernel = operands
    numbers = equation.params["dimension_numbers"]
    to = {numbers.lhs_spec[0]: numbers.out_spec[0]}
    reads = analysis.spread(image, to, image.rank)
    return [union(reads, analysis.touched([kernel], image.rank))]


@rule("dot_general")
def dot_general(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Output axes: batch, free axes of the left operand, free axes of the right operand."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = operands
    num_batch, rank = len(left_batch), equation.outvars[0].aval.ndim
    left_free = [d for d in range(left.rank) if d not in (*left_sum, *left_batch)]
    right_free = [d for d in range(right.rank) if d not in (*right_sum, *right_batch)]
    to_left = {d: k for k, d in enumerate((*left_batch, *left_free))}
    to_right = {d: k for k, d in enumerate(right_batch)}
    to_right |= {d: num_batch + len(left_free) + k for k, d in enumerate(right_free)}

    reads = []
    for v, w, w_sum, v_to, w_to in (
        (left, right, right_sum, to_left, to_right),
        (right, left, left_sum, to_right, to_left),
    ):
        table = None
        if v.reads and w.is_constant and w.rank == 2 and len(w_sum) == 1 and not num_batch:
            table = _nonzero_columns(w.value() if w_sum[0] == 1 else w.value().T)
        if table is None:
            reads += analysis.spread(v, v_to, rank)
            continue
        # One more axis for the entries of the sum that the sparse matrix keeps.
        (out_axis,) = w_to.values()
        shape = [1] * rank + [table.shape[1]]
        shape[out_axis] = table.shape[0]
        sources = [
            along(np.arange(n), v_to[d], rank + 1) if d in v_to else table.reshape(shape)
            for d, n in enumerate(v.shape)
        ]
        for p in v.reads:
            reads.append(analysis.mix(lookup(p, sources, v.rank, rank + 1), [rank], rank + 1))
    return [union(reads)]


def _nonzero_columns(matrix: np.ndarray) -> np.ndarray | None:
    """For each row the columns that are not zero, padded with -1; None for a dense matrix."""
    nonzero = matrix != 0
    degree = int(nonzero.sum(axis=1).max(initial=0))
    if degree > matrix.shape[1] // 2 or degree == 0:
        return None
    columns = np.argsort(~nonzero, axis=1, kind="stable")[:, :degree]
    return np.where(np.take_along_axis(nonzero, columns, axis=1), columns, -1)
