"""Draws from every component of a mixture guide, weighed by its weights."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Key, Params, PyTree
from bbvi.estimators.base import Cost, SurrogateEstimator, check_elbo, check_groups
from bbvi.guides import Mixture
from bbvi.problem import Problem, over_draws


@dataclasses.dataclass(frozen=True)
class Stratified(SurrogateEstimator):
    r"""Pathwise gradients for a ``Mixture``: draws from every component, summed by its weights.

    .. math::
      \mathrm{ELBO} = \sum_k w_k \, E_{q_k}[\log p(x, z) - \log q(z)], \qquad
      g = -\nabla_\phi \frac1S \sum_{s, k} w_k(\phi)
          \big[\log p(x, z_{sk}(\phi)) - \log q(z_{sk}(\phi); \bar\phi)\big]

    with :math:`z_{sk} \sim q_k` and :math:`\bar\phi` held fixed in the density, whose own
    derivative has mean zero. Unbiased in the weights too: which component a draw comes from is
    summed out, not drawn, so that their gradient has no more variance where modes are far apart.
    Where q is the posterior there is no variance at all.

    Cost: K S gradients of ``log_joint`` for K components.

    Args:
      num_samples: S, draws from each component.

    Raises:
      ValueError: the guide is not a ``Mixture``, the objective not the ELBO, or ``log_joint`` not
        differentiable.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.Mixture(bbvi.MeanField({"w": bbvi.Normal((2,))}), 3)
      >>> problem = bbvi.Problem(lambda x, z: -0.5 * (z["w"] ** 2).sum(), guide)
      >>> params, estimator = problem.init(jax.random.key(0), None), bbvi.Stratified(4)
      >>> noise = estimator.draw(jax.random.key(1), problem)
      >>> estimate, _ = estimator.estimate(noise, problem, params, None, ())
      >>> estimate.log_weights.shape, estimate.grads.guide["logits"].shape
      ((4,), (3,))

    References:
      Morningstar, Vikram, Ham, Gallagher and Dillon (2021), Automatic Differentiation Variational
      Inference with Mixtures, for the stratified ELBO; Roeder, Wu and Duvenaud (2017), Sticking the
      Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference.
    """

    num_samples: int = 8

    is_pathwise: ClassVar[bool] = False  # in the weights; differentiability is checked below

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        if not isinstance(problem.guide, Mixture):
            raise ValueError(
                f"Stratified draws from every component of a bbvi.Mixture, got {problem.guide!r}; "
                "leave estimator unset for one that suits it."
            )
        check_elbo(self, problem)
        check_groups(self, problem)
        bad = [name for name, ok in problem.pathwise_leaves(params, x).items() if not ok]
        if bad:
            raise ValueError(
                f"log_joint is not differentiable in latent '{bad[0]}' (a callback, a loop without "
                "a reverse rule, or a derivative that is zero everywhere), so Stratified cannot "
                "differentiate through its draws. Use ScoreFunction, or leave estimator unset."
            )

    def cost_for(self, problem: Problem, params: Params, x: Data) -> Cost:
        del params, x
        return Cost(gradients=self.num_samples * problem.guide.num_components)  # type: ignore[attr-defined]

    def draw(self, key: Key, problem: Problem) -> PyTree:
        guide = problem.guide
        assert isinstance(guide, Mixture)
        keys = jax.random.split(key, (self.num_samples, guide.num_components))
        return jax.vmap(jax.vmap(guide.guide.base_noise))(keys)

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        guide = problem.guide
        assert isinstance(guide, Mixture)
        z = over_draws(lambda n: guide.sample_components(n, params.guide, x), noise)  # [S, K, ...]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), z)
        log_q = problem.log_q(stop_gradient(params), x, flat)
        by_draw = (problem.log_p(params, x, flat) - log_q).reshape(-1, guide.num_components)
        log_weights = by_draw @ jax.nn.softmax(params.guide["logits"])
        return -jnp.mean(log_weights), (log_weights, state)
