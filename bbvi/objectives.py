"""Objectives: scalars of log weights log p(x, z) - log q(z), always minimised."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array


class Objective(abc.ABC):
    """A loss as a function of the log weights of S independent draws.

    Attributes:
      group_size: how many draws one evaluation of the bound takes.
      is_mean: whether the loss is minus the mean of the log weights (the ELBO), which is what
        the score-function estimators and closed-form entropies need.

    Example:
      >>> import dataclasses, bbvi, jax.numpy as jnp
      >>> @dataclasses.dataclass(frozen=True)
      ... class Worst(bbvi.Objective):
      ...     def __call__(self, log_weights):
      ...         return -jnp.min(log_weights)
      >>> float(Worst()(jnp.array([-1.0, -3.0])))
      3.0
    """

    is_mean: ClassVar[bool] = False
    group_size: int = 1

    @abc.abstractmethod
    def __call__(self, log_weights: Array) -> Array:
        """The loss, a scalar, from log weights ``[S]``."""


@dataclasses.dataclass(frozen=True)
class Elbo(Objective):
    r"""Minus the evidence lower bound, :math:`-\frac1S \sum_s \log p(x, z_s) - \log q(z_s)`.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> float(bbvi.Elbo()(jnp.array([-1.0, -3.0])))
      2.0

    References:
      Jordan, Ghahramani, Jaakkola and Saul (1999), An Introduction to Variational Methods for
      Graphical Models.
    """

    is_mean: ClassVar[bool] = True

    def __call__(self, log_weights: Array) -> Array:
        return -jnp.mean(log_weights)


@dataclasses.dataclass(frozen=True)
class Iwae(Objective):
    r"""Minus the importance-weighted bound, :math:`-\log \frac1K \sum_k e^{\log w_k}`.

    With more than K draws, the mean over groups of K. ``Iwae(1)`` is ``Elbo()``.

    Args:
      group_size: K, draws per bound; the estimator's ``num_samples`` is a multiple of it.

    Raises:
      ValueError: K below 1, or a number of log weights that K does not divide.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> round(float(bbvi.Iwae(2)(jnp.log(jnp.array([0.5, 1.5])))), 6)
      0.0

    References:
      Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """

    group_size: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.group_size, int) or self.group_size < 1:
            raise ValueError(f"Iwae group_size must be an int >= 1, got {self.group_size!r}.")

    def __call__(self, log_weights: Array) -> Array:
        if log_weights.size % self.group_size:
            raise ValueError(
                f"Iwae({self.group_size}) needs a multiple of {self.group_size} draws, got "
                f"{log_weights.size}: set the estimator's num_samples."
            )
        groups = log_weights.reshape(-1, self.group_size)
        bounds = jax.nn.logsumexp(groups, axis=1) - jnp.log(self.group_size)
        return -jnp.mean(bounds)
