"""What a support is, and how one is made of a bijector of TensorFlow Probability."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Support(abc.ABC):
    r"""A set of values and a bijector onto it from unconstrained reals, for ONE latent.

    Hashable and compared by value, so a support may sit in a static argument of ``jax.jit``. The
    last ``event_ndims`` axes of a value are one event (a simplex, a matrix); axes before them hold
    independent events. To add a support, subclass and define ``constrain``, ``unconstrain``,
    ``log_det`` and ``contains``, and the shapes if they differ.

    Attributes:
      event_ndims: number of trailing axes that are constrained together; 0 for elementwise.

    Example:
      >>> import jax.numpy as jnp
      >>> from bbvi import supports
      >>> bool(supports.ordered.contains(jnp.array([1.0, 3.0, 2.0])))
      False
    """

    event_ndims: ClassVar[int] = 0

    def unconstrained_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of u for a value of this shape."""
        return tuple(shape)

    @abc.abstractmethod
    def constrain(self, u: ArrayLike) -> Array:
        """The value z = T(u) inside the support."""

    @abc.abstractmethod
    def unconstrain(self, z: ArrayLike) -> Array:
        """The reals u with T(u) = z."""

    @abc.abstractmethod
    def log_det(self, u: ArrayLike) -> Array:
        """Log of the absolute determinant of dz/du at u, summed over all events: a scalar."""

    @abc.abstractmethod
    def contains(self, z: ArrayLike) -> Array:
        """Whether every entry is finite and inside the support: a boolean scalar."""

    def constrain_with_log_det(self, u: ArrayLike) -> tuple[Array, Array]:
        """``constrain(u)`` and ``log_det(u)``."""
        return self.constrain(u), self.log_det(u)

    def check_shape(self, shape: tuple[int, ...], name: str) -> None:
        """Raises an error that starts with ``name`` if values of this shape cannot exist.

        Args:
          shape: shape of the constrained value, event axes included.
          name: what the shape belongs to, for the message.

        Raises:
          ValueError: the shape has too few axes, or its event axes do not fit the support.
        """
        if len(shape) < self.event_ndims:
            axes = "axis" if self.event_ndims == 1 else "axes"
            raise ValueError(
                f"{name} has shape {tuple(shape)}, but a value in support '{self!r}' needs at "
                f"least {self.event_ndims} {axes}."
            )


@dataclasses.dataclass(frozen=True)
class Bijected(Support):
    """A support reached by a bijector of TensorFlow Probability from vectors."""

    make_bijector: ClassVar[Callable[[], Any]]

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Array:
        # A new bijector each time, since TFP's remember what they mapped. TFP broadcasts ranks
        # freely, which a caller may have forbidden. Matmuls at full precision: on a GPU, a matrix
        # rounded to ten bits would not come back from `unconstrain`.
        bijector = type(self).make_bijector()
        with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
            result: Array = getattr(bijector, method)(*args, **kwargs)
        return result

    def constrain(self, u: ArrayLike) -> Array:
        return self._call("forward", jnp.asarray(u))

    def unconstrain(self, z: ArrayLike) -> Array:
        return self._call("inverse", jnp.asarray(z))

    def log_det(self, u: ArrayLike) -> Array:
        u = jnp.asarray(u)
        return jnp.sum(self._call("forward_log_det_jacobian", u, event_ndims=1))


def tolerance(z: Array) -> float:
    """Slack of equality constraints: what float32 data can meet, and no more in double."""
    return max(1e-6, 100.0 * float(jnp.finfo(z.dtype).eps))
