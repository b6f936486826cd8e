"""Semi-amortized guides: a network's output, refined by a few steps on the ELBO of the data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bbvi._types import Data, Key, PyTree
from bbvi.amortized import Amortized
from bbvi.guides.base import Refinement
from bbvi.guides.families import Normal
from bbvi.guides.local import Local


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class SemiAmortized(Amortized):
    r"""A network gives the parameters of every datum's latents to start from, not to end at.

    .. math::
      q(z \mid x; \phi, \theta) = \prod_i q_i\big(z_i; \lambda_i^{(K)}\big), \qquad
      \lambda^{(0)} = \mathrm{network}_\phi(x), \qquad
      \lambda^{(k+1)} = \lambda^{(k)} + \text{step along } \nabla_\lambda
        \mathrm{ELBO}(\lambda^{(k)}, \theta; x)

    A network that serves all data cannot be best for each: the steps close much of that gap. The
    gradient of the training step goes through them, so that network and model are trained for the
    refined parameters. Estimators and results work on these: a printed result, ``sample`` and
    ``at`` refine for the data they are asked about.

    Cost: ``num_steps`` more gradients of ``log_joint`` for each draw of ``num_samples``, and in
    training the derivative of them.

    Args:
      sites: pytree of reparameterized families, as for ``Amortized``.
      network: as for ``Amortized``.
      num_steps: K, at least 1.
      step_size: share of a step of natural gradient, up to 1; see ``bbvi.refinement``.
      num_samples: draws that estimate the ELBO of the steps, an even number. They are the same at
        every step, in antithetic pairs and of unit variance in every coordinate, so that the
        steps lead to the right place where the log joint is quadratic.

    Raises:
      ValueError: a site is not ``Normal``; a count or the step size is out of range.
      TypeError: as for ``Amortized``.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp, flax.linen as nn
      >>> class Constant(nn.Module):  # the same for all data: steps must do the rest
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         out = self.param("out", nn.initializers.zeros, (2,))
      ...         return {"z": {"loc": out[0] + 0 * x, "log_scale": out[1] + 0 * x}}
      >>> def log_joint(x, z):
      ...     return -0.5 * jnp.sum(z["z"] ** 2) - 0.5 * jnp.sum((x - z["z"]) ** 2)
      >>> x = jnp.array([-1.0, 0.0, 1.0])
      >>> sites = {"z": bbvi.Normal((3,))}
      >>> guide = bbvi.SemiAmortized(sites, Constant(), num_steps=8)
      >>> result = bbvi.fit(log_joint, guide, x, key=jax.random.key(0), progress=False)
      >>> z = result.sample(jax.random.key(1), 4000)["z"]
      >>> bool(abs(z.mean(axis=0) - x / 2).max() < 0.1)
      True

    References:
      Kim, Wiseman, Miller, Sontag and Rush (2018), Semi-Amortized Variational Autoencoders;
      Cremer, Li and Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.
    """

    refinement: Refinement

    def __init__(
        self,
        sites: PyTree,
        network: Any,
        *,
        num_steps: int = 4,
        step_size: float = 0.5,
        num_samples: int = 8,
    ):
        super().__init__(sites, network)
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"SemiAmortized num_steps must be an int >= 1, got {num_steps!r}.")
        if not isinstance(num_samples, int) or num_samples < 4 or num_samples % 2:
            raise ValueError(
                f"SemiAmortized num_samples must be an even int >= 4, got {num_samples!r}."
            )
        if not 0 < step_size <= 1:
            raise ValueError(f"SemiAmortized step_size must be in (0, 1], got {step_size!r}.")
        for name, family in self.named_families.items():
            if not isinstance(family, Normal):
                raise ValueError(
                    "SemiAmortized steps along the natural gradient of normal sites, with any "
                    f"support, but site '{name}' is {family!r}; use Amortized for it."
                )
        object.__setattr__(self, "refinement", Refinement(num_steps, step_size, num_samples))

    def free(self) -> Local:
        return Local(jax.tree.unflatten(self.treedef, self.families))

    def start(self, params: PyTree, x: Data) -> PyTree:
        return self.mean_field.site_params(self.free_params(params, x))

    def refinement_noise(self, key: Key, num_samples: int) -> PyTree:
        normal, others = jax.vmap(self.base_noise)(jax.random.split(key, num_samples // 2))
        pairs = jnp.concatenate([normal, -normal])
        return pairs / jnp.sqrt(jnp.mean(pairs**2, axis=0, keepdims=True)), others
