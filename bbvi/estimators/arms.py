"""ARMS: any number of mutually antithetic Bernoulli draws."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._random import draw_flat
from bbvi._types import Key, PyTree, Site
from bbvi.estimators.coupled import CoupledEstimator, check_signal
from bbvi.estimators.discrete import BySite


@dataclasses.dataclass(frozen=True)
class Arms(CoupledEstimator):
    r"""Leave-one-out gradient from S mutually antithetic draws, for Bernoulli latents.

    With :math:`\theta = \sigma(\eta)`, :math:`q = \min(\theta, 1 - \theta)` and
    :math:`d \sim \mathrm{Dirichlet}(1, \dots, 1)` for each entry, draw s takes its rarer value
    where :math:`(1 - d_s)^{S-1} < q`. Any two draws both do with probability

    .. math:: \rho = \max(2 q^{1/(S-1)} - 1, 0)^{S-1} < q^2

    so that they differ more often than independent ones. With learning signals a,

    .. math::
      g_i = \frac{q (1 - q)}{q - \rho} \, \frac{1}{S-1} \sum_s (a_{si} - \bar a_i) b_{si}

    whose first factor makes up for the dependence. Unbiased. Two draws are ``DisArm``; more are
    better than pairs of them, and hardly cost anything but values of ``log_joint``, which need not
    be differentiable.

    Cost: ``num_samples`` values of ``log_joint``.

    Args:
      num_samples: S, draws per step, at least 2.
      signal: ``"adaptive"`` (default): the terms of ``log_joint`` in an entry's Markov blanket,
        plus a multiple of all others in its component that is learned from past steps;
        ``"component"``: log p - log q of the connected component, as in the paper.

    Raises:
      ValueError: one draw; sites other than Bernoulli; an objective other than the ELBO; an unknown
        signal.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.5, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.Arms(4),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(float(v), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.5, -2.0]

    References:
      Dimitriev and Zhou (2021), ARMS: Antithetic-REINFORCE-Multi-Sample Gradient for Binary
      Variables.
    """

    num_samples: int = 4
    signal: Literal["adaptive", "component"] = "adaptive"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_signal(self)
        if self.num_samples < 2:
            raise ValueError(
                "Arms compares draws with each other, so num_samples must be at least 2, got "
                f"{self.num_samples}."
            )

    def draw_sites(self, key: Key, sites: tuple[Site, ...]) -> PyTree:
        """Exponentials, which divided by their sum over the draws are the Dirichlet."""
        keys = jax.random.split(key, len(sites))
        return {
            site.name: draw_flat(jax.random.exponential, k, (self.num_samples, *site.block_shape))
            for site, k in zip(sites, keys, strict=True)
        }

    def couple(self, noise: BySite, logits: BySite) -> BySite:
        def one(exponentials: Array, eta: Array) -> Array:
            # 1 - d summed from the others, and logarithms: a rare value is still drawn when
            # 1 - d in float32 could not be that small.
            others = jnp.tensordot(
                1 - jnp.eye(self.num_samples), exponentials, axes=1, precision="highest"
            )
            log_rest = jnp.log(others) - jnp.log(jnp.sum(exponentials, axis=0))[None]
            is_rare = (self.num_samples - 1) * log_rest < jax.nn.log_sigmoid(-jnp.abs(eta))[None]
            return (is_rare == (eta <= 0)[None]).astype(jnp.int32)

        return {name: one(leaf, logits[name]) for name, leaf in noise.items()}

    def contract(self, signals: BySite, noise: BySite, indices: BySite, logits: BySite) -> BySite:
        def one(signal: Array, b: Array, eta: Array) -> Array:
            centred = signal - jnp.mean(signal, axis=0, keepdims=True)
            leave_one_out = jnp.sum(centred * b, axis=0) / (self.num_samples - 1)
            return leave_one_out * _correction(eta, self.num_samples)

        return {name: one(s, indices[name], logits[name]) for name, s in signals.items()}


def _correction(eta: Array, num_samples: int) -> Array:
    """The factor q (1 - q) / (q - rho), as (1 - q) / (1 - rho / q): the divisor is over 1/2."""
    # rho / q = (2 - 1/r)^(S-1) with r = q^(1/(S-1)).
    root = jnp.exp(-jax.nn.log_sigmoid(-jnp.abs(eta)) / (num_samples - 1))
    ratio = jnp.maximum(2 - root, 0) ** (num_samples - 1)
    return jax.nn.sigmoid(jnp.abs(eta)) / (1 - ratio)
