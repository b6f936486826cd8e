"""VIMCO: score-function gradients of bounds of several draws."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Params, PyTree
from bbvi.estimators.base import SurrogateEstimator
from bbvi.estimators.reparameterization import check_not_forward_kl
from bbvi.objectives import Objective, in_groups
from bbvi.problem import Problem

Mean = Literal["geometric", "arithmetic"]


@dataclasses.dataclass(frozen=True)
class Vimco(SurrogateEstimator):
    r"""Score-function gradient of a bound of K draws, each with a learning signal of its own.

    With the loss :math:`\ell(\log w_1, \dots, \log w_K)` of K draws held fixed,

    .. math::
      g = \sum_k \big(\ell - \ell_{-k}\big) \nabla_\phi \log q(z_k; \phi)
          + \sum_k \frac{\partial \ell}{\partial \log w_k} \nabla_{\phi, \theta} \log w_k

    where :math:`\ell_{-k}` has :math:`\log w_k` replaced by a mean of the other draws' weights, so
    that it does not depend on :math:`z_k`. Unbiased, for any latents and any objective of several
    draws; learned model parameters get their gradient from the second sum. Each component of the
    model has its own weights and signals. ``log_joint`` need not be differentiable in z.

    The second sum keeps a variance of order 1/K where q is the posterior, so that the
    signal-to-noise ratio falls with K, unlike that of ``Ovis``. Cost: ``num_samples`` values of
    ``log_joint``.

    Args:
      num_samples: S, draws per step, a multiple of the objective's ``group_size`` K.
      mean: of the other draws' weights: ``"geometric"`` (default) or ``"arithmetic"``.

    Raises:
      ValueError: fewer than two draws in all or per bound, as with the ELBO; ``ForwardKl``; an
        unknown mean.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return jnp.where(z["b"] == 1, jnp.log(0.8), jnp.log(0.2))
      >>> guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     guide,
      ...     key=jax.random.key(0),
      ...     objective=bbvi.Iwae(4),
      ...     estimator=bbvi.Vimco(16),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> round(float(jax.nn.sigmoid(result.params.guide.families["b"]["logits"])), 1)
      0.8

    References:
      Mnih and Rezende (2016), Variational Inference for Monte Carlo Objectives.
    """

    num_samples: int = 32
    mean: Mean = "geometric"

    is_pathwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2:
            raise ValueError(f"Vimco needs num_samples >= 2, got {self.num_samples}.")
        if self.mean not in get_args(Mean):
            raise ValueError(f"mean must be one of {get_args(Mean)}, got {self.mean!r}.")

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        if problem.objective.group_size < 2:
            raise ValueError(
                "Vimco is for objectives of two draws or more, such as bbvi.Iwae(8), got "
                f"{problem.objective!r}; use bbvi.Elbo() with ScoreFunction."
            )
        check_not_forward_kl(self, problem)
        super().validate(problem, params, x)

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        z = stop_gradient(problem.sample(noise, params, x))
        log_p, log_q = problem.by_component(params, x, z)
        log_weights = log_p - log_q
        signals = learning_signals(problem.objective, stop_gradient(log_weights), self.mean)
        return problem.objective(log_weights) + jnp.sum(signals * log_q), (log_weights, state)


def learning_signals(objective: Objective, log_weights: Array, mean: Mean) -> Array:
    """The loss minus the loss without each draw, ``[S, C]`` from log weights ``[S, C]``."""
    groups = in_groups(objective, log_weights)
    num_groups, size, _ = groups.shape
    is_self = jnp.eye(size, dtype=bool)

    def one(group: Array) -> Array:
        others = jnp.broadcast_to(group, (size, size))
        # Masked rather than sum minus own, which would cancel where one weight is far larger.
        if mean == "arithmetic":
            stand_in = jax.nn.logsumexp(others, axis=1, where=~is_self) - jnp.log(size - 1)
        else:
            stand_in = jnp.mean(others, axis=1, where=~is_self)
        without = jnp.where(is_self, stand_in[:, None], others)
        return objective(group) - jax.vmap(objective)(without)

    by_component = jax.vmap(one, in_axes=1, out_axes=1)
    return jax.vmap(by_component)(groups).reshape(log_weights.shape) / num_groups
