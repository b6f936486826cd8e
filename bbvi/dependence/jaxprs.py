"""Reading and running jaxprs: what the split of a log joint and its analysis share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core as jex_core
from jax.extend import source_info_util

Jaxpr = Any
Equation = Any
Variable = Any

# Primitives that only call another jaxpr, which is then analysed in their place. Calls with a
# derivative rule of their own are among them for dependence, but are never inlined: that would
# lose the rule.
CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
# Linear in either operand, and sums over entries.
CONTRACTIONS = frozenset({"dot_general", "conv_general_dilated"})
DERIVATIVE_CALLS = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


def is_literal(var: Variable) -> bool:
    """Whether an operand is a constant written into the equation."""
    return isinstance(var, jex_core.Literal)


def called_jaxpr(equation: Equation) -> tuple[Jaxpr, Sequence[Any]]:
    """The jaxpr a call primitive runs, and its constants."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in equation.params:
            inner = equation.params[name]
            return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
    raise NotImplementedError(f"{equation.primitive.name} has no jaxpr among its parameters")


def apply(equation: Equation, operands: Sequence[Any]) -> list[Any]:
    """The outputs of one equation at these operands; equations traced keep its line of source."""
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # before jax 0.10
    with source_info_util.user_context(equation.source_info.traceback):
        out = equation.primitive.bind(*functions, *operands, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    step: Callable[[Equation, list[Any]], Sequence[Any]] = apply,
    as_value: Callable[[Any], Any] = lambda constant: constant,
) -> list[Any]:
    """Run a jaxpr equation by equation.

    Args:
      jaxpr: what to run.
      consts: values of its constants, already in the domain ``step`` works on.
      args: values of its inputs.
      step: ``(equation, operands) -> outputs``.
      as_value: turns a literal into the domain of ``step``.

    Returns:
      The outputs.
    """
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))

    def read(var: Variable) -> Any:
        return as_value(var.val) if is_literal(var) else env[var]

    for equation in jaxpr.eqns:
        outputs = step(equation, [read(var) for var in equation.invars])
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def tainted_variables(jaxpr: Jaxpr, is_tainted: Sequence[bool]) -> set[Variable]:
    """Variables that may depend on the marked inputs."""
    tainted = {var for var, mark in zip(jaxpr.invars, is_tainted, strict=True) if mark}
    for equation in jaxpr.eqns:
        if any(not is_literal(var) and var in tainted for var in equation.invars):
            tainted.update(equation.outvars)
    return tainted


def tainted_scan_inputs(equation: Equation, is_tainted: Sequence[bool]) -> list[bool]:
    """Which inputs of a scan's body may depend on the marked operands: a fixed point."""
    num_consts, num_carry = equation.params["num_consts"], equation.params["num_carry"]
    body, carry = equation.params["jaxpr"].jaxpr, slice(num_consts, num_consts + num_carry)
    marks = list(is_tainted)
    while True:
        tainted = tainted_variables(body, marks)
        returned = [not is_literal(var) and var in tainted for var in body.outvars[:num_carry]]
        grown = [old or new for old, new in zip(marks[carry], returned, strict=True)]
        if grown == marks[carry]:
            return marks
        marks[carry] = grown


def all_equations(jaxpr: Jaxpr) -> Iterator[Equation]:
    """The equations of a jaxpr, each followed by those of the programs among its parameters."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from all_equations(getattr(inner, "jaxpr", inner))


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
