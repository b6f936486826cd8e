"""Families of a location and a scale, whose draws a bijector pushes onto a support."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import distrax
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betaln, digamma, ndtri
from tensorflow_probability.substrates.jax.math import betaincinv

from bbvi import supports
from bbvi._checks import check_positive
from bbvi._types import Key, PyTree
from bbvi.guides.base import size
from bbvi.guides.families.base import Family, check_support, float_dtype, jitter
from bbvi.supports import Support


@dataclasses.dataclass(frozen=True)
class LocationScale(Family):
    """Location and scale of a standard family, pushed onto ``support`` by its bijector."""

    support: Support = supports.real
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_support(self.support, type(self).__name__)
        self.support.check_shape(self.shape, type(self).__name__)

    @property
    def domain(self) -> Support:
        return self.support

    @property
    def event_ndims(self) -> int:
        return self.support.event_ndims

    @property
    def unconstrained_shape(self) -> tuple[int, ...]:
        """Shape of the location: that of the latent before the bijector."""
        return self.support.unconstrained_shape(self.shape)

    def init(self, key: Key) -> PyTree:
        loc = jitter(key, self.unconstrained_shape)
        return {"loc": loc, "log_scale": jnp.full_like(loc, jnp.log(0.1))}

    def params_at(self, z: Array, scale: float) -> PyTree:
        loc = self.support.unconstrain(jnp.asarray(z, float_dtype()))
        return {"loc": loc, "log_scale": jnp.full_like(loc, jnp.log(scale))}

    def standard(self) -> Any:
        """The scalar distribution of (u - loc) / scale."""
        return self.located(jnp.zeros(()), jnp.ones(()))

    @abc.abstractmethod
    def quantile(self, u: Array) -> Array:
        """Inverse of the distribution function of (u - loc) / scale."""

    def distribution(self, params: PyTree) -> Any:
        if self.support != supports.real:
            raise NotImplementedError(f"no distrax distribution on support '{self.support!r}'.")
        return self.located(params["loc"], jnp.exp(params["log_scale"]))

    def located(self, loc: Array, scale: Array) -> Any:
        """The distrax distribution on the reals, where there is one."""
        raise NotImplementedError(f"{type(self).__name__} is not a distribution of distrax.")

    def base_noise(self, key: Key) -> Array:
        with jax.numpy_rank_promotion("allow"):
            # Along one axis, as ``draw_flat`` does and for the same reason.
            flat = self.standard().sample(seed=key, sample_shape=(self.noise_size,))
        return flat.reshape(self.unconstrained_shape)

    @property
    def noise_size(self) -> int:
        return size(self.unconstrained_shape)

    def noise_from_uniform(self, u: Array) -> Array:
        return self.quantile(u).reshape(self.unconstrained_shape)

    def sample(self, noise: Array, params: PyTree) -> Array:
        return self.support.constrain(params["loc"] + jnp.exp(params["log_scale"]) * noise)

    def log_probs(self, params: PyTree, z: Array) -> Array:
        u = self.support.unconstrain(z)
        standardized = (u - params["loc"]) * jnp.exp(-params["log_scale"])
        with jax.numpy_rank_promotion("allow"):
            log_q = self.standard().log_prob(standardized) - params["log_scale"]
        log_det, num_batch_axes = self.support.log_det, len(self.shape) - self.event_ndims
        for _ in range(num_batch_axes):
            log_det = jax.vmap(log_det)
        return jnp.sum(log_q, axis=range(num_batch_axes, u.ndim)) - log_det(u)

    def entropy(self, params: PyTree, z: Array) -> Array:
        # The unconstrained entropy in closed form, plus the bijector's volume at the draw.
        log_scale = params["log_scale"]
        with jax.numpy_rank_promotion("allow"):
            base = jnp.sum(log_scale) + log_scale.size * self.standard().entropy()
        return base + self.support.log_det(self.support.unconstrain(z))


@dataclasses.dataclass(frozen=True)
class Normal(LocationScale):
    r"""Independent normals, pushed onto ``support`` by a bijector.

    :math:`z = T(\mathrm{loc} + e^{\mathrm{log\_scale}} \epsilon)`, :math:`\epsilon \sim N(0, I)`.

    Args:
      shape: shape of the latent (in its constrained form).
      support: where the latent lives; see ``bbvi.supports``.

    Raises:
      ValueError: the shape cannot live in the support.

    Example:
      >>> import bbvi
      >>> bbvi.MeanField({"mu": bbvi.Normal((2,), support=bbvi.supports.ordered)})
      MeanField({'mu': Normal(shape=(2,), support=ordered)})

    References:
      Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), Automatic Differentiation Variational
      Inference.
    """

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return {**params, "log_scale": params["log_scale"] + 0.5 * jnp.log(dispersion)}

    def located(self, loc: Array, scale: Array) -> Any:
        return distrax.Normal(loc, scale)

    def quantile(self, u: Array) -> Array:
        return ndtri(u)


def LogNormal(shape: tuple[int, ...] = ()) -> Normal:
    r"""Log-normals: :math:`\log z \sim N(\mathrm{loc}, \mathrm{scale}^2)`.

    Args:
      shape: shape of the latent.

    Returns:
      ``Normal(shape, support=supports.positive)``.

    Example:
      >>> import bbvi
      >>> bbvi.LogNormal(())
      Normal(shape=(), support=positive)

    References:
      Kucukelbir et al. (2017), Automatic Differentiation Variational Inference.
    """
    return Normal(shape, support=supports.positive)


@dataclasses.dataclass(frozen=True)
class Laplace(LocationScale):
    r"""Independent Laplace distributions, :math:`q(u) = e^{-|u - loc|/s} / 2s`.

    Args:
      shape: shape of the latent.
      support: where the latent lives.

    Example:
      >>> import bbvi
      >>> bbvi.Laplace((3,)).reparameterized
      True

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes, for location-scale families.
    """

    def located(self, loc: Array, scale: Array) -> Any:
        return distrax.Laplace(loc, scale)

    def quantile(self, u: Array) -> Array:
        return jnp.sign(0.5 - u) * jnp.log(2 * jnp.minimum(u, 1 - u))


class _StandardStudentT(NamedTuple):
    """Student-t at location 0 and scale 1; distrax has none, and TFP's warns under new JAX."""

    df: float

    def sample(self, seed: Key, sample_shape: tuple[int, ...]) -> Array:
        return jax.random.t(seed, self.df, sample_shape)

    def log_prob(self, value: Array) -> Array:
        return jax.scipy.stats.t.logpdf(value, self.df)

    def entropy(self) -> Array:
        half, one = 0.5 * self.df, jnp.ones(())
        spread = digamma((half + 0.5) * one) - digamma(half * one)
        return (half + 0.5) * spread + 0.5 * jnp.log(self.df) + betaln(half * one, 0.5 * one)


