r"""Where a latent lives, and the bijector that reaches it from unconstrained reals.

A guide works on reals :math:`u`; the model wants, say, a covariance matrix. A :class:`Support` maps
one to the other, :math:`z = T(u)`, with the log-determinant that a density needs::

    log q(z) = log q(u) - log |det dz/du|.

The supports are ``real``, ``positive``, ``greater_than(lower)``, ``less_than(upper)``,
``interval(lower, upper)``, ``unit_interval``, ``simplex``, ``ordered``, ``positive_definite``,
``cholesky_factor`` and ``correlation_cholesky``. Where z has fewer degrees of freedom than entries,
its density is with respect to Lebesgue measure on independent entries: all but the last of a
simplex, the lower triangle of a positive-definite matrix, the strictly lower triangle of the
Cholesky factor of a correlation matrix. Dirichlet, Wishart and LKJ densities use the same measures.

Example:
  >>> import jax.numpy as jnp
  >>> from bbvi import supports
  >>> supports.simplex.unconstrained_shape((5, 3))
  (5, 2)
  >>> z, log_det = supports.positive.constrain_with_log_det(jnp.zeros(3))
  >>> z.tolist(), float(log_det)
  ([1.0, 1.0, 1.0], 0.0)

References:
  Stan Development Team, Stan Reference Manual, chapter "Constraint Transforms".
  Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), Automatic Differentiation Variational
  Inference.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from tensorflow_probability.substrates.jax import bijectors as tfb

from bbvi._checks import is_number

__all__ = [
    "Support",
    "cholesky_factor",
    "correlation_cholesky",
    "greater_than",
    "interval",
    "less_than",
    "ordered",
    "positive",
    "positive_definite",
    "real",
    "simplex",
    "unit_interval",
]


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
        sums = jnp.abs(jnp.sum(z, axis=-1) - 1.0) <= _tolerance(z)
        return jnp.all(z > 0.0) & jnp.all(sums)

    def __repr__(self) -> str:
        return "simplex"


def _ordered_bijector() -> Any:
    return tfb.Ascending()


def _cholesky_bijector() -> Any:
    return tfb.FillScaleTriL(diag_bijector=tfb.Exp(), diag_shift=None)


def _positive_definite_bijector() -> Any:
    return tfb.Chain([tfb.CholeskyOuterProduct(), _cholesky_bijector()])


def _correlation_bijector() -> Any:
    return tfb.CorrelationCholesky()


@dataclasses.dataclass(frozen=True)
class _Bijected(Support):
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


@dataclasses.dataclass(frozen=True)
class _Ordered(_Bijected):
    """Strictly increasing vectors, by cumulative sums of (u_1, exp u_2, exp u_3, ...)."""

    event_ndims: ClassVar[int] = 1
    make_bijector: ClassVar[Callable[[], Any]] = staticmethod(_ordered_bijector)

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        return jnp.all(z[..., 1:] > z[..., :-1]) & jnp.all(jnp.isfinite(z))

    def __repr__(self) -> str:
        return "ordered"


@dataclasses.dataclass(frozen=True)
class _SquareMatrix(_Bijected):
    """What the matrix supports share: two equal event axes, and u a vector of free entries."""

    event_ndims: ClassVar[int] = 2
    smallest: ClassVar[int] = 1

    def check_shape(self, shape: tuple[int, ...], name: str) -> None:
        super().check_shape(shape, name)
        if shape[-1] != shape[-2]:
            raise ValueError(
                f"{name} has shape {tuple(shape)}, but support '{self!r}' holds square matrices: "
                "the last two axes must be equal."
            )
        if shape[-1] < self.smallest:
            raise ValueError(
                f"{name} has shape {tuple(shape)}, but support '{self!r}' needs matrices of at "
                f"least {self.smallest} by {self.smallest}."
            )

    def unconstrained_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        n = shape[-1]
        return (*shape[:-2], n * (n + 1) // 2)


@dataclasses.dataclass(frozen=True)
class _PositiveDefinite(_SquareMatrix):
    """Symmetric positive-definite matrices, as L L' with L from ``cholesky_factor``."""

    make_bijector: ClassVar[Callable[[], Any]] = staticmethod(_positive_definite_bijector)

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        asymmetry = jnp.abs(z - jnp.matrix_transpose(z))
        largest = jnp.max(jnp.abs(z), axis=(-2, -1), keepdims=True)
        # The Cholesky factor of a matrix that is not positive definite is filled with NaN.
        return jnp.all(asymmetry <= _tolerance(z) * largest) & jnp.all(
            jnp.isfinite(jnp.linalg.cholesky(z))
        )

    def __repr__(self) -> str:
        return "positive_definite"


@dataclasses.dataclass(frozen=True)
class _CholeskyFactor(_SquareMatrix):
    """Lower-triangular matrices with a positive diagonal, which is exp of its free entries."""

    make_bijector: ClassVar[Callable[[], Any]] = staticmethod(_cholesky_bijector)

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        diagonal = jnp.diagonal(z, axis1=-2, axis2=-1)
        triangular = jnp.all(jnp.triu(z, 1) == 0.0)
        return triangular & jnp.all(diagonal > 0.0) & jnp.all(jnp.isfinite(z))

    def __repr__(self) -> str:
        return "cholesky_factor"


@dataclasses.dataclass(frozen=True)
class _CorrelationCholesky(_SquareMatrix):
    """Cholesky factors of correlation matrices, rows (u, 1) of a triangle, scaled to length one."""

    smallest: ClassVar[int] = 2
    make_bijector: ClassVar[Callable[[], Any]] = staticmethod(_correlation_bijector)

    def unconstrained_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        n = shape[-1]
        return (*shape[:-2], n * (n - 1) // 2)

    def contains(self, z: ArrayLike) -> Array:
        z = jnp.asarray(z)
        unit_rows = jnp.abs(jnp.sum(z**2, axis=-1) - 1.0) <= _tolerance(z)
        return cholesky_factor.contains(z) & jnp.all(unit_rows)

    def __repr__(self) -> str:
        return "correlation_cholesky"


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


def _stick_offset(u: Array) -> Array:
    """Log of the number of entries still to come, in the shape of u."""
    size = u.shape[-1]
    return jnp.broadcast_to(jnp.log(jnp.arange(size, 0, -1, dtype=u.dtype)), u.shape)


def _tolerance(z: Array) -> float:
    """Slack of equality constraints: what float32 data can meet, and no more in double."""
    return max(1e-6, 100.0 * float(jnp.finfo(z.dtype).eps))


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
simplex: Support = _Simplex()
ordered: Support = _Ordered()
positive_definite: Support = _PositiveDefinite()
cholesky_factor: Support = _CholeskyFactor()
correlation_cholesky: Support = _CorrelationCholesky()
