"""Reweighted wake-sleep: gradients of the forward divergence."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Params, PyTree
from bbvi.estimators.base import BiasedEstimator, SurrogateEstimator
from bbvi.objectives import ForwardKl, in_groups
from bbvi.problem import Problem


@dataclasses.dataclass(frozen=True, repr=False)
class ReweightedWakeSleep(BiasedEstimator, SurrogateEstimator):
    r"""Wake-phase gradients: self-normalised importance sampling of the forward divergence.

    With K draws held fixed and :math:`\tilde w_k = w_k / \sum_j w_j`,

    .. math::
      g_\phi = -\sum_k \big(\tilde w_k - \tfrac1K\big) \nabla_\phi \log q(z_k; \phi), \qquad
      g_\theta = -\sum_k \tilde w_k \nabla_\theta \log p_\theta(x, z_k)

    The first estimates :math:`\nabla_\phi KL(p(z \mid x) \| q)`. Its :math:`1/K` multiplies a score
    of mean zero, and makes the variance zero where q is the posterior. The second estimates
    :math:`-\nabla_\theta \log p_\theta(x)`, the gradient of ``Iwae`` rather than of the
    divergence: the model is fitted by maximum likelihood. Both are biased by O(1/K) and
    consistent as K grows. More groups of K draws reduce variance, not bias.

    Each component of the model has its own weights. Any latents; ``log_joint`` need not be
    differentiable in z. Cost: ``num_samples`` values of ``log_joint``.

    Args:
      num_samples: S, draws per step, a multiple of the objective's ``group_size`` K.

    Raises:
      ValueError: an objective other than ``ForwardKl``.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> guide = bbvi.MeanField({"z": bbvi.Normal((2,))})
      >>> precision = jnp.linalg.inv(jnp.array([[1.0, 0.8], [0.8, 1.0]]))
      >>> result = bbvi.fit(
      ...     lambda x, z: -0.5 * z["z"] @ precision @ z["z"],
      ...     guide,
      ...     key=jax.random.key(0),
      ...     objective=bbvi.ForwardKl(64),
      ...     estimator=bbvi.ReweightedWakeSleep(64),
      ...     num_steps=2000,
      ...     progress=False,
      ... )
      >>> scales = jnp.exp(guide.site_params(result.params.guide)["z"]["log_scale"])
      >>> [round(float(scale), 1) for scale in scales]  # marginal; the ELBO gives 0.6
      [1.0, 1.0]

    References:
      Bornschein and Bengio (2015), Reweighted Wake-Sleep; Le, Kosiorek, Siddharth, Teh and Wood
      (2019), Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow.
    """

    num_samples: int = 32

    is_pathwise: ClassVar[bool] = False

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        if not isinstance(problem.objective, ForwardKl):
            raise ValueError(
                f"ReweightedWakeSleep is for bbvi.ForwardKl(), got {problem.objective!r}; leave "
                "estimator unset for one that suits it."
            )
        super().validate(problem, params, x)

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        z = stop_gradient(problem.sample(noise, params, x))
        log_p, log_q = problem.by_component(params, x, z)
        log_weights = stop_gradient(log_p - log_q)
        groups = in_groups(problem.objective, log_weights)
        num_groups, size, _ = groups.shape
        shares = jax.nn.softmax(groups, axis=1).reshape(log_weights.shape)
        scalar = -jnp.sum(shares * log_p + (shares - 1 / size) * log_q) / num_groups
        return scalar, (log_weights, state)
