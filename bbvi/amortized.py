"""Amortized guides: one network gives the parameters of every datum's latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from bbvi._tree import is_floating, shapes
from bbvi._types import Data, Key, Latents, PyTree, Site
from bbvi.baselines import check_network
from bbvi.guides.base import StructuredGuide
from bbvi.guides.families import Family
from bbvi.guides.mean_field import MeanField, MeanFieldParams


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Amortized(StructuredGuide):
    r"""Independent families whose parameters a network computes from the data.

    .. math::
      q(z \mid x; \phi) = \prod_i q_i\big(z_i; \lambda_i\big), \qquad
      \lambda = \mathrm{network}_\phi(x)

    What is trained is :math:`\phi`, the network's parameters, by any estimator: gradients at the
    network's output pass on to them by the chain rule. Shapes of sites include the batch axis. For
    data of another size (a test set, say) build the guide anew with other shapes: the same trained
    parameters fit it.

    Args:
      sites: pytree of families, as for ``MeanField``.
      network: any hashable object with ``init(key, x) -> params`` and ``apply(params, x)``, such as
        a ``flax.linen`` module. It gets the data whole and returns the structure of ``sites`` with,
        in the place of each family, its parameters: ``{"logits": [*shape]}`` for
        ``Bernoulli(shape)``, ``{"loc": [*shape], "log_scale": [*shape]}`` for ``Normal(shape)``. If
        the sites have a single parameter array in all, as one Bernoulli site has, it may return
        that array itself.

    Raises:
      TypeError: a leaf of ``sites`` is not a family, or ``network`` not a hashable network.
      ValueError: from ``init``: the network's output does not fit the sites; the network carries
        state besides its parameters (batch statistics), which no estimator here would update.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp, flax.linen as nn
      >>> class Encoder(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         loc = nn.Dense(1)(x[:, None])[:, 0]
      ...         log_scale = self.param("log_scale", nn.initializers.zeros, ())
      ...         return {"z": {"loc": loc, "log_scale": jnp.full_like(loc, log_scale)}}
      >>> def log_joint(x, z):  # z_n ~ N(0, 1), x_n ~ N(z_n, 1): E[z_n | x_n] = x_n / 2
      ...     return -0.5 * jnp.sum(z["z"] ** 2) - 0.5 * jnp.sum((x - z["z"]) ** 2)
      >>> guide = bbvi.Amortized({"z": bbvi.Normal((4,))}, Encoder())
      >>> x = jnp.array([-2.0, -1.0, 1.0, 3.0])
      >>> result = bbvi.fit(log_joint, guide, x, key=jax.random.key(0), progress=False)
      >>> bool(abs(result.params.guide["params"]["Dense_0"]["kernel"][0, 0] - 0.5) < 0.01)
      True

    References:
      Dayan, Hinton, Neal and Zemel (1995), The Helmholtz Machine; Kingma and Welling (2014),
      Auto-Encoding Variational Bayes; Mnih and Gregor (2014), Neural Variational Inference and
      Learning in Belief Networks.
    """

    network: Any

    has_entropy = True

    def __init__(self, sites: PyTree, network: Any):
        super().__init__(sites, Family)
        check_network(network)
        object.__setattr__(self, "network", network)

    def __repr__(self) -> str:
        return f"Amortized({jax.tree.unflatten(self.treedef, self.families)!r}, {self.network!r})"

    @property
    def mean_field(self) -> MeanField:
        """The same sites with free parameters; everything is computed by it."""
        return MeanField(jax.tree.unflatten(self.treedef, self.families))

    @property
    def reparameterized(self) -> bool:  # type: ignore[override]
        return self.mean_field.reparameterized

    def sites(self) -> tuple[Site, ...]:
        return self.mean_field.sites()

    def init(self, key: Key, x: Data) -> PyTree:
        params = self.network.init(key, x)
        _check_collections(params)
        jax.eval_shape(self.free_params, params, x)
        return params

    def free_params(self, params: PyTree, x: Data) -> MeanFieldParams:
        """The network's output at the data, as parameters of ``mean_field``."""
        try:
            output = self.network.apply(params, x)
        except Exception as error:
            error.add_note(
                "Amortized calls network.apply(params, x) and nothing else: a network that draws "
                "random numbers (dropout) or updates statistics must be told not to, as with "
                "deterministic=True."
            )
            raise
        key = jax.eval_shape(lambda: jax.random.key(0))
        expected = self.pack(
            {name: jax.eval_shape(f.init, key) for name, f in self.named_families.items()}
        )
        leaves, wanted = jax.tree.leaves(output), jax.tree.leaves(expected)
        treedef: Any = jax.tree.structure(expected)
        is_lone_array = len(wanted) == 1 and jax.tree_util.all_leaves([output])
        if not (
            (is_lone_array or treedef == jax.tree.structure(output))
            and [leaf.shape for leaf in leaves] == [leaf.shape for leaf in wanted]
            and all(map(is_floating, leaves))
        ):
            raise ValueError(
                f"the network of Amortized returned {shapes(output, 'output')}, but its sites need "
                f"{shapes(expected, 'output')}: the structure of sites with the parameters of each "
                "family in its place; shapes of sites include the batch axis."
            )
        by_site = jax.tree.unflatten(treedef, leaves)
        return self.mean_field.from_site_params(
            dict(zip(self.named_families, self.treedef.flatten_up_to(by_site), strict=True))
        )

    def site_params(self, params: PyTree) -> dict[str, PyTree]:
        """The network's parameters for every site, since all of them serve it.

        So a coefficient that ``ScoreFunction`` learns for a site is the best for the gradient of
        the whole network, and the same for all sites of that estimator.
        """
        return dict.fromkeys(self.named_families, params)

    def logits(self, params: PyTree, x: Data) -> dict[str, Array]:
        return self.mean_field.logits(self.free_params(params, x), x)

    def distributions(self, params: PyTree, x: Data) -> dict[str, Any]:
        return self.mean_field.distributions(self.free_params(params, x), x)

    def base_noise(self, key: Key) -> PyTree:
        return self.mean_field.base_noise(key)

    def noise_sizes(self) -> dict[str, int | None]:
        return self.mean_field.noise_sizes()

    def noise_from_uniform(self, u: Array) -> PyTree:
        return self.mean_field.noise_from_uniform(u)

    def sample(self, noise: PyTree, params: PyTree, x: Data) -> Latents:
        return self.mean_field.sample(noise, self.free_params(params, x), x)

    def log_prob(self, params: PyTree, x: Data, z: Latents) -> Array:
        return self.mean_field.log_prob(self.free_params(params, x), x, z)

    def site_log_probs(self, params: PyTree, x: Data, z: Latents) -> dict[str, Array]:
        return self.mean_field.site_log_probs(self.free_params(params, x), x, z)

    def site_entropies(self, params: PyTree, x: Data, z: Latents) -> dict[str, Array]:
        return self.mean_field.site_entropies(self.free_params(params, x), x, z)

    def sample_and_log_prob(self, noise: PyTree, params: PyTree, x: Data) -> tuple[Latents, Array]:
        return self.mean_field.sample_and_log_prob(noise, self.free_params(params, x), x)

    def sample_and_entropy(self, noise: PyTree, params: PyTree, x: Data) -> tuple[Latents, Array]:
        return self.mean_field.sample_and_entropy(noise, self.free_params(params, x), x)


def _check_collections(params: PyTree) -> None:
    """Raise where a network of Flax has variables that are not parameters."""
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = sorted(set(params) - {"params"})
        raise ValueError(
            f"the network of Amortized has variables besides its parameters, {others}: they would "
            "be trained as parameters instead of updated. Leave out what needs them, such as batch "
            "normalisation (layer normalisation needs none)."
        )
