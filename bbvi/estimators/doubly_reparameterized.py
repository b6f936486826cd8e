"""Doubly reparameterized gradients of bounds of several draws."""

from __future__ import annotations

import dataclasses

import jax
from jax import Array

from bbvi._tree import named_leaves
from bbvi._types import Data, Latents, Params, PyTree
from bbvi.estimators.base import Estimate, Estimator
from bbvi.objectives import PowerMean, in_groups
from bbvi.problem import Problem, over_draws


@dataclasses.dataclass(frozen=True)
class DoublyReparameterized(Estimator):
    r"""Pathwise gradient of a bound of K draws, without its score terms.

    The pathwise gradient of a bound of several draws has a score term left over,
    :math:`\sum_k u_k \nabla_\phi \log q(z_k; \phi)`, whose mean is not zero as it is for the ELBO,
    and whose noise drowns the gradient as K grows. A second reparameterization removes it. For
    :math:`B = \frac1r \log \frac1K \sum_k w_k^r` with :math:`u_k = w_k^r / \sum_j w_j^r`,

    .. math::
      \nabla_\phi B = \sum_k \big((1 - r) u_k + r u_k^2\big)
          \frac{\partial \log w_k}{\partial z_k} \nabla_\phi T(\epsilon_k; \phi), \qquad
      \nabla_\theta B = \sum_k u_k \nabla_\theta \log p_\theta(x, z_k)

    where r is 1 for ``Iwae``, :math:`1 - \alpha` for ``Renyi`` and the order for ``Chi`` (minus
    whose bound is maximised). Unbiased for the gradient of the expected loss, of zero variance in
    :math:`\phi` where q is the posterior. With ``Iwae(1)`` it is stick-the-landing. Each
    component of the model has its own weights. Requires reparameterized sites and a log joint
    differentiable in z. Cost: ``num_samples`` gradients of ``log_joint``.

    The weights: the score term has the mean
    :math:`E[\partial u_k / \partial z_k \cdot \nabla_\phi T]`, and
    :math:`\partial u_k / \partial \log w_k = r u_k (1 - u_k)` is taken from :math:`u_k`.

    Args:
      num_samples: S, draws per step, a multiple of the objective's ``group_size`` K.

    Raises:
      ValueError: an objective other than ``Iwae``, ``Renyi`` and ``Chi``; a site that is not
        reparameterizable; a ``log_joint`` that is not differentiable.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.MeanField({"z": bbvi.Normal()})
      >>> result = bbvi.fit(
      ...     lambda x, z: -0.5 * (z["z"] - x) ** 2,
      ...     guide,
      ...     2.0,
      ...     key=jax.random.key(0),
      ...     objective=bbvi.Iwae(4),
      ...     estimator=bbvi.DoublyReparameterized(4),
      ...     num_steps=2000,
      ...     progress=False,
      ... )
      >>> bool(abs(guide.site_params(result.params.guide)["z"]["loc"] - 2.0) < 0.1)
      True

    References:
      Tucker, Lawson, Gu and Maddison (2019), Doubly Reparameterized Gradient Estimators for Monte
      Carlo Objectives; Daudel, Benton, Shi and Doucet (2023), Alpha-Divergence Variational
      Inference Meets Importance Weighted Auto-Encoders.
    """

    num_samples: int = 8

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        if not isinstance(problem.objective, PowerMean):
            raise ValueError(
                "DoublyReparameterized is for bbvi.Iwae, bbvi.Renyi and bbvi.Chi, got "
                f"{problem.objective!r}; leave estimator unset for one that suits it."
            )
        super().validate(problem, params, x)

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        def sample(phi: PyTree) -> Latents:
            return problem.sample(noise, params._replace(guide=phi), x)

        def log_weights(z: Latents, model: PyTree) -> Array:
            log_p, log_q = problem.by_component(params._replace(model=model), x, z)
            return log_p - log_q

        z, to_guide = jax.vjp(sample, params.guide)
        weights, to_draws = jax.vjp(log_weights, z, params.model)
        objective = problem.objective
        assert isinstance(objective, PowerMean)
        # One backward pass: the gradient with respect to a draw is that of its own log weights,
        # so what the second reparameterization changes is a factor of it.
        loss, slopes = jax.value_and_grad(objective)(weights)
        by_draw, model_grads = to_draws(slopes)
        r = objective.power
        shares = jax.nn.softmax(r * in_groups(objective, weights), axis=1).reshape(weights.shape)
        by_draw = _scale(by_draw, 1 - r + r * shares, problem, params, x)
        (guide_grads,) = to_guide(by_draw)
        return Estimate(loss, Params(guide_grads, model_grads), weights), state


def _scale(draws: Latents, factors: Array, problem: Problem, params: Params, x: Data) -> Latents:
    """Draws ``[S, ...]`` times the factors ``[S, C]`` of their components."""
    components = problem.components(params, x)
    by_site = over_draws(components.spread, factors)
    leaves = named_leaves(draws, "latents")
    for site in problem.guide.sites():
        blocks = by_site[site.name]
        for name in site.leaves:
            num_axes = leaves[name].ndim - blocks.ndim
            leaves[name] = leaves[name] * blocks.reshape(blocks.shape + (1,) * num_axes)
    return jax.tree.unflatten(jax.tree.structure(draws), list(leaves.values()))
