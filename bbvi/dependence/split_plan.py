"""Where weights go on their way back through a log joint: the static half of the split.

A log joint ends in a linear program: sums, slices, products with constants. A weight of one at its
scalar can be moved backwards through it, as reverse-mode differentiation moves a cotangent; it
stops where an operation is not linear in the latents. The way is found from the equations alone,
without looking at a single array.

To let weights through one more primitive, add its name to one of the sets below.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bbvi.dependence.jaxprs import (
    CONTRACTIONS,
    Equation,
    Jaxpr,
    Variable,
    is_literal,
    tainted_scan_inputs,
    tainted_variables,
)
from bbvi.dependence.split_inline import inline_calls

# Every entry of every operand goes to exactly one entry of the output.
MOVES = frozenset(
    {"concatenate", "copy", "reduce_sum", "reshape", "rev", "squeeze", "stack", "transpose"}
)
# Linear in all operands together.
LINEAR = MOVES | {
    *("add", "add_any", "sub", "neg", "convert_element_type", "cumsum", "reduce_window_sum"),
    *("broadcast_in_dim", "pad", "slice", "split", "tile", "unstack"),
}
# How constants of many zeros are made.
KEEP_ZERO = MOVES | {"broadcast_in_dim", "convert_element_type"}
# Linear in these operands together; the others are indices or predicates.
INDEXED = {
    "dynamic_slice": slice(0, 1),
    "dynamic_update_slice": slice(0, 2),
    "gather": slice(0, 1),
    "scatter-add": slice(0, 3, 2),
    "select_n": slice(1, None),
}
# Some entries of an operand may go nowhere, so that their weight is zero.
SELECTIONS = frozenset({"slice", "split", "unstack", *INDEXED})
# Selections that leave out as much as they like.
CUTS = frozenset({"dynamic_slice", "gather", "slice", "split", "unstack"})
# All primitives a weight passes by their name alone.
PASSED = LINEAR | INDEXED.keys() | CONTRACTIONS | {"scan"}
# What may stand between an accumulator of a loop and its next value.
ACCUMULATIONS = frozenset({"add", "add_any", "sub", "copy", "convert_element_type"})


class Kind(NamedTuple):
    """What is known of a weight beforehand.

    Attributes:
      reads_latents: whether it may depend on the latents.
      is_masked: whether it may be zero where the value it multiplies is not even finite.
    """

    reads_latents: bool = False
    is_masked: bool = False


class Route(NamedTuple):
    """How an equation passes weights on.

    Attributes:
      outputs: positions of the outputs whose weights are passed on; others are stops.
      operands: positions of the operands they go to; of a scan, its accumulators' initial values.
      kind: of the weights passed on.
      scan: of a scan, its body.
    """

    outputs: tuple[int, ...]
    operands: tuple[int, ...]
    kind: Kind
    scan: ScanBody | None = None


class ScanBody(NamedTuple):
    """One step of a scan.

    Attributes:
      plan: the way of weights through it, from those of its outputs.
      consts: values of its constants.
    """

    plan: Plan
    consts: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The way of weights through a jaxpr.

    Attributes:
      jaxpr: the program, calls inlined.
      tainted: variables that may depend on the latents.
      zeros: variables that are zero whatever the inputs.
      weighted: variables weights arrive at; only tainted ones, others are not followed.
      routes: by the number of the equation; equations without one are stops.
      live: numbers of the equations whose values are needed.
      is_coarse: whether arrays are taken as they are, and only sums taken apart.
    """

    jaxpr: Jaxpr
    tainted: set[Variable]
    zeros: set[Variable]
    weighted: dict[Variable, Kind]
    routes: dict[int, Route]
    live: set[int]
    is_coarse: bool = False

    def reads_latents(self, operand: Variable) -> bool:
        """Whether an operand may depend on the latents."""
        return not is_literal(operand) and operand in self.tainted

    def is_zero(self, operand: Variable) -> bool:
        """Whether an operand is zero: the other branch of a mask, the start of a loop."""
        if is_literal(operand):
            return is_additive(operand.aval) and operand.val == 0
        return operand in self.zeros


