"""Straight-through: slopes at hard draws, as if each draw moved with its mean."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from bbvi._types import PyTree
from bbvi.estimators.base import BiasedEstimator, Cost
from bbvi.estimators.discrete import BySite, DiscreteEstimator, DiscreteModel, LogitGradient
from bbvi.estimators.first_order import through_means, uniform_draws


@dataclasses.dataclass(frozen=True, repr=False)
class StraightThrough(BiasedEstimator, DiscreteEstimator):
    r"""Straight-through estimator: the slope at a draw, passed on to the logits by the mean.

    .. math:: g = \frac1S \sum_s \frac{\partial \mu}{\partial \eta} f'(b_s)

    with f = log p - log q, its logits held fixed, and :math:`\mu` the mean of b. One draw moves all
    logits, with little noise.

    Biased: it takes the slope at an end for the difference of f between the ends. For a Bernoulli
    with :math:`f = (b - t)^2` it is off by :math:`\theta (1 - \theta) (2 \theta - 1)`. Exact in
    expectation where f is linear in each latent, whatever their products. The loss and gradients
    of learned model parameters are those of the hard draws: they are not biased.

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
      ...     estimator=bbvi.StraightThrough(2),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(float(v), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.0, -2.0]

    References:
      Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic
      Neurons for Conditional Computation.
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
        slopes = {name: jnp.mean(leaf, axis=0) for name, leaf in draws.slopes.items()}
        ascent = through_means(model, logits, slopes)
        return LogitGradient(ascent, draws.log_weights, draws.model_grads), state
