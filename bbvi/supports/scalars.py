"""Supports of single numbers: the reals, and those on one side of a bound or between two."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bbvi._checks import is_number
from bbvi.supports.base import Support


@dataclasses.dataclass(frozen=True)
class _Real(Support):
    """All reals, by the identity."""

    def constrain(self, u: ArrayLike) -> Array:
        return jnp.asarray(u)

    def unconstrain(self, z: ArrayLike) -> Array:
        return jnp.asarray(z)

    def log_det(self, u: ArrayLike) -> Array:
        return jnp.zeros((), jnp.result_type(u))

    def contains(self, z: ArrayLike) -> Array:
        return jnp.all(jnp.isfinite(z))

    def __repr__(self) -> str:
        return "real"


@dataclasses.dataclass(frozen=True)
class _GreaterThan(Support):
    """Reals above ``lower``, by lower + exp(u)."""

    lower: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", _bound(self.lower, "greater_than", "lower"))

    def constrain(self, u: ArrayLike) -> Array:
        if self.lower == 0.0:
            return jnp.exp(u)
        z = self.lower + jnp.exp(u)
        return jnp.maximum(z, _inward(self.lower, +1, z))

    def unconstrain(self, z: ArrayLike) -> Array:
        return jnp.log(jnp.asarray(z) - self.lower)

    def log_det(self, u: ArrayLike) -> Array:
        return jnp.sum(jnp.asarray(u))

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        return jnp.all((z > self.lower) & jnp.isfinite(z))

    def __repr__(self) -> str:
        return "positive" if self.lower == 0.0 else f"greater_than({self.lower})"


@dataclasses.dataclass(frozen=True)
class _LessThan(Support):
    """Reals below ``upper``, by upper - exp(u)."""

    upper: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "upper", _bound(self.upper, "less_than", "upper"))

    def constrain(self, u: ArrayLike) -> Array:
        z = self.upper - jnp.exp(u)
        return jnp.minimum(z, _inward(self.upper, -1, z))

    def unconstrain(self, z: ArrayLike) -> Array:
        return jnp.log(self.upper - jnp.asarray(z))

    def log_det(self, u: ArrayLike) -> Array:
        return jnp.sum(jnp.asarray(u))

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        return jnp.all((z < self.upper) & jnp.isfinite(z))

    def __repr__(self) -> str:
        return f"less_than({self.upper})"


@dataclasses.dataclass(frozen=True)
class _Interval(Support):
    """Reals strictly between two bounds, by lower + (upper - lower) sigmoid(u)."""

    lower: float
    upper: float

    def __post_init__(self) -> None:
        lower = _bound(self.lower, "interval", "lower")
        upper = _bound(self.upper, "interval", "upper")
        if not lower < upper:
            raise ValueError(f"interval needs lower < upper, got ({lower}, {upper}).")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    def constrain(self, u: ArrayLike) -> Array:
        z = self.lower + (self.upper - self.lower) * jax.nn.sigmoid(u)
        return jnp.clip(z, _inward(self.lower, +1, z), _inward(self.upper, -1, z))

    def unconstrain(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        return jnp.log(z - self.lower) - jnp.log(self.upper - z)

    def log_det(self, u: ArrayLike) -> Array:
        u = jnp.asarray(u)
        log_width = math.log(self.upper - self.lower)
        return jnp.sum(log_width - jax.nn.softplus(u) - jax.nn.softplus(-u))

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        return jnp.all((z > self.lower) & (z < self.upper))

    def __repr__(self) -> str:
        if (self.lower, self.upper) == (0.0, 1.0):
            return "unit_interval"
        return f"interval({self.lower}, {self.upper})"


def _bound(value: Any, support: str, name: str) -> float:
    if jnp.ndim(value) == 0 and hasattr(value, "item"):
        value = value.item()  # of an array without axes
    if not is_number(value):
        raise ValueError(f"{support} needs a finite number as its {name} bound, got {value!r}.")
    return float(value)


def _inward(bound: float, sign: int, z: Array) -> float:
    """The float nearest to ``bound`` on its inner side, up to two roundings, in the type of z.

    Values that round to the bound itself are moved here: a density or an inverse of a draw from a
    guide is then finite however far out the draw.
    """
    finfo = jnp.finfo(z.dtype)
    return bound + sign * max(2.0 * abs(bound) * float(finfo.eps), float(finfo.tiny))


def greater_than(lower: float) -> Support:
    """Reals above ``lower``, by lower + exp(u).

    Example:
      >>> from bbvi import supports
      >>> supports.greater_than(0.0) == supports.positive
      True
    """
    return _GreaterThan(lower)


def less_than(upper: float) -> Support:
    """Reals below ``upper``, by upper - exp(u).

    Example:
      >>> from bbvi import supports
      >>> supports.less_than(3)
      less_than(3.0)
    """
    return _LessThan(upper)


def interval(lower: float, upper: float) -> Support:
    """Reals strictly between ``lower`` and ``upper``, by a scaled sigmoid.

    Example:
      >>> from bbvi import supports
      >>> float(supports.interval(-1.0, 3.0).constrain(0.0))
      1.0
    """
    return _Interval(lower, upper)


real: Support = _Real()
positive: Support = _GreaterThan(0.0)
unit_interval: Support = _Interval(0.0, 1.0)
