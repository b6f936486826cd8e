"""Coefficients of control variates, learned from past steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._types import PyTree

# Share of the past kept at each step by the moments a coefficient is learned from. It averages
# over about 200 steps, which costs half a percent of variance, and still follows the fit.
DECAY = 0.99


class Coefficient(NamedTuple):
    """Decayed sums of inner products of past gradients, and the coefficient that they give.

    For a gradient g + a c, whose control c has mean zero, the best a is -E<g, c> / E<c, c>.
    """

    covariance: Array
    variance: Array

    @staticmethod
    def init() -> Coefficient:
        """Coefficient zero."""
        return Coefficient(jnp.zeros(()), jnp.zeros(()))

    def value(self, low: float = 0.0, high: float = 1.0) -> Array:
        """The best multiple of the control variate, in [low, high]; 0 before the first step."""
        variance = jnp.where(self.variance > 0, self.variance, 1)
        return jnp.clip(-self.covariance / variance, low, high)

    def update(self, gradient: PyTree, control: PyTree) -> Coefficient:
        """The sums after one more step.

        Args:
          gradient: what the estimate was without the control variate.
          control: the control variate, of the same structure.
        """
        products = jax.tree.map(
            lambda a, b: jnp.stack([jnp.vdot(a, b), jnp.vdot(b, b)]), gradient, control
        )
        covariance, variance = sum(jax.tree.leaves(products), jnp.zeros(2))
        updated = Coefficient(
            DECAY * self.covariance + covariance.astype(self.covariance.dtype),
            DECAY * self.variance + variance.astype(self.variance.dtype),
        )
        # Squares of a huge yet finite gradient may overflow; one such step must not stay for ever.
        is_finite = jnp.isfinite(updated.covariance) & jnp.isfinite(updated.variance)
        return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), updated, self)