def make_plan(
    jaxpr: Jaxpr,
    is_latent: Sequence[bool],
    weighted: Sequence[tuple[Variable, Kind]],
    needed: Sequence[Variable] = (),
    *,
    is_coarse: bool = False,
) -> Plan:
    """Find the way from weighted outputs back.

    Args:
      jaxpr: the program, calls inlined.
      is_latent: for each input, whether it may depend on the latents.
      weighted: outputs that carry a weight, and its kind.
      needed: outputs whose values are needed besides.
      is_coarse: whether to take arrays as they are, and only sums apart.

    Returns:
      The plan.
    """
    plan = Plan(jaxpr, tainted_variables(jaxpr, is_latent), set(), {}, {}, set(), is_coarse)
    for equation in jaxpr.eqns:
        if equation.primitive.name in KEEP_ZERO and all(map(plan.is_zero, equation.invars)):
            plan.zeros.update(equation.outvars)
    hidden = hidden_entries(plan)
    values = {var for var in needed if not is_literal(var)}

    def send(var: Variable, kind: Kind) -> None:
        if plan.reads_latents(var):
            plan.weighted[var] = merged((kind, plan.weighted.get(var, Kind())))
        elif not is_literal(var) and not plan.is_zero(var):
            values.add(var)

    for var, kind in weighted:
        send(var, kind)
    for number, equation in reversed(list(enumerate(jaxpr.eqns))):
        given = [p for p, var in enumerate(equation.outvars) if var in plan.weighted]
        if given:
            if equation.primitive.name == "scan":
                # One that is read elsewhere too is computed anyway: it stays whole.
                given_only = [p for p in given if equation.outvars[p] not in values]
                route = scan_route(plan, equation, given_only)
            else:
                route = linear_route(plan, equation, given, hidden)
            values.update(equation.outvars[p] for p in given if p not in route.outputs)
            if route.outputs:
                plan.routes[number] = route
                for p, var in enumerate(equation.invars):
                    if p in route.operands:
                        send(var, route.kind)
                    elif not is_literal(var):
                        values.add(var)
        if any(var in values for var in equation.outvars):
            plan.live.add(number)
            values.update(var for var in equation.invars if not is_literal(var))
    return plan


def linear_route(plan: Plan, equation: Equation, outputs: list[int], hidden: Any) -> Route:
    """The route through an equation that is no loop; with no outputs if it is a stop."""
    kind = merged(plan.weighted[equation.outvars[p]] for p in outputs)
    operands = linear_operands(plan, equation, kind, hidden)
    rest = [var for p, var in enumerate(equation.invars) if p not in operands]
    passed = Kind(
        kind.reads_latents or any(map(plan.reads_latents, rest)),
        kind.is_masked or equation.primitive.name in SELECTIONS,
    )
    return Route(tuple(outputs) if operands else (), operands, passed)


def linear_operands(
    plan: Plan, equation: Equation, kind: Kind, hidden: Mapping[Variable, int]
) -> tuple[int, ...]:
    """Operands to which the weight of an equation's output is passed on; none: it is a stop."""
    name, operands, (output, *_) = equation.primitive.name, equation.invars, equation.outvars
    reading = [p for p, var in enumerate(operands) if plan.reads_latents(var)]
    if plan.is_coarse and output.aval.shape and name not in MOVES:
        return ()
    if name in LINEAR or name in INDEXED:
        positions = range(len(operands))[INDEXED.get(name, slice(None))]
        is_linear = set(reading) <= set(positions) and is_linear_here(equation, positions)
        # Cut out of what is a factor itself, the entries left out would be zeros.
        is_cut = name in CUTS and operands[0] not in hidden
        is_cut = is_cut and operands[0].aval.size >= output.aval.size
        return tuple(positions) if is_linear and not is_cut else ()
    if name in {"mul", "div"} and is_additive(output.aval):
        if name == "div" and (0 not in reading or not is_floating(output.aval)):
            return ()
        if len(reading) == 1:
            return tuple(reading)
        # w(z) * sum_j v_j(z): the sum is worth uncovering, w becomes part of the weight.
        candidates = reading if name == "mul" else [0]
        larger = max(candidates, key=lambda p: hidden.get(operands[p], 0))
        is_worthwhile = hidden.get(operands[larger], 0) > 0 and operands[0] is not operands[1]
        return (larger,) if is_worthwhile else ()
    if name in CONTRACTIONS and is_floating(output.aval) and not kind.is_masked:
        larger = max(reading, key=lambda p: operands[p].aval.size)
        has_gain = operands[larger].aval.size > output.aval.size
        # Weights that read latents would be mixed: only for finer factors.
        mixes = kind.reads_latents or len(reading) == 2
        return (larger,) if has_gain or not mixes else ()
    return ()


