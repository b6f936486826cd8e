"""Supports of square matrices along the last two axes: covariances and their Cholesky factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from tensorflow_probability.substrates.jax import bijectors as tfb

from bbvi.supports.base import Bijected, Support, tolerance


def _cholesky_bijector() -> Any:
    return tfb.FillScaleTriL(diag_bijector=tfb.Exp(), diag_shift=None)


def _positive_definite_bijector() -> Any:
    return tfb.Chain([tfb.CholeskyOuterProduct(), _cholesky_bijector()])


def _correlation_bijector() -> Any:
    return tfb.CorrelationCholesky()


@dataclasses.dataclass(frozen=True)
class _SquareMatrix(Bijected):
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
        return jnp.all(asymmetry <= tolerance(z) * largest) & jnp.all(
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
        unit_rows = jnp.abs(jnp.sum(z**2, axis=-1) - 1.0) <= tolerance(z)
        return cholesky_factor.contains(z) & jnp.all(unit_rows)

    def __repr__(self) -> str:
        return "correlation_cholesky"


positive_definite: Support = _PositiveDefinite()
cholesky_factor: Support = _CholeskyFactor()
correlation_cholesky: Support = _CorrelationCholesky()
