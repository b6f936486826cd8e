"""ReinMax: straight-through of second order."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from bbvi._types import PyTree, Site
from bbvi.estimators.base import BiasedEstimator, Cost
from bbvi.estimators.discrete import BySite, DiscreteEstimator, DiscreteModel, LogitGradient
from bbvi.estimators.first_order import mean_values, uniform_draws


@dataclasses.dataclass(frozen=True, repr=False)
class ReinMax(BiasedEstimator, DiscreteEstimator):
    r"""ReinMax: the trapezoid rule for differences of f, from slopes at hard draws.

    With f = log p - log q, its logits held fixed, the mean :math:`\mu` of b, and
    :math:`J(\pi) = \mathrm{diag}(\pi) - \pi \pi^\top`, for one binary latent
    :math:`\pi (1 - \pi)`,

    .. math:: g = \frac1S \sum_s \Big(2 J\big(\tfrac{\mu + b_s}{2}\big) - \tfrac12 J(\mu)\Big)
                  f'(b_s)

    For a Bernoulli that is :math:`\tfrac12 (1 - \theta) f'(1)` or
    :math:`\tfrac12 \theta f'(0)`, so that :math:`f(1) - f(0)` is taken to be
    :math:`\tfrac12 (f'(0) + f'(1))`.

    Biased, yet of second order: exact in expectation where f is at most quadratic along each
    latent, whatever their products; 50% too long for :math:`f = b^3`. The loss and gradients of
    learned model parameters are those of the hard draws: they are not biased.

    For Bernoulli and ``OneHotCategorical`` sites, if ``log_joint`` is differentiable between the
    values of its latents.

    Cost: ``num_samples`` values and slopes of ``log_joint``.

    Args:
      num_samples: S, draws per step.

    Raises:
      ValueError: sites of another kind; a ``log_joint`` that is not differentiable in real values
        of the latents; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.0, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.ReinMax(4),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(float(v), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.0, -2.0]

    References:
      Liu, Dong, Liu, Yu and Gao (2023), Bridging Discrete and Backpropagation: Straight-Through and
      Beyond.
    """

    num_samples: int = 1

    is_binary: ClassVar[bool] = False
    is_relaxed: ClassVar[bool] = True

    @property
    def cost(self) -> Cost:
        return Cost(gradients=self.num_samples)

    def logit_gradient(
        self, noise: BySite, model: DiscreteModel, logits: BySite, state: PyTree
    ) -> tuple[LogitGradient, PyTree]:
        draws = uniform_draws(model, logits, noise, with_slopes=True)
        means = mean_values(model, logits)

        def one(site: Site) -> Array:
            mean, slopes = means[site.name][None], draws.slopes[site.name]
            middle = (mean + draws.values[site.name]) / 2
            terms = 2 * _covariance(site, middle, slopes) - _covariance(site, mean, slopes) / 2
            return jnp.mean(terms, axis=0)

        ascent = {site.name: one(site) for site in model.sites}
        return LogitGradient(ascent, draws.log_weights, draws.model_grads), state


def _covariance(site: Site, probs: Array, slopes: Array) -> Array:
    """The covariance of a draw with these probabilities, times slopes."""
    if site.event_ndims:
        return probs * (slopes - jnp.sum(probs * slopes, axis=-1, keepdims=True))
    return probs * (1 - probs) * slopes
