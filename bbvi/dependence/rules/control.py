"""Calls, branches and loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from bbvi.dependence.analysis import Analysis, Reads, Value, now, rule
from bbvi.dependence.jaxprs import (
    CALLS,
    DERIVATIVE_CALLS,
    Equation,
    apply,
    called_jaxpr,
    evaluate,
    tainted_scan_inputs,
)
from bbvi.dependence.pointers import (
    Pointer,
    merge,
    prepend_axes,
    same,
    simplify,
    take,
    union,
)

# Steps back that the carry of a loop may remember before it is taken to read everything.
MAX_MEMORY = 8


@rule(*CALLS, *DERIVATIVE_CALLS)
def call(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """What the called program reads."""
    jaxpr, consts = called_jaxpr(equation)
    return [out.reads for out in analysis.run(jaxpr, consts, operands)]


@rule("cond")
def cond(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """What any branch reads, and what decides between them."""
    index, *args = operands
    branches = equation.params["branches"]
    if index.is_constant:
        branches = [branches[int(np.clip(index.value(), 0, len(branches) - 1))]]
    results = [analysis.run(branch.jaxpr, branch.consts, args) for branch in branches]
    return [
        union(
            *[result[k].reads for result in results],
            [prepend_axes(p, 0, out.aval.ndim) for p in index.reads],
        )
        for k, out in enumerate(equation.outvars)
    ]


@rule("while")
def while_loop(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """A fixed point over the carry; every carry also reads what the stopping rule reads."""
    params = equation.params
    num_stop, num_body = params["cond_nconsts"], params["body_nconsts"]
    stop_consts = operands[:num_stop]
    body_consts = operands[num_stop : num_stop + num_body]
    carry = [Value(v.shape, v.reads) for v in operands[num_stop + num_body :]]
    stop, body = params["cond_jaxpr"], params["body_jaxpr"]
    for _ in range(MAX_MEMORY):
        (decision,) = analysis.run(stop.jaxpr, stop.consts, stop_consts + carry)
        results = analysis.run(body.jaxpr, body.consts, body_consts + carry)
        grown = [
            Value(
                old.shape,
                union(old.reads, new.reads, [prepend_axes(p, 0, old.rank) for p in decision.reads]),
            )
            for old, new in zip(carry, results, strict=True)
        ]
        if all(_equal(a.reads, b.reads) for a, b in zip(grown, carry, strict=True)):
            return [v.reads for v in carry]
        carry = grown
    return analysis.reads_everything(equation, operands)


def _equal(left: Reads, right: Reads) -> bool:
    return len(left) == len(right) and all(any(same(p, q) for q in right) for p in left)


@rule("scan")
def scan(analysis: Analysis, equation: Equation, operands: list[Value]) -> list[Reads]:
    """All steps at once: the body is vectorised over time, so that pointers keep a time axis.

    The carry is the least fixed point of ``carry[t] = body(carry[t - 1], xs[t - 1])``, which is
    reached after as many sweeps as the loop has memory; a longer memory is widened.
    """
    params = equation.params
    length, is_reversed = params["length"], params["reverse"]
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts = operands[:num_consts]
    init = operands[num_consts : num_consts + num_carry]
    xs = operands[num_consts + num_carry :]
    if length == 0:
        return [v.reads for v in init] + [[] for _ in equation.outvars[num_carry:]]
    body = _over_time(params["jaxpr"], num_consts, length)
    trajectories = _free_trajectories(equation, operands)

    first = np.zeros(length, bool)
    first[-1 if is_reversed else 0] = True
    previous = np.arange(length) + (1 if is_reversed else -1)
    previous[first] = -1
    shapes = [(length, *v.shape) for v in init]
    starts = [[_at_time(p, v.rank, first) for p in v.reads] for v in init]

    def as_carry(reads: list[Reads]) -> list[Value]:
        return [
            trajectories.get(k) or Value(shapes[k], merge(reads[k], len(shapes[k])))
            for k in range(num_carry)
        ]

    def sweep(carry: list[Value]) -> list[Value]:
        return analysis.run(body.jaxpr, body.consts, consts + carry + xs)

    carry = as_carry(starts)
    for _ in range(MAX_MEMORY + 2):
        outputs = sweep(carry)
        shifted = [
            [take(p, 0, previous, out.rank) for p in out.reads] for out in outputs[:num_carry]
        ]
        grown = as_carry([union(s, t) for s, t in zip(starts, shifted, strict=True)])
        if all(_equal(a.reads, b.reads) for a, b in zip(grown, carry, strict=True)):
            break
        carry = grown
    else:  # any step may read anything that enters the loop
        carry = as_carry([analysis.touched(operands, len(shape)) for shape in shapes])
        outputs = sweep(carry)

    last = np.array([0 if is_reversed else length - 1])

    def at_end(p: Pointer, out: Value) -> Pointer:
        end = take(p, 0, last, out.rank).map(lambda a: a[0])
        return simplify(end, out.rank - 1, analysis.leaf_shapes[p.leaf])

    final = [[at_end(p, out) for p in out.reads] for out in outputs[:num_carry]]
    return final + [out.reads for out in outputs[num_carry:]]


def _over_time(body: Any, num_consts: int, length: int) -> Any:
    """The body as one program over all steps: constants as they are, the rest with a time axis."""
    function = jex_core.jaxpr_as_fun(body)
    shapes = [
        jax.ShapeDtypeStruct(a.shape if k < num_consts else (length, *a.shape), a.dtype)
        for k, a in enumerate(body.in_avals)
    ]
    axes = [None if k < num_consts else 0 for k in range(len(shapes))]
    return jax.make_jaxpr(jax.vmap(function, in_axes=axes, axis_size=length))(*shapes)


def _at_time(p: Pointer, rank: int, when: np.ndarray) -> Pointer:
    """A pointer of the initial carry as one of the carry over time: it holds at one step."""
    q = p.map(lambda a: a[None])
    mask = when.reshape((len(when),) + (1,) * (q.ndim(rank + 1) - 1))
    return dataclasses.replace(q, mask=mask if q.mask is None else q.mask & mask)


def _free_trajectories(equation: Equation, operands: list[Value]) -> dict[int, Value]:
    """Carries free of the latents, such as loop counters: their values at all steps are known."""
    params = equation.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    body, length = params["jaxpr"], params["length"]
    tainted = tainted_scan_inputs(equation, [bool(v.reads) for v in operands])
    free = [k for k in range(num_carry) if not tainted[num_consts + k]]
    shapes = {k: (length, *operands[num_consts + k].shape) for k in free}
    inputs = [i for i, mark in enumerate(tainted) if not mark]
    if not all(operands[i].is_known for i in inputs):
        return {k: Value(shape) for k, shape in shapes.items()}
    cache: list[dict[int, Any]] = []

    def trajectory(number: int) -> Any:
        if not cache:
            values = {i: operands[i].value() for i in inputs}
            with now(*values.values()):
                cache.append(_run_free(params, body, values, free))
        return cache[0][number]

    concrete = all(operands[i].is_concrete for i in inputs)
    return {
        k: Value(shape, (), _bind(trajectory, k), is_concrete=concrete)
        for k, shape in shapes.items()
    }


def _bind(function: Callable[[int], Any], number: int) -> Callable[[], Any]:
    return lambda: function(number)


def _run_free(
    params: dict[str, Any], body: Any, values: dict[int, Any], free: list[int]
) -> dict[int, Any]:
    """Values before each step of the carries ``free``; what reads latents is never computed."""
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts = {i: value for i, value in values.items() if i < num_consts}

    def step_if_known(equation: Equation, operands: list[Any]) -> list[Any]:
        is_known = all(operand is not None for operand in operands)
        return apply(equation, operands) if is_known else [None] * len(equation.outvars)

    def step(carry: dict[int, Any], x: dict[int, Any]) -> tuple[dict[int, Any], dict[int, Any]]:
        known = consts | {num_consts + k: value for k, value in carry.items()} | x
        args = [known.get(i) for i in range(len(body.in_avals))]
        outputs = evaluate(body.jaxpr, body.consts, args, step_if_known)
        return {k: outputs[k] for k in free}, carry

    _, history = jax.lax.scan(
        step,
        {k: jnp.asarray(values[num_consts + k]) for k in free},
        {i: value for i, value in values.items() if i >= num_consts + num_carry},
        length=params["length"],
        reverse=params["reverse"],
    )
    return history
