"""Forward analysis of a jaxpr: which latent entries every entry of every array reads.

Definition. The set D(v, j) of latent entries is *sound* for entry j of array v if v[j] has the
same value for any two latents that agree on D(v, j). Every rule keeps soundness: an output entry is
a function of some operand entries, and the rule's set contains the union of theirs. Rules only
ever enlarge sets, so by induction over the equations every computed set is sound. Nothing depends
on derivatives, on the values of the latents or on their dtype; a primitive without a rule is taken
to read everything that any of its operands reads.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbvi.dependence.jaxprs import Equation, Jaxpr, apply, evaluate
from bbvi.dependence.pointers import (
    Pointer,
    Shape,
    along,
    collapse,
    identity,
    is_concrete,
    lookup,
    mix,
    prepend_axes,
    union,
)

Reads = list[Pointer]


class Value:
    """What is known of an array: its shape, what its entries read, and perhaps its value.

    The value is computed only when a rule asks for it. Where the array depends on latents it is
    the value at latents of zero: entries that read nothing have it for all latents.
    """

    def __init__(
        self,
        shape: Shape,
        reads: Sequence[Pointer] = (),
        value: Any = None,
        *,
        is_concrete: bool = False,
    ):
        self.shape = tuple(shape)
        self.reads = list(reads)
        self.is_concrete = is_concrete  # known now, rather than traced
        self._value = value  # an array, a function that computes it, or None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def has_value(self) -> bool:
        """Whether ``value()`` can be asked for."""
        return self._value is not None

    @property
    def is_known(self) -> bool:
        """Whether the array is free of the latents and has a value, maybe traced."""
        return not self.reads and self.has_value

    @property
    def is_constant(self) -> bool:
        """Whether the array is free of the latents and its value is known now."""
        return self.is_known and self.is_concrete

    def value(self) -> Any:
        """A NumPy array, or a tracer where it depends on traced data."""
        if callable(self._value):
            self._value = self._value()
        if is_concrete(self._value) and not isinstance(self._value, np.ndarray):
            dtype = getattr(self._value, "dtype", None)
            if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
                self._value = np.asarray(self._value)
        return self._value

    def free_slices(self, axis: int) -> np.ndarray:
        """Which slices along an axis certainly read nothing."""
        free = np.full(self.shape[axis], self.has_value)
        for p in self.reads:
            if p.mask is None or not is_concrete(p.mask):
                return np.zeros(self.shape[axis], bool)
            others = tuple(a for a in range(p.mask.ndim) if a != axis)
            free &= ~np.broadcast_to(p.mask.any(others), free.shape)
        return free


Rule = Callable[["Analysis", Equation, list[Value]], list[Reads]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of some primitives."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"primitive {name!r} has two rules")
            RULES[name] = function
        return function

    return register


class Analysis:
    """One pass over a program: the rules' context.

    Attributes:
      leaf_shapes: shapes of the latent leaves.
      unknown: how often each primitive without a rule was met.
    """

    def __init__(self, leaf_shapes: Sequence[Shape]):
        self.leaf_shapes = list(leaf_shapes)
        self.unknown: Counter[str] = Counter()

    def latent(self, leaf: int, dtype: Any) -> Value:
        """A latent leaf: each entry reads itself."""
        shape = self.leaf_shapes[leaf]
        reads = [] if 0 in shape else [identity(leaf, shape)]
        return Value(shape, reads, lambda: np.zeros(shape, dtype), is_concrete=True)

    def mix(self, p: Pointer, axes: Sequence[int], rank: int, *, keepdims: bool = False) -> Pointer:
        """``pointers.mix`` with the leaf's shape filled in."""
        return mix(p, axes, rank, self.leaf_shapes[p.leaf], keepdims=keepdims)

    def spread(self, v: Value, to: Mapping[int, int], rank: int) -> Reads:
        """What an array reads whose axis ``to[d]`` runs along axis d of v; v's other axes mix."""
        mixed = [d for d in range(v.rank) if d not in to]
        nowhere = np.zeros((1,) * rank, int)
        sources = [
            along(np.arange(n), to[d], rank) if d in to else nowhere for d, n in enumerate(v.shape)
        ]
        return [
            lookup(self.mix(p, mixed, v.rank, keepdims=True), sources, v.rank, rank)
            for p in v.reads
        ]

    def touched(self, operands: Sequence[Value], rank: int) -> Reads:
        """Everything any entry of the operands reads, as pointers of an array of ``rank``."""
        scalars = [collapse(p, v.rank, self.leaf_shapes[p.leaf]) for v in operands for p in v.reads]
        return [prepend_axes(p, 0, rank) for p in union(scalars)]

    def reads_everything(self, equation: Equation, operands: list[Value]) -> list[Reads]:
        """Sound for every pure primitive."""
        return [self.touched(operands, out.aval.ndim) for out in equation.outvars]

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: list[Value]) -> list[Value]:
        """Values of the outputs from values of the inputs."""
        if _uses_references(jaxpr):
            self.unknown["new_ref"] += 1
            outputs = [var.aval for var in jaxpr.outvars]
            return [Value(out.shape, self.touched(args, out.ndim)) for out in outputs]
        constants = [constant(c) for c in consts]
        return evaluate(jaxpr, constants, args, self._step, constant)

    def _step(self, equation: Equation, operands: list[Value]) -> list[Value]:
        value = _delayed(equation, operands) if all(v.has_value for v in operands) else None
        concrete = all(v.is_concrete for v in operands)
        reads: list[Reads] = [[] for _ in equation.outvars]
        if any(v.reads for v in operands):
            reads = self._reads(equation, operands)
            if any(inner.primitive.name == "while" for inner in _nested([equation])):
                value = None  # a loop that stops for the latents in use may not stop at zeros
        return [
            Value(
                out.aval.shape,
                union(reads[k]) if out.aval.size else [],
                None if value is None else (lambda k=k: value(k)),
                is_concrete=concrete,
            )
            for k, out in enumerate(equation.outvars)
        ]

    def _reads(self, equation: Equation, operands: list[Value]) -> list[Reads]:
        try:
            return RULES[equation.primitive.name](self, equation, operands)
        except (KeyError, AttributeError, NotImplementedError):
            # No rule, or one for another version of JAX, where parameters have other names.
            self.unknown[equation.primitive.name] += 1
            return self.reads_everything(equation, operands)


def constant(value: Any) -> Value:
    """An array free of the latents: data, maybe traced."""
    return Value(np.shape(value), (), value, is_concrete=is_concrete(value))


def now(*values: Any) -> Any:
    """Context in which JAX computes at once, if all these values are known, even under a trace."""
    return jax.ensure_compile_time_eval() if is_concrete(*values) else contextlib.nullcontext()


def _nested(equations: Iterable[Equation]) -> Iterator[Equation]:
    """The equations, and those of all jaxprs among their parameters."""
    for equation in equations:
        yield equation
        for parameter in jax.tree.leaves(equation.params):
            yield from _nested(getattr(getattr(parameter, "jaxpr", parameter), "eqns", ()))


def _uses_references(jaxpr: Jaxpr) -> bool:
    """Whether arrays are changed in place, which a pass over values does not see."""
    return any(
        hasattr(out.aval, "inner_aval") for eqn in _nested(jaxpr.eqns) for out in eqn.outvars
    )


def _delayed(equation: Equation, operands: Sequence[Value]) -> Callable[[int], Any]:
    outputs: list[Any] = []

    def output(number: int) -> Any:
        if not outputs:
            values = [v.value() for v in operands]
            with now(*values):
                outputs.extend(apply(equation, values))
        return outputs[number]

    return output
