"""What a family of one latent is."""

from __future__ import annotations

import abc
import copy
import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array

from bbvi import supports
from bbvi._types import Key, PyTree
from bbvi.guides.base import check_shape
from bbvi.supports import Support


@dataclasses.dataclass(frozen=True)
class Family(abc.ABC):
    """The variational family of one latent array with independent entries (or rows).

    Args:
      shape: shape of the latent, event axes included.
    """

    shape: tuple[int, ...] = ()
    reparameterized: ClassVar[bool] = False
    num_values: ClassVar[int | None] = None  # K, where an entry takes the values 0..K-1

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", check_shape(self.shape, type(self).__name__))

    @abc.abstractmethod
    def init(self, key: Key) -> PyTree:
        """Initial parameters."""

    @abc.abstractmethod
    def distribution(self, params: PyTree) -> Any:
        """The distrax distribution of the latent; its batch axes are independent entries."""

    @property
    def domain(self) -> Support:
        """Where values of a latent that is not discrete are."""
        return supports.real

    @property
    def values(self) -> str:
        """What a latent can be, in words."""
        if self.num_values is not None:
            kind = "one-hot rows of" if self.event_ndims else "the ints from 0 to"
            return f"{kind} {self.num_values if self.event_ndims else self.num_values - 1}"
        return f"finite and in support '{self.domain!r}'"

    def contains(self, z: Array) -> Array:
        """Whether q can be placed at a value."""
        if self.num_values is None:
            return self.domain.contains(z)
        if self.event_ndims:
            return jnp.all((z == 0) | (z == 1)) & jnp.all(jnp.sum(z, axis=-1) == 1)
        return jnp.all(jnp.isin(z, jnp.arange(self.num_values)))

    def params_at(self, z: Array, scale: float) -> PyTree:
        """Parameters centred at ``z`` with standard deviation about ``scale``, where it has one."""
        raise NotImplementedError(f"{type(self).__name__} cannot be placed at a value.")

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        """Parameters of the member whose natural parameters are divided by ``dispersion``.

        With respect to a base measure for which the density is bounded, so that importance
        weights are: dz / z for gammas, which so keep their mean, and likewise for betas and
        Dirichlets.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is not an exponential family, so it has no overdispersed form."
        )

    def resized(self, num_rows: int) -> Self:
        """The family with another length of its first axis."""
        resized = copy.copy(self)
        object.__setattr__(resized, "shape", (num_rows, *self.shape[1:]))
        return resized

    def base_noise(self, key: Key) -> PyTree:
        return key

    @property
    def noise_size(self) -> int | None:
        """How many uniforms the base noise is a function of, or None where it is not one."""
        return None

    def noise_from_uniform(self, u: Array) -> PyTree:
        """Base noise from independent uniforms ``[noise_size]`` on (0, 1)."""
        raise NotImplementedError(f"{type(self).__name__} has no map from uniforms to base noise.")

    def sample(self, noise: PyTree, params: PyTree) -> Array:
        with jax.numpy_rank_promotion("allow"):  # distrax relies on it
            return self.distribution(params).sample(seed=noise)

    @property
    def event_ndims(self) -> int:
        """Trailing axes of the latent that are drawn jointly."""
        return 0

    def log_probs(self, params: PyTree, z: Array) -> Array:
        """Log density of every independent entry (or row)."""
        with jax.numpy_rank_promotion("allow"):
            return self.distribution(params).log_prob(z)

    def log_prob(self, params: PyTree, z: Array) -> Array:
        return jnp.sum(self.log_probs(params, z))

    def entropy(self, params: PyTree, z: Array) -> Array:
        """A scalar whose expectation over z is the entropy; here the closed form."""
        del z
        with jax.numpy_rank_promotion("allow"):
            return jnp.sum(self.distribution(params).entropy())


def check_support(support: Any, name: str) -> None:
    """Raise unless a support is one."""
    if not isinstance(support, Support):
        raise TypeError(
            f"{name} support must be one of bbvi.supports, such as bbvi.supports.positive or "
            f"bbvi.supports.interval(0.0, 1.0), got {support!r}."
        )


def jitter(key: Key, shape: tuple[int, ...]) -> Array:
    """Small random starting values: they break symmetries and tell restarts apart."""
    return 0.1 * jax.random.normal(key, shape)


def float_dtype() -> Any:
    """The dtype of parameters: float32, or float64 when x64 is on."""
    return jnp.zeros(()).dtype
