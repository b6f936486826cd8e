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

    For a gradient g + a c, whose control c has mean zero, the best a is -E<g, c> / E<c, c>. An
    estimate of it that is no larger than its own error would add noise where there is nothing to
    gain, so it is shrunk towards zero, the more the less certain it is.

    Attributes:
      covariance: sum of <g, c>.
      variance: sum of <c, c>.
      error: standard error of the first, from what each step was off the line so far.
    """

    covariance: Array
    variance: Array
    error: Array

    @staticmethod
    def init() -> Coefficient:
        """Coefficient zero."""
        return Coefficient(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))

    def least_squares(self) -> Array:
        """The multiple of the control variate that would have been best so far."""
        return -self.covariance / jnp.where(self.variance > 0, self.variance, 1)

    def value(self, low: float = 0.0, high: float = 1.0) -> Array:
        """The multiple to use, in [low, high]; 0 before the first step."""
        # As the estimator of James and Stein (1961), twice as careful: errors have heavy tails.
        size = jnp.abs(self.covariance)
        share = self.error / jnp.where(size > 0, size, 1)
        return jnp.clip(self.least_squares() * jnp.maximum(1 - 2 * share**2, 0), low, high)

    def update(self, gradient: PyTree, control: PyTree) -> Coefficient:
        """The sums after one more step.

        Args:
          gradient: what the estimate was without the control variate.
          control: the control variate, of the same structure.
        """
        products = jax.tree.map(
            lambda a, b: jnp.stack([jnp.vdot(a, b), jnp.vdot(b, b)]), gradient, control
        )
        covariance, variance = sum(jax.tree.leaves(products), jnp.zeros(2)).astype(
            self.covariance.dtype
        )
        # A recursive residual (Brown, Durbin and Evans, 1975): where the past says little, as after
        # controls of the size of rounding, most of what is off is the coefficient's own error.
        past = jnp.where(self.variance > 0, self.variance, 1)
        residual = (covariance + self.least_squares() * variance) / jnp.sqrt(1 + variance / past)
        off = jnp.where(self.variance > 0, residual, 0)
        updated = Coefficient(
            DECAY * self.covariance + covariance,
            DECAY * self.variance + variance,
            jnp.hypot(DECAY * self.error, off),
        )
        # Squares of a huge yet finite gradient may overflow; one such step must not stay for ever.
        is_finite = jnp.isfinite(jnp.stack(updated)).all()
        return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), updated, self)
