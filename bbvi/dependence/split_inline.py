"""One flat list of equations for a program with calls in it, each with its line of the source."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.extend import core as jex_core
from jax.extend import source_info_util
from jax.extend.core.primitives import convert_element_type_p

from bbvi._log_joint import FOREIGN
from bbvi.dependence.jaxprs import (
    CALLS,
    CONTRACTIONS,
    Equation,
    Jaxpr,
    Variable,
    called_jaxpr,
    is_literal,
)

FRAME = re.compile(r"(?P<file>.+?):(?P<line>\d+)(:\d+)? \(.*\)")


def inline_calls(closed: Any) -> Any:
    """The same program with the equations of what is called in place of the calls.

    Equations are copied, never traced again: that keeps where each was written, rules of
    differentiation, and time.

    Args:
      closed: a closed jaxpr.

    Returns:
      A closed jaxpr of the same inputs and outputs.
    """
    equations: list[Equation] = []
    constants: dict[Variable, Any] = {}

    def copy(
        jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Variable], call: Equation | None
    ) -> list[Variable]:
        names = dict(zip(jaxpr.invars, inputs, strict=True))
        names |= {var: jex_core.Var(var.aval) for var in jaxpr.constvars}
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            constants[names[var]] = value

        def read(var: Variable) -> Variable:
            return var if is_literal(var) else names[var]

        for equation in jaxpr.eqns:
            operands = [read(var) for var in equation.invars]
            # What JAX itself jits has no line of its own: it takes that of the call.
            source = equation if call is None or user_line(equation) else call
            if equation.primitive.name in CALLS:
                outputs = copy(*called_jaxpr(equation), operands, source)
            else:
                outputs = [jex_core.Var(var.aval) for var in equation.outvars]
                copied = equation.replace(
                    invars=operands, outvars=outputs, source_info=source.source_info
                )
                equations.extend(_with_equal_dtypes(copied))
            names.update(zip(equation.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    outvars = copy(closed.jaxpr, closed.consts, closed.jaxpr.invars, None)
    jaxpr = closed.jaxpr.replace(constvars=list(constants), eqns=equations, outvars=outvars)
    return jex_core.ClosedJaxpr(jaxpr, list(constants.values()))


def _with_equal_dtypes(equation: Equation) -> list[Equation]:
    """A contraction with its operands cast to the result's dtype first; any other as it is.

    JAX contracts integers with floats directly, but a weight for an integer would be one too.
    """
    dtype = equation.outvars[0].aval.dtype if equation.outvars else None
    casts = []
    operands = list(equation.invars)
    if equation.primitive.name in CONTRACTIONS:
        for position, var in enumerate(operands):
            if var.aval.dtype == dtype:
                continue
            operands[position] = jex_core.Var(var.aval.update(dtype=dtype))
            casts.append(
                equation.replace(
                    primitive=convert_element_type_p,
                    invars=[var],
                    outvars=[operands[position]],
                    params={"new_dtype": dtype, "weak_type": False, "sharding": None},
                )
            )
    return [*casts, equation.replace(invars=operands)]


def label(equation: Equation) -> str:
    """What an equation does and where: ``square at model.py:10``."""
    line = user_line(equation)
    return f"{equation.primitive.name} at {line}" if line else equation.primitive.name


def user_line(equation: Equation) -> str:
    """File and line an equation was written in, the innermost outside libraries; may be empty."""
    return line_of(equation.source_info)


@functools.lru_cache(maxsize=4096)  # a loop of 200 terms asks 200 times for each of its lines
def line_of(source_info: Any) -> str:
    """File and line of the innermost frame outside libraries.

    Tracebacks are no part of JAX's public interface. Where they cannot be read labels tell less
    and nothing else changes.
    """
    try:
        frames = source_info_util.summarize(source_info, num_frames=100)
    except (AttributeError, TypeError):
        return ""
    found = [match for match in map(FRAME.fullmatch, reversed(frames.splitlines())) if match]
    own = [match for match in found if not any(path in match["file"] for path in FOREIGN)]
    return f"{Path(own[0]['file']).name}:{own[0]['line']}" if own else ""
