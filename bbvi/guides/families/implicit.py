"""Families reparameterized implicitly: by the derivative of their distribution functions."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from bbvi import supports
from bbvi._types import Key, PyTree
from bbvi.guides.families.base import Family, float_dtype, jitter
from bbvi.supports import Support


@dataclasses.dataclass(frozen=True)
class Gamma(Family):
    r"""Independent gammas, :math:`q(z) \propto z^{a-1} e^{-bz}`; implicit reparameterization.

    Args:
      shape: shape of the latent. Parameters are ``log_concentration`` (a) and ``log_rate`` (b).

    Example:
      >>> import bbvi
      >>> bbvi.Gamma((3,)).reparameterized
      True

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    reparameterized: ClassVar[bool] = True

    @property
    def domain(self) -> Support:
        return supports.positive

    def init(self, key: Key) -> PyTree:
        mean = jnp.exp(jitter(key, self.shape))
        return self.params_at(mean, 0.5)

    def params_at(self, z: Array, scale: float) -> PyTree:
        mean = jnp.asarray(z, float_dtype())
        variance = jnp.full_like(mean, scale) ** 2
        return {
            "log_concentration": jnp.log(mean**2 / variance),
            "log_rate": jnp.log(mean / variance),
        }

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf - jnp.log(dispersion), params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Gamma(jnp.exp(params["log_concentration"]), jnp.exp(params["log_rate"]))


@dataclasses.dataclass(frozen=True)
class Beta(Family):
    r"""Independent betas, :math:`q(z) \propto z^{a-1} (1-z)^{b-1}`; implicit reparameterization.

    Args:
      shape: shape of the latent. Parameters are ``log_alpha`` (a) and ``log_beta`` (b).

    Example:
      >>> import bbvi
      >>> bbvi.Beta(()).reparameterized
      True

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    reparameterized: ClassVar[bool] = True

    @property
    def domain(self) -> Support:
        return supports.unit_interval

    def init(self, key: Key) -> PyTree:
        spread = jitter(key, (2, *self.shape))
        return {"log_alpha": jnp.log(2.0) + spread[0], "log_beta": jnp.log(2.0) + spread[1]}

    def params_at(self, z: Array, scale: float) -> PyTree:
        mean = jnp.asarray(z, float_dtype())
        total = jnp.maximum(mean * (1 - mean) / scale**2 - 1, 0.1)  # a + b by moments
        return {"log_alpha": jnp.log(mean * total), "log_beta": jnp.log((1 - mean) * total)}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf - jnp.log(dispersion), params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Beta(jnp.exp(params["log_alpha"]), jnp.exp(params["log_beta"]))


@dataclasses.dataclass(frozen=True)
class Dirichlet(Family):
    r"""Independent Dirichlets over the last axis; implicit reparameterization.

    Args:
      shape: shape of the latent; the last axis is the simplex, at least 2 long.

    Raises:
      ValueError: there is no last axis of length at least 2.

    Example:
      >>> import bbvi
      >>> bbvi.Dirichlet((5, 3)).shape
      (5, 3)

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    shape: tuple[int, ...] = (2,)
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        supports.simplex.check_shape(self.shape, "Dirichlet")

    @property
    def event_ndims(self) -> int:
        return 1

    @property
    def domain(self) -> Support:
        return supports.simplex

    def init(self, key: Key) -> PyTree:
        return {"log_concentration": jnp.log(2.0) + jitter(key, self.shape)}

    def params_at(self, z: Array, scale: float) -> PyTree:
        mean = jnp.asarray(z, float_dtype())
        mean_variance = jnp.mean(mean * (1 - mean), axis=-1, keepdims=True)
        total = jnp.maximum(mean_variance / scale**2 - 1, 0.1)
        return {"log_concentration": jnp.log(mean * total)}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf - jnp.log(dispersion), params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Dirichlet(jnp.exp(params["log_concentration"]))


@dataclasses.dataclass(frozen=True)
class VonMises(Family):
    r"""Independent von Mises distributions on the circle, angles in :math:`(-\pi, \pi]`.

    Args:
      shape: shape of the latent. Parameters are ``loc`` and ``log_concentration``.

    Example:
      >>> import bbvi
      >>> bbvi.VonMises(()).reparameterized
      True

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    reparameterized: ClassVar[bool] = True

    def init(self, key: Key) -> PyTree:
        return self.params_at(jitter(key, self.shape), 1.0)

    def params_at(self, z: Array, scale: float) -> PyTree:
        loc = jnp.asarray(z, float_dtype())
        return {"loc": loc, "log_concentration": jnp.full_like(loc, -2 * jnp.log(scale))}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        shifted = params["log_concentration"] - jnp.log(dispersion)
        return {**params, "log_concentration": shifted}

    def distribution(self, params: PyTree) -> Any:
        return distrax.VonMises(params["loc"], jnp.exp(params["log_concentration"]))
