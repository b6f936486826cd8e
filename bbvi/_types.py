"""The few types every room of the library shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

PyTree: TypeAlias = Any
Key: TypeAlias = Array
Data: TypeAlias = PyTree
Latents: TypeAlias = PyTree
LogJoint: TypeAlias = Callable[..., Array]


class Params(NamedTuple):
    """Everything a fit trains, as one pytree.

    Attributes:
      guide: variational parameters phi of q(z; phi).
      model: parameters theta of a learned ``log_joint(x, z, theta)``; None when there are none.

    Example:
      >>> import bbvi, optax
      >>> optimizer = optax.multi_transform(
      ...     {"guide": optax.adam(0.05), "model": optax.adam(0.01)}, bbvi.Params("guide", "model")
      ... )
    """

    guide: PyTree
    model: PyTree = None


@dataclasses.dataclass(frozen=True)
class Site:
    """A part of the latents that one estimator is chosen for.

    Attributes:
      name: path of the latent, such as ``"w"`` or ``"layers.0"``.
      leaves: paths of the latent leaves the site covers.
      family: name of the distribution, for messages.
      reparameterized: whether a draw is a differentiable function of the guide's parameters.
      event_ndims: trailing axes of the site's one leaf that q draws jointly (1 for the rows of a
        Dirichlet); what they leave are independent blocks. None: the site is one block.
      num_values: K, where each block takes K values: the numbers 0..K-1, or with an event axis
        one-hot vectors of length K; None for any other support.
      shape: shape of the site's one leaf, where it is fixed.
      is_local: whether the leading axis of its latents goes with the rows of the data.
    """

    name: str
    leaves: tuple[str, ...]
    family: str
    reparameterized: bool
    event_ndims: int | None = None
    num_values: int | None = None
    shape: tuple[int, ...] | None = None
    is_local: bool = False

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of the independent blocks of a site of one leaf of fixed shape."""
        assert self.shape is not None
        assert self.event_ndims is not None
        return self.shape[: len(self.shape) - self.event_ndims]


def check_key(key: Any) -> Key:
    """The key, or an error if it is not one typed JAX key."""
    is_array = isinstance(key, jax.Array)
    if not (is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        got = f"{key.dtype}{list(key.shape)} array" if is_array else repr(key)
        raise TypeError(
            f"key must be one typed key, got {got}; make it with jax.random.key(0) (a legacy "
            "jax.random.PRNGKey can be wrapped by jax.random.wrap_key_data)."
        )
    return key
