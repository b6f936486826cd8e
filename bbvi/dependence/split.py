"""A scalar log joint as the arrays of terms it is the sum of."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._tree import is_floating, named_leaves
from bbvi._types import Data, Latents, LogJoint, PyTree
from bbvi.dependence.jaxprs import CONTRACTIONS, Equation, Variable, apply, is_literal
from bbvi.dependence.split_inline import inline_calls, label
from bbvi.dependence.split_plan import MOVES, Kind, Plan, Route, ScanBody, make_plan

FREE = "free of the latents"
# Above this many factors, those of one line and shape are stacked: the terms of a Python loop.
MAX_UNSTACKED = 32


class Factors(NamedTuple):
    """The terms of a log joint.

    Attributes:
      arrays: factor arrays, whose entries sum to the log joint.
      labels: for each array the operation that made it and its line: ``square at model.py:10``.
    """

    arrays: list[Array]
    labels: list[str]


def additive_factors(
    log_joint: LogJoint, x: Data, z: Latents, *model_args: PyTree, is_coarse: bool = False
) -> Factors:
    r"""Split a log joint into factor arrays, none of them reduced yet.

    .. math::
      \log p(x, z) = \sum_k \sum_j F_{kj}(x, z)

    A weight of one moves from the scalar backwards through every operation linear in the latents,
    by the transpose of each, and stops where one is not: there weight times value is a factor.
    One step is :math:`\langle w, A v + b \rangle = \langle A^\top w, v \rangle + \langle w, b
    \rangle`, so that the sum is exact up to rounding, for every z, and so are its derivatives.

    What a mask leaves out may be NaN or infinite: it does not count.

    Args:
      log_joint: ``(x, z, *model_args) -> []``.
      x: data.
      z: one draw of the latents.
      *model_args: learned parameters of the model, if it has any.
      is_coarse: whether to stop at arrays that are summed, whatever they are made of: fewer and
        larger terms, of more latents each, which cost no more than the log joint itself.

    Returns:
      Factors in the order in which the log joint makes them, then the sum of all terms free of
      the latents, if there are any.

    Raises:
      ValueError: ``log_joint`` does not return one real scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return jnp.sum(-0.5 * z**2) + jnp.sum(-0.5 * (x - z) ** 2) - 3.0
      >>> factors = additive_factors(log_joint, jnp.ones(4), jnp.zeros(4))
      >>> [array.shape for array in factors.arrays], factors.labels[-1]
      ([(4,), (4,), ()], 'free of the latents')
    """
    declared = getattr(log_joint, "declared_factors", None)
    if declared is not None:  # a FactorizedLogJoint
        return declared(x, z, *model_args)
    arguments = jax.tree.map(jnp.asarray, (x, z, *model_args))
    closed = inline_calls(jax.make_jaxpr(log_joint)(*arguments))
    if [(var.aval.shape, is_floating(var.aval)) for var in closed.jaxpr.outvars] != [((), True)]:
        got = [str(var.aval) for var in closed.jaxpr.outvars]
        raise ValueError(f"log_joint must return one real scalar, got {got}; sum its terms.")
    (output,) = closed.jaxpr.outvars
    names = [
        f"latent {name}" if position == 1 else None
        for position, argument in enumerate(arguments)
        for name in named_leaves(argument, "z")
    ]
    is_latent = [name is not None for name in names]
    plan = make_plan(closed.jaxpr, is_latent, [(output, Kind())], is_coarse=is_coarse)
    walk = Walk(plan, closed.consts, jax.tree.leaves(arguments))
    walk.send(output, np.ones((), output.aval.dtype), Kind(), FREE)
    with np.errstate(all="ignore"):  # weights that are numbers overflow in silence, as arrays do
        walk.run()
    for var, name in zip(closed.jaxpr.invars, names, strict=True):
        walk.stop(var, str(name))
    factors = stacked(walk.factors[::-1])
    if walk.free:
        factors.append((FREE, total(walk.free)))
    return Factors([jnp.asarray(array) for _, array in factors], [name for name, _ in factors])


class Walk:
    """Moves weights backwards through one run of a program, as its plan says.

    A weight of no axes stands for an array of any shape with that one value. It stays a number
    where it can: nothing is traced for the sums and constants of a log joint.

    Attributes:
      factors: label and array of every factor found so far, last ones first.
      free: sums of terms free of the latents.
    """

    def __init__(self, plan: Plan, consts: Sequence[Any], inputs: Sequence[Any]) -> None:
        self.plan = plan
        self.values: dict[Variable, Any] = dict(zip(plan.jaxpr.constvars, consts, strict=True))
        self.values |= dict(zip(plan.jaxpr.invars, inputs, strict=True))
        for number, equation in enumerate(plan.jaxpr.eqns):
            if number in plan.live:
                outputs = apply(equation, [self.read(var) for var in equation.invars])
                self.values.update(zip(equation.outvars, outputs, strict=True))
        self.weights: dict[Variable, Any] = {}
        self.factors: list[tuple[str, Array]] = []
        self.free: list[Any] = []

    def read(self, operand: Variable) -> Any:
        """The value of an operand; None if it is not needed."""
        if is_literal(operand):
            return np.asarray(operand.val, operand.aval.dtype)
        return self.values.get(operand)

    def send(self, operand: Variable, weight: Any, kind: Kind, name: str) -> None:
        """Add to the weight of an operand; one free of the latents is a term already."""
        if self.plan.reads_latents(operand):
            before = self.weights.get(operand)
            self.weights[operand] = weight if before is None else before + weight
            return
        if self.plan.is_zero(operand):
            return
        value = self.read(operand)
        if np.ndim(weight) == 0 and np.ndim(value):
            value = jnp.sum(value)  # what the entries read, the weight reads
        term = product(weight, value, is_masked=kind.is_masked)
        if kind.reads_latents:
            self.factors.append((name, term))
        else:
            self.free.append(jnp.sum(term) if np.ndim(term) else term)

    def stop(self, var: Variable, name: str) -> None:
        """Turn a variable and the weight it has, if any, into a factor."""
        if var in self.weights:
            is_masked = self.plan.weighted[var].is_masked
            term = product(self.weights.pop(var), self.values[var], is_masked=is_masked)
            self.factors.append((name, term))

    def run(self) -> None:
        """Move all weights back until they have stopped or stand at the inputs."""
        for number, equation in reversed(list(enumerate(self.plan.jaxpr.eqns))):
            if not any(var in self.weights for var in equation.outvars):
                continue
            route = self.plan.routes.get(number)
            passed = () if route is None else route.outputs
            for position, var in enumerate(equation.outvars):
                if position not in passed:
                    self.stop(var, label(equation))
            weights = [self.weights.pop(var, None) for var in equation.outvars]
            if route is None or all(weight is None for weight in weights):
                continue
            if route.scan is not None:
                moved = self.split_scan(equation, route, route.scan, weights)
            else:
                operands = [self.read(var) for var in equation.invars]
                is_free = [not self.plan.reads_latents(equation.invars[p]) for p in route.operands]
                moved = transposed(equation, route, operands, weights, is_free)
            for position, weight in zip(route.operands, moved, strict=True):
                self.send(equation.invars[position], weight, route.kind, label(equation))

    def split_scan(
        self, equation: Equation, route: Route, scan: ScanBody, weights: list[Any]
    ) -> list[Any]:
        """Run a scan so that its terms come out, stacked over steps: ``[T, ...]`` each.

        Returns the weights of its accumulators' initial values.
        """
        params, body = equation.params, scan.plan.jaxpr
        num_consts, num_carry = params["num_consts"], params["num_carry"]
        operands = [self.read(var) for var in equation.invars]
        kept = [p for p in range(num_carry) if p not in route.outputs]
        # Weights of accumulators and uniform ones are the same at every step.
        per_step = {p: weights[p] for p in route.outputs if p >= num_carry and np.ndim(weights[p])}
        names: list[str] = []

        def step(carry: list[Any], inputs: tuple[list[Any], dict[int, Any]]) -> Any:
            xs, step_weights = inputs
            arguments = [*operands[: num_consts + num_carry], *xs]
            for position, value in zip(kept, carry, strict=True):
                arguments[num_consts + position] = value
            walk = Walk(scan.plan, scan.consts, arguments)
            for p in route.outputs:
                weight = step_weights.get(p, weights[p])
                walk.send(body.outvars[p], weight, route.kind, label(equation))
            walk.run()
            for position, var in enumerate(body.invars):
                if position in route.operands:
                    walk.weights.pop(var)
                walk.stop(var, f"input of {label(equation)}")
            names[:] = [name for name, _ in walk.factors]
            carry = [walk.read(body.outvars[p]) for p in kept]
            return carry, ([array for _, array in walk.factors], total(walk.free))

        _, (arrays, free) = jax.lax.scan(
            step,
            [operands[num_consts + p] for p in kept],
            (operands[num_consts + num_carry :], per_step),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        self.factors += zip(names, arrays, strict=True)
        self.free += [] if free is None else [jnp.sum(free)]
        return [weights[p - num_consts] for p in route.operands]


# Weight of the output, position of the operand -> weight of the operand.
ELEMENTWISE: Mapping[str, Callable[[Any, int], Any]] = {
    "add": lambda weight, position: weight,
    "add_any": lambda weight, position: weight,
    "convert_element_type": lambda weight, position: weight,
    "sub": lambda weight, position: -weight if position else weight,
    "neg": lambda weight, position: -weight,
}


def transposed(
    equation: Equation,
    route: Route,
    operands: list[Any],
    weights: list[Any],
    is_free: Sequence[bool],
) -> list[Any]:
    """Weights of the operands of a route from those of the outputs (None is zero).

    The weight of an addend free of the latents (``is_free``) is not summed over the copies of the
    addend: where it reads latents, each copy is a term of its own.
    """
    name, positions = equation.primitive.name, route.operands
    shapes = [var.aval.shape for var in equation.invars]
    (output, *_), (weight, *_) = equation.outvars, weights
    if name in ELEMENTWISE:
        moved = [ELEMENTWISE[name](weight, p) for p in positions]
        return [
            w if np.ndim(w) and free else unbroadcast(w, output.aval.shape, shapes[p])
            for p, w, free in zip(positions, moved, is_free, strict=True)
        ]
    if name in {"mul", "div"}:
        (position,) = positions
        factor = operands[1 - position] if name == "mul" else 1 / operands[1]
        moved = product(weight, factor, is_masked=route.kind.is_masked)
        return [unbroadcast(moved, output.aval.shape, shapes[position])]
    if np.ndim(weight) == 0 and name in MOVES:
        return [weight for _ in positions]
    if np.ndim(weight) == 0 and name == "broadcast_in_dim":
        return [unbroadcast(weight, output.aval.shape, shapes[0])]

    dtype = jnp.result_type(*(weight for weight in weights if weight is not None))
    inner = equation.invars[positions[0]].aval.dtype if name in CONTRACTIONS else dtype

    def linear(*moved: Any) -> list[Array]:
        replaced = list(operands)
        for position, value in zip(positions, moved, strict=True):
            replaced[position] = value
        return [out.astype(inner) for out in apply(equation, replaced)]

    cotangents = [
        jnp.broadcast_to(jnp.asarray(0 if weight is None else weight, inner), var.aval.shape)
        for var, weight in zip(equation.outvars, weights, strict=True)
    ]
    variables = [jax.ShapeDtypeStruct(shapes[p], inner) for p in positions]
    return [moved.astype(dtype) for moved in jax.linear_transpose(linear, *variables)(cotangents)]


def unbroadcast(weight: Any, shape: tuple[int, ...], operand_shape: tuple[int, ...]) -> Any:
    """The weight of an operand that was broadcast to ``shape``: the sum over its copies."""
    if shape == operand_shape:
        return weight
    if np.ndim(weight) == 0:
        return weight * np.asarray(math.prod(shape) / math.prod(operand_shape), weight.dtype)
    full = jnp.broadcast_to(weight, shape)
    if operand_shape == ():
        return jnp.sum(full)
    pairs = enumerate(zip(shape, operand_shape, strict=True))
    return jnp.sum(full, axis=[axis for axis, (n, m) in pairs if n != m], keepdims=True)


def product(weight: Any, value: Any, *, is_masked: bool) -> Any:
    """Weight times value, in the weight's type.

    Where the weight is zero by a mask, a value that is not finite counts as zero. Finite ones are
    left alone: a zero weight may have a derivative.
    """
    if is_number(weight) and is_number(value):
        return weight * np.asarray(value, weight.dtype)
    if jnp.result_type(value) != weight.dtype:
        value = jax.lax.convert_element_type(value, weight.dtype)
    if is_masked:
        is_out = (weight == 0) & ~jnp.isfinite(value)
        value = jnp.where(is_out, jnp.zeros((), weight.dtype), value)
    if is_number(weight) and weight == 1:
        return value
    return jax.lax.mul(weight, value) if np.shape(weight) == np.shape(value) else weight * value


def is_number(value: Any) -> bool:
    """Whether a scalar is known already."""
    return isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0


def total(terms: Sequence[Any]) -> Any:
    """The sum of scalars; None if there are none."""
    return functools.reduce(operator.add, terms) if terms else None


def stacked(factors: list[tuple[str, Array]]) -> list[tuple[str, Array]]:
    """The factors; if they are very many, those of one label and shape as one array."""
    if len(factors) <= MAX_UNSTACKED:
        return factors
    groups: dict[tuple[str, tuple[int, ...]], list[Array]] = {}
    for name, array in factors:
        groups.setdefault((name, jnp.shape(array)), []).append(array)
    return [
        (name, group[0] if len(group) == 1 else jnp.stack(group))
        for (name, _), group in groups.items()
    ]
