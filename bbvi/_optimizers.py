"""Optimizers as values: the default one, and equality for optax transformations."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import optax


def default_optimizer() -> optax.GradientTransformation:
    """Adam at 0.05; ``fit`` lowers the rate as the ELBO levels off."""
    return optax.adam(0.05)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation that compares by value.

    Two calls of ``optax.adam(1e-2)`` return different closures over equal numbers, so as static
    arguments they would compile the same program twice. Functions of optax and of this library are
    compared by their code and the values they close over; any other function (a schedule of the
    user's, say) by identity, because what it reads from outside may have changed.
    """

    transformation: optax.GradientTransformationExtraArgs = dataclasses.field(compare=False)
    fingerprint: Any = dataclasses.field(repr=False)

    @classmethod
    def of(cls, optimizer: Any) -> Optimizer:
        """Wrap an optax optimizer; raise if it is not one."""
        if not isinstance(optimizer, optax.GradientTransformation):
            raise TypeError(
                "optimizer must be an optax.GradientTransformation such as optax.adam(1e-2), got "
                f"{optimizer!r}."
            )
        return cls(optax.with_extra_args_support(optimizer), _fingerprint(optimizer))


@dataclasses.dataclass(frozen=True, eq=False)
class _ById:
    """Equal only to a wrapper of the very same object, which it keeps alive."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _contents(cell: types.CellType) -> Any:
    """What a closure holds; a variable that was never set (on a branch not taken) is a name."""
    try:
        return cell.cell_contents
    except ValueError:
        return "unset"


def _fingerprint(value: Any) -> Any:
    """A hashable stand-in that is equal for equal closures of optax and of this library."""
    is_function = isinstance(value, types.FunctionType)
    if is_function and value.__module__.startswith(("optax.", "bbvi.")):
        cells = tuple(_contents(cell) for cell in value.__closure__ or ())
        defaults = (value.__defaults__, value.__kwdefaults__)
        return (value.__qualname__, value.__code__, _fingerprint(cells), _fingerprint(defaults))
    if isinstance(value, tuple | list):
        return (type(value), tuple(_fingerprint(item) for item in value))
    if isinstance(value, dict):
        return (dict, tuple((key, _fingerprint(item)) for key, item in value.items()))
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith("bbvi."):
        return value  # a guide, say: configurations of this library compare by value
    if value is None or isinstance(value, bool | int | float | str):
        return (type(value), value)
    return _ById(value)
