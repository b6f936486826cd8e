"""OVIS: score-function gradients of the importance-weighted bound that improve with more draws."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Params, PyTree
from bbvi.estimators.base import BiasedEstimator, SurrogateEstimator
from bbvi.objectives import Iwae, in_groups
from bbvi.problem import Problem


@dataclasses.dataclass(frozen=True, repr=False)
class Ovis(BiasedEstimator, SurrogateEstimator):
    r"""Score-function gradient of the importance-weighted bound with near-optimal baselines.

    With K draws held fixed, their mean weight :math:`\hat Z`, that of the other draws
    :math:`\hat Z_{-k}` and :math:`\tilde w_k = w_k / \sum_j w_j`,

    .. math::
      g = -\sum_k \big(\log \hat Z - \tilde w_k - c_k\big) \nabla_\phi \log q(z_k; \phi)
          - \sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k), \qquad
      c_k = \log \hat Z_{-k} + (1 - \gamma) \log\big(1 - \tfrac1K\big) - \gamma \tilde w_k

    With :math:`\gamma = 0` the baseline :math:`c_k` does not depend on :math:`z_k`: unbiased. The
    factor of the score is then :math:`-\log(1 - \tilde w_k) - \tilde w_k \approx \tilde w_k^2 / 2`,
    so small that the signal-to-noise ratio GROWS like :math:`\sqrt K`, where that of ``Vimco``
    falls, as long as the weights have the moments for it: where the guide is as wide as the
    posterior. With two or three draws ``Vimco`` can be the better.

    With :math:`\gamma > 0` it is biased in :math:`\phi`, and ``is_biased`` says so: it adds, up to
    a term of mean zero, :math:`-\gamma \sum_k \tilde w_k \nabla_\phi \log q(z_k)`, the gradient
    of ``ReweightedWakeSleep``, beside which at 1 and many draws hardly anything else is left.

    Each component of the model has its own weights. Any latents; ``log_joint`` need not be
    differentiable in z. Cost: ``num_samples`` values of ``log_joint``.

    Args:
      num_samples: S, draws per step, a multiple of the objective's ``group_size`` K.
      gamma: in [0, 1]; 0 (default) is unbiased.

    Raises:
      ValueError: ``gamma`` outside [0, 1]; an objective other than ``Iwae``; fewer than two draws.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return jnp.where(z["b"] == 1, jnp.log(0.8), jnp.log(0.2))
      >>> guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     guide,
      ...     key=jax.random.key(0),
      ...     objective=bbvi.Iwae(16),
      ...     estimator=bbvi.Ovis(16),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> round(float(jax.nn.sigmoid(result.params.guide.families["b"]["logits"])), 1)
      0.8

    References:
      Liévin, Dittadi, Christensen and Winther (2020), Optimal Variance Control of the
      Score-Function Gradient Estimator for Importance-Weighted Bounds.
    """

    num_samples: int = 32
    gamma: float = 0.0

    is_pathwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2:
            raise ValueError(f"Ovis needs num_samples >= 2, got {self.num_samples}.")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"Ovis gamma must be in [0, 1], got {self.gamma!r}.")

    @property
    def is_biased(self) -> bool:  # type: ignore[override]
        return self.gamma > 0

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        if not isinstance(problem.objective, Iwae) or problem.objective.group_size < 2:
            raise ValueError(
                "Ovis is for bbvi.Iwae of two draws or more, got "
                f"{problem.objective!r}; leave estimator unset for one that suits it."
            )
        super().validate(problem, params, x)

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        z = stop_gradient(problem.sample(noise, params, x))
        log_p, log_q = problem.by_component(params, x, z)
        log_weights = log_p - stop_gradient(log_q)
        groups = in_groups(problem.objective, stop_gradient(log_weights))
        factors = self._factors(groups).reshape(log_q.shape) / len(groups)
        return problem.objective(log_weights) - jnp.sum(factors * log_q), (log_weights, state)

    def _factors(self, groups: Array) -> Array:
        """Factors of the scores, from log weights ``[G, K, C]``."""
        size = groups.shape[1]
        weights = jax.nn.softmax(groups, axis=1)
        is_other = ~jnp.eye(size, dtype=bool)[None, :, :, None]
        others = jax.nn.logsumexp(groups[:, None], axis=2, where=is_other)
        # log(1 - weight): the first form is exact for small weights, the second for large ones.
        total = jax.nn.logsumexp(groups, axis=1, keepdims=True)
        log_rest = jnp.where(weights < 0.5, jnp.log1p(-weights), others - total)
        bias = self.gamma * (weights + math.log1p(-1 / size))
        return bias - log_rest - weights
