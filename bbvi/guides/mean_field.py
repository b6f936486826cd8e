"""Mean-field guides: independent families, one per latent."""

from __future__ import annotations

import contextlib
import math
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri

from bbvi._types import Data, Key, Latents, PyTree, Site
from bbvi.guides.base import StructuredGuide
from bbvi.guides.families import Family, Normal
from bbvi.guides.gaussian import Layout, standard_normal_entropy, standard_normal_log_prob


class MeanFieldParams(NamedTuple):
    """Parameters of a mean-field guide.

    Attributes:
      normal: ``[2, D]``: locations and log scales of all normal sites side by side. One array
        instead of two per site makes a small step much faster; ``MeanField.site_params`` splits
        it by name.
      families: parameters of every other site, by name.
    """

    normal: Array
    families: dict[str, PyTree]


class MeanField(StructuredGuide):
    r"""Independent families over named latents: :math:`q(z; \phi) = \prod_i q_i(z_i; \phi_i)`.

    Args:
      sites: pytree (dict, tuple, nested, or one site) of families: ``Normal``, ``LogNormal``,
        ``Laplace``, ``StudentT``, ``NormalMixture``, ``Gamma``, ``Beta``, ``Dirichlet``,
        ``VonMises``, ``Bernoulli``, ``Categorical``. Draws have the same structure.

    Raises:
      TypeError: a leaf is not a family.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.MeanField({"w": bbvi.Normal((2,)), "c": bbvi.Categorical(3, (4,))})
      >>> phi = guide.init(jax.random.key(0), None)
      >>> z = guide.sample(guide.base_noise(jax.random.key(1)), phi, None)
      >>> z["w"].shape, z["c"].dtype
      ((2,), dtype('int32'))

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    def __init__(self, sites: PyTree):
        super().__init__(sites, Family)

    @property
    def reparameterized(self) -> bool:  # type: ignore[override]
        return all(family.reparameterized for family in self.families)

    has_entropy = True

    @property
    def layout(self) -> Layout:
        """The normal sites, side by side."""
        normal = [(n, f) for n, f in self.named_families.items() if isinstance(f, Normal)]
        return Layout(tuple(normal))

    @property
    def others(self) -> dict[str, Family]:
        """The sites that are not normal."""
        return {n: f for n, f in self.named_families.items() if not isinstance(f, Normal)}

    def sites(self) -> tuple[Site, ...]:
        return tuple(
            Site(
                name,
                (name,),
                type(family).__name__,
                family.reparameterized,
                family.event_ndims,
                family.num_values,
                family.shape,
            )
            for name, family in self.named_families.items()
        )

    def init(self, key: Key, x: Data) -> MeanFieldParams:
        del x
        keys = iter(jax.random.split(key, len(self.families)))
        return self.from_site_params(
            {n: f.init(next(keys)) for n, f in self.named_families.items()}
        )

    def params_at(self, z: Latents, scale: float = 0.1) -> MeanFieldParams:
        """Parameters that put q at the latents ``z``.

        Args:
          z: one value of the latents (constrained), a pytree like a draw.
          scale: standard deviation: in unconstrained space for location-scale sites, of the
            latent itself for the others (for discrete sites, the probability of other values).

        Returns:
          Parameters to pass to ``fit(..., init_params=...)``.
        """
        values = self.values_at(z, scale)
        return self.from_site_params(
            {n: f.params_at(values[n], scale) for n, f in self.named_families.items()}
        )

    def from_site_params(self, by_site: dict[str, PyTree]) -> MeanFieldParams:
        """Parameters from those of each site: the inverse of ``site_params``."""
        layout, rows = self.layout, ("loc", "log_scale")
        normal = jnp.zeros((2, 0))
        if layout.sites:
            parts = [{name: by_site[name][row] for name, _ in layout.sites} for row in rows]
            normal = jnp.stack([layout.join(part) for part in parts])
        return MeanFieldParams(normal, {name: by_site[name] for name in self.others})

    def from_mean_field(self, loc: Array, log_scale: Array) -> MeanFieldParams:
        """Parameters from unconstrained vectors of normal sites, where there are no others."""
        return MeanFieldParams(jnp.stack([loc, log_scale]), {})

    def mean_field(self, params: MeanFieldParams) -> tuple[Array, Array]:
        """Locations and log scales of the normal sites: the inverse of ``from_mean_field``."""
        return params.normal[0], params.normal[1]

    def site_params(self, params: MeanFieldParams) -> dict[str, PyTree]:
        """Parameters by latent name: the normal array split, the others as they are."""
        loc, log_scale = (self.layout.split(row) for row in params.normal)
        normal = {name: {"loc": loc[name], "log_scale": log_scale[name]} for name in loc}
        by_site = normal | dict(params.families)
        return {name: by_site[name] for name in self.named_families}

    @property
    def has_natural_gradient(self) -> bool:  # type: ignore[override]
        return bool(self.layout.sites)

    def local_gradient(
        self, params: MeanFieldParams, grads: MeanFieldParams
    ) -> tuple[Array, dict[str, PyTree]]:
        # Locations in standard deviations; the information about a log deviation is 2, for which
        # half the gradient is the step and its root the unit of length.
        loc, log_scale = grads.normal
        scaled = jnp.exp(params.normal[1]) * loc
        return jnp.stack([scaled, log_scale * math.sqrt(0.5)]), grads.families

    def local_norm(self, gradient: Array) -> Array:
        return jnp.sqrt(jnp.sum(gradient**2, axis=0, keepdims=True))

    def local_step(
        self, params: MeanFieldParams, step: Array, rest: dict[str, PyTree]
    ) -> MeanFieldParams:
        loc, log_scale = step
        scaled = jnp.exp(params.normal[1]) * loc
        return MeanFieldParams(jnp.stack([scaled, log_scale * math.sqrt(0.5)]), rest)

    def logits(self, params: MeanFieldParams, x: Data) -> dict[str, Array]:
        del x
        return {
            name: params.families[name]["logits"]
            for name, family in self.others.items()
            if family.num_values
        }

    def distributions(self, params: MeanFieldParams, x: Data) -> dict[str, Any]:
        del x
        found = {}
        for name, by_name in self.site_params(params).items():
            with contextlib.suppress(NotImplementedError):  # through a bijector, or not of distrax
                found[name] = self.named_families[name].distribution(by_name)
        return found

    def overdispersed(self, params: MeanFieldParams, dispersion: float) -> MeanFieldParams:
        wider = {}
        for name, by_name in self.site_params(params).items():
            try:
                wider[name] = self.named_families[name].overdispersed(by_name, dispersion)
            except NotImplementedError as error:
                raise NotImplementedError(f"site '{name}': {error}") from error
        return self.from_site_params(wider)

    def base_noise(self, key: Key) -> tuple[Array, dict[str, PyTree]]:
        keys = iter(jax.random.split(key, len(self.others) + 1))
        normal = jax.random.normal(next(keys), (self.layout.size,))
        return normal, {name: f.base_noise(next(keys)) for name, f in self.others.items()}

    def noise_sizes(self) -> dict[str, int | None]:
        return {name: family.noise_size for name, family in self.named_families.items()}

    def noise_from_uniform(self, u: Array) -> tuple[Array, dict[str, PyTree]]:
        sizes = [self.layout.size, *(family.noise_size or 0 for family in self.others.values())]
        normal, *rest = jnp.split(u, list(accumulate(sizes))[:-1])
        others = zip(self.others.items(), rest, strict=True)
        return ndtri(normal), {name: f.noise_from_uniform(part) for (name, f), part in others}

    def _draw(self, noise: PyTree, params: MeanFieldParams) -> tuple[dict[str, Array], Array]:
        """Latents by name and the log volume of the normal sites' bijectors."""
        normal, rest = noise
        values: dict[str, Array] = {}
        log_det = jnp.zeros(())
        if self.layout.sites:
            loc, log_scale = params.normal
            u = loc + jnp.exp(log_scale) * normal
            values, log_det = self.layout.constrain(u)
        for name, family in self.others.items():
            values[name] = family.sample(rest[name], params.families[name])
        return values, log_det

    def sample(self, noise: PyTree, params: MeanFieldParams, x: Data) -> Latents:
        del x
        return self.pack(self._draw(noise, params)[0])

    def site_log_probs(self, params: MeanFieldParams, x: Data, z: Latents) -> dict[str, Array]:
        del x
        values, by_site = self.unpack(z), self.site_params(params)
        return {n: f.log_probs(by_site[n], values[n]) for n, f in self.named_families.items()}

    def log_prob(self, params: MeanFieldParams, x: Data, z: Latents) -> Array:
        return sum(map(jnp.sum, self.site_log_probs(params, x, z).values()), jnp.zeros(()))

    def site_entropies(self, params: MeanFieldParams, x: Data, z: Latents) -> dict[str, Array]:
        del x
        values, by_site = self.unpack(z), self.site_params(params)
        return {n: f.entropy(by_site[n], values[n]) for n, f in self.named_families.items()}

    def sample_and_log_prob(
        self, noise: PyTree, params: MeanFieldParams, x: Data
    ) -> tuple[Latents, Array]:
        values, log_det = self._draw(noise, params)
        log_q = -log_det
        if self.layout.sites:
            log_q += standard_normal_log_prob(noise[0]) - jnp.sum(params.normal[1])
        for name, family in self.others.items():
            log_q += family.log_prob(params.families[name], values[name])
        return self.pack(values), log_q

    def sample_and_entropy(
        self, noise: PyTree, params: MeanFieldParams, x: Data
    ) -> tuple[Latents, Array]:
        values, entropy = self._draw(noise, params)
        if self.layout.sites:
            entropy += jnp.sum(params.normal[1]) + standard_normal_entropy(self.layout.size)
        for name, family in self.others.items():
            entropy += family.entropy(params.families[name], values[name])
        return self.pack(values), entropy
