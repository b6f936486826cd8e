"""DisARM: antithetic pairs of Bernoulli draws."""

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
class DisArm(CoupledEstimator):
    r"""Antithetic pairs with the uniform noise of ARM integrated out, for Bernoulli latents.

    A pair shares one uniform per entry, :math:`b = 1[u < \sigma(\eta)]` and
    :math:`\tilde b = 1[1 - u < \sigma(\eta)]`. With learning signals :math:`a, \tilde a` of its two
    draws,

    .. math::
      g_i = \tfrac12 (a_i - \tilde a_i) (-1)^{\tilde b_i} 1[b_i \ne \tilde b_i] \,
            \sigma(|\eta_i|)

    averaged over the pairs. Unbiased. Also known as U2G. ``log_joint`` need not be differentiable.

    Cost: ``num_samples`` values of ``log_joint``.

    Args:
      num_samples: S, draws per step: an even number, S/2 pairs.
      signal: ``"adaptive"`` (default): the terms of ``log_joint`` in an entry's Markov blanket,
        plus a multiple of all others in its component that is learned from past steps;
        ``"component"``: log p - log q of the connected component, as in the papers.

    Raises:
      ValueError: an odd number of draws; sites other than Bernoulli; an objective other than the
        ELBO; an unknown signal.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.5, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.DisArm(4),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(float(v), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.5, -2.0]

    References:
      Dong, Mnih and Tucker (2020), DisARM: An Antithetic Gradient Estimator for Binary Latent
      Variables; Yin, Ho, Yan, Qian and Zhou (2020), Probabilistic Best Subset Selection via
      Gradient-Based Optimization.
    """

    num_samples: int = 4
    signal: Literal["adaptive", "component"] = "adaptive"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_signal(self)
        if self.num_samples % 2:
            raise ValueError(
                f"{type(self).__name__} draws pairs, so num_samples must be even, got "
                f"{self.num_samples}."
            )

    def draw_sites(self, key: Key, sites: tuple[Site, ...]) -> PyTree:
        keys = jax.random.split(key, len(sites))
        return {
            site.name: draw_flat(jax.random.uniform, k, (self.num_samples // 2, *site.block_shape))
            for site, k in zip(sites, keys, strict=True)
        }

    def couple(self, noise: BySite, logits: BySite) -> BySite:
        return {name: antithetic_pairs(u, logits[name]) for name, u in noise.items()}

    def contract(self, signals: BySite, noise: BySite, indices: BySite, logits: BySite) -> BySite:
        return {name: pair_gradient(s, indices[name], logits[name]) for name, s in signals.items()}


def antithetic_pairs(u: Array, eta: Array) -> Array:
    """Bernoulli draws ``[S, *blocks]`` from uniforms ``[S/2, *blocks]`` and their mirrors."""
    theta = jax.nn.sigmoid(eta)[None]
    return jnp.concatenate([u < theta, 1 - u < theta]).astype(jnp.int32)


def pair_gradient(signal: Array, b: Array, eta: Array) -> Array:
    """Gradient in the logits from signals ``[S, *blocks]`` of antithetic pairs."""
    (first, second), (b1, b2) = jnp.split(signal, 2), jnp.split(b, 2)
    sign = b1 - b2  # (-1)^b2 where they differ, else 0
    return jnp.mean(0.5 * (first - second) * sign, axis=0) * jax.nn.sigmoid(jnp.abs(eta))
