"""Supports of vectors along the last axis: simplexes, and increasing entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from tensorflow_probability.substrates.jax import bijectors as tfb

from bbvi.supports.base import Bijected, Support, tolerance


@dataclasses.dataclass(frozen=True)
class _Simplex(Support):
    r"""Positive vectors that sum to one, by stick breaking.

    Entry k takes the share :math:`\sigma(u_k - \log(K - k))` of what entries before it left, so
    that u = 0 is the centre. All in logarithms: TFP's ``IteratedSigmoidCentered`` forms the last
    entry as one minus the others, which is 0 (and the log-determinant NaN) from u of about 17 in
    single precision.
    """

    event_ndims: ClassVar[int] = 1

    def unconstrained_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] - 1)

    def check_shape(self, shape: tuple[int, ...], name: str) -> None:
        super().check_shape(shape, name)
        if shape[-1] < 2:
            raise ValueError(
                f"{name} has shape {tuple(shape)}, but a simplex needs a last axis of length >= 2."
            )

    def _log_shares(self, u: Array) -> tuple[Array, Array, Array]:
        """Logs of the share each entry takes, the share it leaves, and of what it found."""
        logits = u - _stick_offset(u)
        take, leave = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        left = jnp.cumsum(leave, axis=-1)
        found = jnp.concatenate([jnp.zeros_like(left[..., :1]), left[..., :-1]], axis=-1)
        return take, leave, found

    def constrain_with_log_det(self, u: ArrayLike) -> tuple[Array, Array]:
        take, leave, found = self._log_shares(jnp.asarray(u))
        rest = found[..., -1:] + leave[..., -1:]
        z = jnp.exp(jnp.concatenate([found + take, rest], axis=-1))
        z = jnp.maximum(z, float(jnp.finfo(z.dtype).tiny))  # an entry that underflows stays inside
        return z, jnp.sum(found + take + leave)

    def constrain(self, u: ArrayLike) -> Array:
        return self.constrain_with_log_det(u)[0]

    def unconstrain(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        left = jax.lax.cumsum(z, axis=z.ndim - 1, reverse=True)[..., 1:]
        u = jnp.log(z[..., :-1]) - jnp.log(left)
        return u + _stick_offset(u)

    def log_det(self, u: ArrayLike) -> Array:
        return self.constrain_with_log_det(u)[1]

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        sums = jnp.abs(jnp.sum(z, axis=-1) - 1.0) <= tolerance(z)
        return jnp.all(z > 0.0) & jnp.all(sums)

    def __repr__(self) -> str:
        return "simplex"


def _stick_offset(u: Array) -> Array:
    """Log of the number of entries still to come, in the shape of u."""
    size = u.shape[-1]
    return jnp.broadcast_to(jnp.log(jnp.arange(size, 0, -1, dtype=u.dtype)), u.shape)


def _ordered_bijector() -> Any:
    return tfb.Ascending()


@dataclasses.dataclass(frozen=True)
class _Ordered(Bijected):
    """Strictly increasing vectors, by cumulative sums of (u_1, exp u_2, exp u_3, ...)."""

    event_ndims: ClassVar[int] = 1
    make_bijector: ClassVar[Callable[[], Any]] = staticmethod(_ordered_bijector)

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        return jnp.all(z[..., 1:] > z[..., :-1]) & jnp.all(jnp.isfinite(z))

    def __repr__(self) -> str:
        return "ordered"


simplex: Support = _Simplex()
ordered: Support = _Ordered()