def hidden_entries(plan: Plan) -> dict[Variable, int]:
    """For each variable that a weight passes, how many more entries the sums it is made of have."""
    hidden: dict[Variable, int] = {}
    for equation in plan.jaxpr.eqns:
        name = equation.primitive.name
        reading = [var for var in equation.invars if plan.reads_latents(var)]
        is_product = name in {"mul", "div"} and (
            len(reading) == 1 or any(v in hidden for v in reading)
        )
        if not reading or not (name in PASSED or is_product):
            continue
        for output in equation.outvars:
            own = 0
            if name in {"reduce_sum", "dot_general"}:
                own = max(0, max(var.aval.size for var in reading) - output.aval.size)
            elif name == "scan":
                own = equation.params["length"]
            hidden[output] = own + max(hidden.get(var, 0) for var in reading)
    return hidden


def is_linear_here(equation: Equation, positions: Sequence[int]) -> bool:
    """Whether a primitive that is linear is so with these types and parameters."""
    operands = [equation.invars[p].aval for p in positions]
    outputs = [var.aval for var in equation.outvars]
    if not all(map(is_additive, (*operands, *outputs))):
        return False
    if equation.primitive.name == "convert_element_type":
        (before,), (after,) = operands, outputs
        is_as_wide = after.dtype.itemsize >= before.dtype.itemsize
        return is_floating(after) or (is_as_wide and not is_floating(before))
    if equation.primitive.name == "gather":  # not if it puts a constant out of bounds
        is_filling = equation.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
        return not is_filling or equation.params["fill_value"] == 0
    return True


def scan_route(plan: Plan, equation: Equation, outputs: list[int]) -> Route:
    """The route into the body of a scan: for accumulators and per-step outputs."""
    num_consts, num_carry = equation.params["num_consts"], equation.params["num_carry"]
    body = inline_calls(equation.params["jaxpr"])
    carry = body.jaxpr.invars[num_consts : num_consts + num_carry]
    split = [
        p
        for p in outputs
        if is_additive(equation.outvars[p].aval)
        and (p >= num_carry or is_accumulator(body.jaxpr, carry[p], body.jaxpr.outvars[p]))
    ]
    if not split:
        return Route((), (), Kind())
    accumulators = [p for p in split if p < num_carry]
    kind = merged(plan.weighted[equation.outvars[p]] for p in split)
    body_plan = make_plan(
        body.jaxpr,
        tainted_scan_inputs(equation, [plan.reads_latents(var) for var in equation.invars]),
        [(body.jaxpr.outvars[p], kind) for p in split],
        [body.jaxpr.outvars[p] for p in range(num_carry) if p not in accumulators],
        is_coarse=plan.is_coarse,
    )
    initial = tuple(num_consts + p for p in accumulators)
    return Route(tuple(split), initial, kind, ScanBody(body_plan, body.consts))


def is_accumulator(body: Jaxpr, carried_in: Variable, carried_out: Variable) -> bool:
    """Whether the next value is the last one plus terms that do not read it."""
    readers = collections.defaultdict(list)
    for equation in body.eqns:
        for var in equation.invars:
            if not is_literal(var):
                readers[var].append(equation)
    for var in body.outvars:
        if not is_literal(var):
            readers[var].append(None)
    var = carried_in
    while len(readers[var]) == 1 and readers[var] != [None]:
        (equation,) = readers[var]
        is_subtracted = equation.primitive.name == "sub" and equation.invars[1] is var
        if equation.primitive.name not in ACCUMULATIONS or is_subtracted:
            return False
        if not is_linear_here(equation, range(len(equation.invars))):
            return False
        (var,) = equation.outvars
        if var.aval.shape != carried_in.aval.shape:
            return False
    return readers[var] == [None] and var is carried_out


def merged(kinds: Iterable[Kind]) -> Kind:
    """What is known of a sum of weights."""
    return Kind(*(any(flags) for flags in zip(*kinds, strict=True)))


def is_floating(aval: Any) -> bool:
    """Whether an array holds real floating-point numbers."""
    return jnp.issubdtype(aval.dtype, jnp.floating)


def is_additive(aval: Any) -> bool:
    """Whether sums of entries are sums of numbers: floats, and integers that do not wrap."""
    is_wide = jnp.issubdtype(aval.dtype, jnp.signedinteger) and aval.dtype.itemsize >= 4
    return is_floating(aval) or is_wide
