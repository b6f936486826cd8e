"""The few types every room of the library shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

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
