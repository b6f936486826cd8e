"""The operation of a program from which a number that is not finite comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from bbvi._tree import is_floating
from bbvi.dependence.jaxprs import (
    DERIVATIVE_CALLS,
    Equation,
    Jaxpr,
    Variable,
    apply,
    called_jaxpr,
    evaluate,
    is_literal,
    tainted_variables,
)
from bbvi.dependence.split_inline import inline_calls, user_line

# Entries of their output depend on more than the same entry of an operand.
MIXING = frozenset(
    {"cholesky", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "eigh", "fft", "lu"}
    | {"qr", "rev", "sort", "svd", "transpose", "triangular_solve", "dot_general"}
)
# A loop is gone through step by step to the one that fails, at most so many.
MAX_LOOP_STEPS = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Where a number, or a derivative, ceases to be finite.

    Attributes:
      primitive: name of the operation.
      line: file and line it was written in; empty where that is not known.
      operands: its operands.
      value: what it gives; of a derivative, that in the operand.
      index: the first entry of the operand or the output that is not finite.
      constants: whether each operand is the same whatever the latents are.
      is_unused: of a derivative: whether nothing reads the entry, such as one that ``jnp.where``
        leaves out.
    """

    primitive: str
    line: str
    operands: tuple[np.ndarray, ...]
    value: np.ndarray
    index: tuple[int, ...]
    constants: tuple[bool, ...]
    is_unused: bool = False

    def at(self, operand: int) -> float | None:
        """The entry of an operand that goes with ``index``; None if it takes more than one."""
        array = self.operands[operand]
        if array.ndim and (array.shape != self.value.shape or self.primitive in MIXING):
            return None
        return float(array[self.index] if array.ndim else array)


def value_origin(closed: Any, inputs: Sequence[Any], is_latent: Sequence[bool]) -> Origin | None:
    """The operation that makes the one output of a program NaN or infinite.

    Found backwards from the output, along operands that are not finite: an entry that
    ``jnp.where`` leaves out is not followed.

    Args:
      closed: a closed jaxpr.
      inputs: its inputs.
      is_latent: which of them are latents.

    Returns:
      None if the output is finite, or an input is the cause.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> closed = jax.make_jaxpr(lambda z: jnp.sum(jnp.log(z) * 2.0))(jnp.ones(2))
      >>> found = value_origin(closed, [jnp.array([1.0, -3.0])], [True])
      >>> found.primitive, found.index, found.at(0)
      ('log', (1,), -3.0)
    """
    inlined = inline_calls(closed)
    return _value_origin(inlined.jaxpr, inlined.consts, inputs, is_latent, 0)


def _value_origin(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    is_latent: Sequence[bool],
    output: int,
) -> Origin | None:
    values = _all_values(jaxpr, consts, inputs)
    made_by = {var: equation for equation in jaxpr.eqns for var in equation.outvars}
    tainted = tainted_variables(jaxpr, is_latent)

    def value(var: Variable) -> np.ndarray:
        return np.asarray(var.val) if is_literal(var) else values[var]

    # The last operation that reads latents is named where what it takes is a constant.
    var, found, last = jaxpr.outvars[output], None, None
    while not is_literal(var) and var in made_by and not _is_finite(value(var)):
        equation = made_by[var]
        operands = [value(operand) for operand in equation.invars]
        is_tainted = [not is_literal(v) and v in tainted for v in equation.invars]
        found = _at(equation, operands, is_tainted, value(var)) or found
        position = equation.outvars.index(var)
        inner = _inside(equation, operands, is_tainted, position)
        if inner is not None:
            return inner if inner.line else dataclasses.replace(inner, line=user_line(equation))
        source = _source(equation, operands, value(var))
        if source is None:
            return found
        if last is None and not is_tainted[source]:
            last = found
        var = equation.invars[source]
    return last or found


def _all_values(jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> dict[Any, Any]:
    """The value of every variable, by one compiled program."""
    names: list[Variable] = []

    def run(consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        names.clear()
        kept: list[Any] = []

        def step(equation: Equation, operands: list[Any]) -> list[Any]:
            outputs = apply(equation, operands)
            names.extend(equation.outvars)
            kept.extend(outputs)
            return outputs

        evaluate(jaxpr, consts, inputs, step)
        return kept

    found = jax.jit(run)(list(consts), list(inputs))
    pairs = [*zip(jaxpr.constvars, consts, strict=True), *zip(jaxpr.invars, inputs, strict=True)]
    pairs += zip(names, found, strict=True)
    return {var: _on_host(array) for var, array in pairs}


def _on_host(array: Any) -> Any:
    """A NumPy array; a random key is left alone."""
    is_key = jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)
    return array if is_key else np.asarray(array)


def _is_finite(array: Any) -> bool:
    is_real = isinstance(array, np.ndarray) and is_floating(array)
    return not is_real or bool(np.isfinite(array).all())


def _at(
    equation: Equation, operands: list[Any], is_tainted: list[bool], out: np.ndarray
) -> Origin | None:
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(out))[0])
    if not all(isinstance(operand, np.ndarray) for operand in operands):
        return None
    constants = tuple(not mark for mark in is_tainted)
    name, line = equation.primitive.name, user_line(equation)
    return Origin(name, line, tuple(operands), out, index, constants)


def _source(equation: Equation, operands: list[Any], out: np.ndarray) -> int | None:
    """Which operand the number comes from; None if it is made here."""
    if equation.primitive.name == "select_n":
        which = np.broadcast_to(operands[0], out.shape).astype(int)
        for position, case in enumerate(operands[1:]):
            if (~np.isfinite(out) & (which == position) & ~np.isfinite(case)).any():
                return position + 1
    bad = [k for k, operand in enumerate(operands) if not _is_finite(operand)]
    return bad[0] if bad else None