@dataclasses.dataclass(frozen=True)
class StudentT(LocationScale):
    r"""Independent Student-t distributions with fixed degrees of freedom: heavier tails.

    Args:
      shape: shape of the latent.
      support: where the latent lives.
      df: degrees of freedom, positive.

    Raises:
      ValueError: ``df`` is not positive.

    Example:
      >>> import bbvi
      >>> bbvi.StudentT((3,), df=4.0).df
      4.0

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes, for location-scale families.
    """

    df: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("StudentT df", self.df)

    def standard(self) -> Any:
        return _StandardStudentT(self.df)

    def quantile(self, u: Array) -> Array:
        # t^2 / (df + t^2) is Beta(1/2, df/2) and its complement Beta(df/2, 1/2): of the two, invert
        # the one that is small, which keeps its relative precision.
        centre, tails = jnp.abs(2 * u - 1), 2 * jnp.minimum(u, 1 - u)
        half, half_df, is_central = 0.5, 0.5 * self.df, centre < 0.5
        share = betaincinv(
            jnp.where(is_central, half, half_df),
            jnp.where(is_central, half_df, half),
            jnp.where(is_central, centre, tails),
        )
        odds = share / (1 - share)
        return jnp.sign(u - 0.5) * jnp.sqrt(self.df * jnp.where(is_central, odds, 1 / odds))
