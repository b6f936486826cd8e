"""Where the analysis came to "every index": the operation to name when a term reads too much."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bbvi._types import Data, Latents, PyTree
from bbvi.dependence.analysis import RULES, Analysis, Value, constant
from bbvi.dependence.jaxprs import Equation, all_equations
from bbvi.dependence.split_inline import user_line

# A leaf of the latents by number, and an axis of it.
LeafAxis = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Origin:
    """The operation after which an array reads every index along an axis of a latent.

    Attributes:
      primitive: its name.
      line: file and line, or empty.
      is_unknown: whether there is no rule for it, so that it is taken to read everything.
    """

    primitive: str
    line: str
    is_unknown: bool

    def __str__(self) -> str:
        return f"{self.primitive} at {self.line}" if self.line else self.primitive


class Recorder(Analysis):
    """An analysis that keeps, for each array, where it came to read every index of an axis."""

    def __init__(self, leaf_shapes: Sequence[tuple[int, ...]]):
        super().__init__(leaf_shapes)
        self.origins: dict[Value, dict[LeafAxis, Origin]] = {}
        self._trail: list[tuple[LeafAxis, Origin]] = []

    def whole_axes(self, value: Value) -> set[LeafAxis]:
        """Axes of latents that some pointer of the array reads every index of."""
        return {
            (p.leaf, axis)
            for p in value.reads
            for axis, index in enumerate(p.index)
            if index is None and self.leaf_shapes[p.leaf][axis] > 1
        }

    def _step(self, equation: Equation, operands: list[Value]) -> list[Value]:
        start = len(self._trail)
        outputs = super()._step(equation, operands)
        inside = self._trail[start:]
        before = {axis for v in operands for axis in self.whole_axes(v)}
        for out in outputs:
            found = self.origins.setdefault(out, {})
            for axis in self.whole_axes(out):
                inherited = [self.origins.get(v, {}).get(axis) for v in operands]
                inherited += [origin for other, origin in inside if other == axis]
                known = next((origin for origin in inherited if origin is not None), None)
                if known is None and axis not in before:
                    known = _origin(equation)
                    self._trail.append((axis, known))
                if known is not None:
                    found[axis] = known
        return outputs


def _origin(equation: Equation) -> Origin:
    # The line of a loop, where it is not known, is that of its body.
    program = equation.params.get("jaxpr")
    inside = [] if program is None else all_equations(getattr(program, "jaxpr", program))
    line = next((line for line in map(user_line, [equation, *inside]) if line), "")
    name = equation.primitive.name
    return Origin(name, line, name not in RULES)


def origins(closed: Any, x: Data, z: Latents, *model_args: PyTree) -> list[dict[LeafAxis, Origin]]:
    """For each output of a program ``(x, z, *model_args)`` the origins of what it reads whole."""
    leaves = jax.tree.leaves(z)
    recorder = Recorder([np.shape(leaf) for leaf in leaves])
    inputs = [constant(leaf) for leaf in jax.tree.leaves(x)]
    inputs += [recorder.latent(k, leaf.dtype) for k, leaf in enumerate(leaves)]
    inputs += [Value(np.shape(leaf)) for leaf in jax.tree.leaves(model_args)]
    outputs = recorder.run(closed.jaxpr, closed.consts, inputs)
    return [recorder.origins.get(out, {}) for out in outputs]