def _inside(
    equation: Equation, operands: list[Any], is_tainted: list[bool], output: int
) -> Origin | None:
    """The operation inside of a call or a loop whose operands are all finite."""
    if not all(map(_is_finite, operands)):
        return None
    name, params = equation.primitive.name, equation.params
    if name in DERIVATIVE_CALLS:
        jaxpr, consts = called_jaxpr(equation)
    elif name == "cond":
        branch = params["branches"][int(operands[0])]
        jaxpr, consts = branch.jaxpr, branch.consts
        operands, is_tainted = operands[1:], [True] * len(operands[1:])
    elif name == "scan" and params["length"] <= MAX_LOOP_STEPS:
        jaxpr, consts = params["jaxpr"].jaxpr, params["jaxpr"].consts
        step = _failing_step(equation, operands)
        if step is None:
            return None
        operands, output = step
        is_tainted = [True] * len(operands)
    else:
        return None
    inlined = inline_calls(jex_core.ClosedJaxpr(jaxpr, list(consts)))
    return _value_origin(inlined.jaxpr, inlined.consts, operands, is_tainted, output)


def _failing_step(equation: Equation, operands: list[Any]) -> tuple[list[Any], int] | None:
    """Inputs of the first step of a scan with an output that is not finite, and which that is."""
    params = equation.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    fixed, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
    xs = operands[num_consts + num_carry :]
    body = jax.jit(jex_core.jaxpr_as_fun(params["jaxpr"]))
    steps = range(params["length"])
    for step in reversed(steps) if params["reverse"] else steps:
        inputs = [*fixed, *carry, *(leaf[step] for leaf in xs)]
        outputs = [_on_host(leaf) for leaf in body(*inputs)]
        bad = [k for k, leaf in enumerate(outputs) if not _is_finite(leaf)]
        if bad:
            return inputs, bad[0]
        carry = outputs[:num_carry]
    return None


def gradient_origin(closed: Any, inputs: Sequence[Any], is_latent: Sequence[bool]) -> Origin | None:
    """The operation whose derivative is NaN or infinite although that of its output is finite.

    The derivative of the one output is taken backwards, operation by operation.

    Args:
      closed: a closed jaxpr.
      inputs: its inputs.
      is_latent: which of them are latents.

    Returns:
      None if there is none, or the program cannot be differentiated.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> closed = jax.make_jaxpr(lambda z: jnp.where(z > 0, jnp.sqrt(z), 0.0))(1.0)
      >>> found = gradient_origin(closed, [jnp.array(0.0)], [True])
      >>> found.primitive, found.at(0), found.is_unused
      ('sqrt', 0.0, True)
    """
    inlined = inline_calls(closed)
    jaxpr = inlined.jaxpr
    equations: list[Equation] = []
    tainted = tainted_variables(jaxpr, is_latent)

    def run(consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        equations.clear()
        records = []
        for equation, *arrays in _backwards(jaxpr, consts, inputs):
            equations.append(equation)
            records.append(arrays)
        return records

    try:
        records = jax.jit(run)(inlined.consts, list(inputs))
    except (TypeError, ValueError, NotImplementedError):
        return None  # no derivative
    for equation, arrays in zip(equations, records, strict=True):
        operands, sent, received = jax.tree.map(np.asarray, arrays)
        if not all(map(_is_finite, sent)):
            continue
        for position, gradient in received.items():
            if _is_finite(gradient):
                continue
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(gradient))[0])
            entry = sent[0][index] if sent[0].shape == gradient.shape else sent[0]
            constants = tuple(is_literal(v) or v not in tainted for v in equation.invars)
            # The entry asked about comes first.
            order = [position, *(k for k in range(len(operands)) if k != position)]
            return Origin(
                equation.primitive.name,
                user_line(equation),
                tuple(operands[k] for k in order),
                gradient,
                index,
                tuple(constants[k] for k in order),
                is_unused=not np.any(entry),
            )
    return None


def _backwards(
    jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]
) -> Iterator[tuple[Equation, list[Any], list[Any], dict[int, Any]]]:
    """Equations from the last on: operands, derivatives of the outputs and of the operands."""
    values: dict[Variable, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(var: Variable) -> Any:
        return var.val if is_literal(var) else values[var]

    for equation in jaxpr.eqns:
        outputs = apply(equation, [read(var) for var in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    (output,) = jaxpr.outvars
    gradients = {} if is_literal(output) else {output: jnp.ones((), output.aval.dtype)}
    for equation in reversed(jaxpr.eqns):
        if not any(var in gradients for var in equation.outvars):
            continue
        operands = [read(var) for var in equation.invars]
        real = [
            k for k, v in enumerate(equation.invars) if not is_literal(v) and is_floating(v.aval)
        ]
        outs = [k for k, var in enumerate(equation.outvars) if is_floating(var.aval)]
        if not real:
            continue
        _, pull = jax.vjp(_function(equation, operands, real, outs), *(operands[k] for k in real))
        sent = [
            gradients.get(equation.outvars[k], jnp.zeros_like(values[equation.outvars[k]]))
            for k in outs
        ]
        received = dict(zip(real, pull(sent), strict=True))
        yield equation, operands, sent, received
        for k, gradient in received.items():
            var = equation.invars[k]
            gradients[var] = gradients[var] + gradient if var in gradients else gradient


def _function(
    equation: Equation, operands: list[Any], real: list[int], outs: list[int]
) -> Callable[..., list[Any]]:
    def function(*given: Any) -> list[Any]:
        replaced = list(operands)
        for position, value in zip(real, given, strict=True):
            replaced[position] = value
        outputs = apply(equation, replaced)
        return [outputs[k] for k in outs]

    return function
