"""The log-variance gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Params, PyTree
from bbvi.estimators.base import SurrogateEstimator, check_elbo
from bbvi.problem import Problem


@dataclasses.dataclass(frozen=True)
class VarGrad(SurrogateEstimator):
    r"""Gradient of half the variance of the log weights, with the draws held fixed.

    .. math::
      g = \nabla_\phi \frac{1}{2 (S-1)} \sum_s \big(d_s - \bar d\big)^2, \qquad
      d_s = \log q(z_s; \phi) - \log p(x, z_s)

    Parts of the model that share no term, such as the data of a batch, have a variance each.
    Unbiased for the ELBO, and equal draw for draw to the score function with a leave-one-out
    baseline and ``signal="component"``; the divisor must be S - 1 (dividing by S shrinks the
    gradient by (S-1)/S).
    Cost: ``num_samples`` values of ``log_joint``, which need not be differentiable.

    Args:
      num_samples: S, at least 2.

    Raises:
      ValueError: fewer than two draws; an objective other than the ELBO.

    Example:
      >>> import bbvi
      >>> bbvi.VarGrad(num_samples=8)
      VarGrad(num_samples=8)

    References:
      Richter, Boustati, Nuesken, Ruiz and Akyildiz (2020), VarGrad: A Low-Variance Gradient
      Estimator for Variational Inference.
    """

    num_samples: int = 32

    is_pathwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2:
            raise ValueError(f"VarGrad needs num_samples >= 2, got {self.num_samples}.")

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        z = problem.sample(noise, params._replace(guide=stop_gradient(params.guide)), x)
        log_p, log_q = problem.by_component(params, x, z)
        half_variances = 0.5 * jnp.var(log_q - stop_gradient(log_p), axis=0, ddof=1)
        # The mean of log p carries the gradient of learned model parameters, and nothing else.
        scalar = jnp.sum(half_variances) - jnp.sum(jnp.mean(log_p, axis=0))
        return scalar, (jnp.sum(stop_gradient(log_p - log_q), axis=1), state)
