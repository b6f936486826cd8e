"""Families of discrete latents: bits, and categories as numbers or as one-hot vectors."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from bbvi._random import draw_flat
from bbvi._types import Key, PyTree
from bbvi.guides.base import size
from bbvi.guides.families.base import Family, float_dtype, jitter


@dataclasses.dataclass(frozen=True)
class Bernoulli(Family):
    r"""Independent Bernoullis, draws 0 or 1 (int32); not reparameterizable.

    Args:
      shape: shape of the latent. Parameters are the ``logits``.

    Example:
      >>> import bbvi
      >>> bbvi.Bernoulli((3, 4)).reparameterized
      False

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    num_values: ClassVar[int | None] = 2

    def init(self, key: Key) -> PyTree:
        return {"logits": jitter(key, self.shape)}

    def params_at(self, z: Array, scale: float) -> PyTree:
        probs = jnp.where(jnp.asarray(z) > 0, 1 - scale / 2, scale / 2)
        return {"logits": jnp.asarray(jnp.log(probs) - jnp.log1p(-probs), float_dtype())}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf / dispersion, params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Bernoulli(params["logits"], dtype=jnp.int32)

    def base_noise(self, key: Key) -> Array:
        return draw_flat(jax.random.uniform, key, self.shape)

    @property
    def noise_size(self) -> int:
        return size(self.shape)

    def noise_from_uniform(self, u: Array) -> Array:
        return u.reshape(self.shape)

    def sample(self, noise: Array, params: PyTree) -> Array:
        return (noise < jax.nn.sigmoid(params["logits"])).astype(jnp.int32)

    def log_probs(self, params: PyTree, z: Array) -> Array:
        # Not through distrax, which takes two softplus: 15 % of a step of 400 x 10 latents.
        return z * params["logits"] - jax.nn.softplus(params["logits"])


@dataclasses.dataclass(frozen=True)
class Categorical(Family):
    r"""Independent categoricals, draws 0..K-1 (int32); not reparameterizable.

    Args:
      num_categories: K, at least 2.
      shape: shape of the latent. Parameters are the ``logits`` of shape ``(*shape, K)``.

    Raises:
      ValueError: fewer than two categories.

    Example:
      >>> import bbvi
      >>> bbvi.Categorical(3, (1000,))
      Categorical(num_categories=3, shape=(1000,))

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    num_categories: int = dataclasses.field(kw_only=True)

    def __init__(self, num_categories: int, shape: tuple[int, ...] = ()):
        object.__setattr__(self, "num_categories", num_categories)
        object.__setattr__(self, "shape", shape)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.num_categories, int) or self.num_categories < 2:
            raise ValueError(
                f"Categorical needs num_categories >= 2 as an int, got {self.num_categories!r}."
            )

    @property
    def num_values(self) -> int:  # type: ignore[override]
        return self.num_categories

    def __repr__(self) -> str:
        return f"Categorical(num_categories={self.num_categories}, shape={self.shape})"

    def init(self, key: Key) -> PyTree:
        return {"logits": jitter(key, (*self.shape, self.num_categories))}

    def params_at(self, z: Array, scale: float) -> PyTree:
        rest = scale / self.num_categories
        probs = rest + (1 - scale) * jax.nn.one_hot(z, self.num_categories, dtype=float_dtype())
        return {"logits": jnp.log(probs)}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf / dispersion, params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Categorical(params["logits"], dtype=jnp.int32)

    def base_noise(self, key: Key) -> Array:
        return draw_flat(jax.random.uniform, key, self.shape)

    @property
    def noise_size(self) -> int:
        return size(self.shape)

    def noise_from_uniform(self, u: Array) -> Array:
        return u.reshape(self.shape)

    def sample(self, noise: Array, params: PyTree) -> Array:
        # Inverse transform: count the thresholds below u; cheaper than one Gumbel per category.
        cumulative = jnp.cumsum(jax.nn.softmax(params["logits"]), axis=-1)[..., :-1]
        return jnp.sum(noise[..., None] >= cumulative, axis=-1, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True, init=False)
class OneHotCategorical(Categorical):
    r"""Independent categoricals whose draws are one-hot vectors over a last axis.

    The form for estimators that evaluate ``log_joint`` between the values, on the simplex
    (``Relax``, ``GumbelSoftmax``, ``StraightThrough``, ...): write it as a differentiable function
    of the vectors.

    Args:
      num_categories: K, at least 2.
      shape: shape of the latent without its last axis, which is K long: a draw is
        ``(*shape, K)`` of floats. Parameters are the ``logits`` of that shape.

    Raises:
      ValueError: fewer than two categories.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.MeanField({"c": bbvi.OneHotCategorical(3, (4,))})
      >>> phi = guide.init(jax.random.key(0), None)
      >>> guide.sample(guide.base_noise(jax.random.key(1)), phi, None)["c"].sum(axis=1).tolist()
      [1.0, 1.0, 1.0, 1.0]

    References:
      Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", (*self.shape, self.num_categories))

    def __repr__(self) -> str:
        return f"OneHotCategorical(num_categories={self.num_categories}, shape={self.shape[:-1]})"

    @property
    def event_ndims(self) -> int:
        return 1

    def init(self, key: Key) -> PyTree:
        return {"logits": jitter(key, self.shape)}

    def params_at(self, z: Array, scale: float) -> PyTree:
        z = jnp.asarray(z, float_dtype())
        return {"logits": jnp.log(scale / self.num_categories + (1 - scale) * z)}

    def base_noise(self, key: Key) -> Array:
        return draw_flat(jax.random.uniform, key, self.shape[:-1])

    @property
    def noise_size(self) -> int:
        return size(self.shape[:-1])

    def noise_from_uniform(self, u: Array) -> Array:
        return u.reshape(self.shape[:-1])

    def sample(self, noise: Array, params: PyTree) -> Array:
        index = super().sample(noise, params)
        return jax.nn.one_hot(index, self.num_categories, dtype=float_dtype())

    def log_probs(self, params: PyTree, z: Array) -> Array:
        return jnp.sum(z * jax.nn.log_softmax(params["logits"]), axis=-1)
