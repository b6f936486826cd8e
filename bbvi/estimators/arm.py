"""ARM: antithetic pairs of Bernoulli draws, weighted by their uniform."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bbvi.estimators.disarm import DisArm
from bbvi.estimators.discrete import BySite


@dataclasses.dataclass(frozen=True)
class Arm(DisArm):
    r"""Augment-REINFORCE-merge: antithetic pairs and their common uniform, for Bernoulli latents.

    A pair shares one uniform per entry, :math:`b = 1[u < \sigma(\eta)]` and
    :math:`\tilde b = 1[1 - u < \sigma(\eta)]`. With learning signals :math:`a, \tilde a` of its two
    draws,

    .. math:: g_i = (\tilde a_i - a_i) (u_i - \tfrac12)

    averaged over the pairs. Unbiased. ``DisArm`` is its mean given the pair, which costs the same
    and never has more variance: use that, and ``Arm`` to compare with published results.
    ``log_joint`` need not be differentiable.

    Cost: ``num_samples`` values of ``log_joint``.

    Args:
      num_samples: S, draws per step: an even number, S/2 pairs.
      signal: ``"adaptive"`` (default): the terms of ``log_joint`` in an entry's Markov blanket,
        plus a multiple of all others in its component that is learned from past steps;
        ``"component"``: log p - log q of the connected component, as in the paper.

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
      ...     estimator=bbvi.Arm(4),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(float(v), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.5, -2.0]

    References:
      Yin and Zhou (2019), ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks.
    """

    def contract(self, signals: BySite, noise: BySite, indices: BySite, logits: BySite) -> BySite:
        def one(signal: jax.Array, u: jax.Array) -> jax.Array:
            first, second = jnp.split(signal, 2)
            return jnp.mean((second - first) * (u - 0.5), axis=0)

        return {name: one(s, noise[name]) for name, s in signals.items()}
