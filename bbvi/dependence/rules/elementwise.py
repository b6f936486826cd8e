"""Primitives whose output entry j reads entry j of every operand."""

from __future__ import annotations

from bbvi.dependence.analysis import Analysis, Reads, Value, rule
from bbvi.dependence.jaxprs import Equation
from bbvi.dependence.pointers import MAX_ENTRIES, Shape, merge, prepend_axes, restrict, union

ARITHMETIC = (
    "add sub mul div rem pow max min neg exp exp2 log log1p expm1 sqrt rsqrt cbrt square abs sign "
    "integer_pow logistic floor ceil round clamp add_any nextafter mulhi"
).split()
TRIGONOMETRIC = "sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh".split()
SPECIAL = (
    "erf erfc erf_inv lgamma digamma polygamma zeta igamma igammac igamma_grad_a random_gamma_grad "
    "regularized_incomplete_beta bessel_i0e bessel_i1e"
).split()
# The incomplete beta function iterates until all entries have converged: up to rounding, an entry
# reads only its own place.
LOGICAL = (
    "eq ne lt le gt ge eq_to lt_to le_to and or xor not is_finite shift_left population_count clz "
    "shift_right_logical shift_right_arithmetic"
).split()
CONVERSION = (
    "convert_element_type bitcast_convert_type reduce_precision real imag complex conj copy copy_p "
    "stop_gradient name pvary sharding_constraint"
).split()


def _broadcasts(shape: Shape, out: Shape) -> bool:
    """Scalars broadcast, and axes of size 1 do; any other difference is not elementwise."""
    if shape == ():
        return True
    return len(shape) == len(out) and all(m in (1, n) for m, n in zip(shape, out, strict=True))


@rule(*ARITHMETIC, *TRIGONOMETRIC, *SPECIAL, *LOGICAL, *CONVERSION)
def elementwise(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """What the operands read at the same place; scalars and axes of size 1 broadcast."""
    (out,) = equation.outvars
    if not all(_broadcasts(v.shape, out.aval.shape) for v in operands):
        return analysis.reads_everything(equation, operands)  # a bitcast that adds an axis
    rank = out.aval.ndim
    reads = []
    for position, v in enumerate(operands):
        pointers = [prepend_axes(p, v.rank, rank) for p in v.reads]
        if equation.primitive.name in ("mul", "and") and pointers:
            pointers = _without_zeros(pointers, operands[1 - position], rank)
        reads.append(pointers)
    return [union(*reads)]


def _without_zeros(pointers: Reads, other: Value, rank: int) -> Reads:
    """Zero times anything finite is zero, up to its sign: those entries read nothing.

    An infinite factor would make the log joint NaN anyway, whatever the analysis says.
    """
    if not other.is_constant or other.value().size > MAX_ENTRIES:
        return pointers
    return [q for p in pointers for q in restrict(p, other.value() != 0, rank)]


@rule("optimization_barrier", "device_put")
def one_to_one(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """Several operands, each passed on as it is."""
    return [v.reads for v in operands]


@rule("select_n")
def select_n(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """What the predicate and the cases read; a known predicate says where each case is taken."""
    predicate, *cases = operands
    rank = cases[0].rank
    reads = [prepend_axes(p, predicate.rank, rank) for p in predicate.reads]
    for number, case in enumerate(cases):
        for p in case.reads:
            reads += (
                restrict(p, predicate.value() == number, rank) if predicate.is_constant else [p]
            )
    return [merge(union(reads), rank)]
