"""Products of guides over disjoint named latents."""

from __future__ import annotations

import dataclasses
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._types import Data, Key, Latents, PyTree, Site
from bbvi.guides.base import Guide, Refinement, StructuredGuide


@dataclasses.dataclass(frozen=True, init=False)
class Product(Guide):
    r"""Independent guides over disjoint parts of the latents, :math:`q(z) = \prod_k q_k(z_k)`.

    Use it to give some sites a full covariance and the others a mean field.

    Args:
      guides: guides whose draws are dicts with no name in common.

    Raises:
      ValueError: fewer than two guides, a guide whose draws are not a dict, or a shared name.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.Product(
      ...     bbvi.FullRank({"w": bbvi.Normal((3,))}),
      ...     bbvi.MeanField({"c": bbvi.Bernoulli((5,))}),
      ... )
      >>> [site.name for site in guide.sites()]
      ['w', 'c']

    References:
      Hoffman and Blei (2015), Structured Stochastic Variational Inference.
    """

    guides: tuple[Guide, ...]

    def __init__(self, *guides: Guide):
        if len(guides) < 2 or not all(isinstance(guide, Guide) for guide in guides):
            raise ValueError(f"Product needs at least two guides, got {guides!r}.")
        object.__setattr__(self, "guides", guides)
        names = [name for guide in guides for name in self._latent_names(guide)]
        shared = sorted({name for name in names if names.count(name) > 1})
        if shared:
            raise ValueError(f"Product: latents {shared} appear in more than one guide.")

        if sum(guide.refinement is not None for guide in guides) > 1:
            raise ValueError(
                f"Product takes one guide that refines its parameters, got {guides!r}."
            )

    @staticmethod
    def _latent_names(guide: Guide) -> list[str]:
        def draw(key: Key) -> Latents:
            init_key, noise_key = jax.random.split(key)
            return guide.sample(guide.base_noise(noise_key), guide.init(init_key, None), None)

        if isinstance(guide, StructuredGuide):
            z = guide.pack(guide.named_families)  # an amortized one cannot draw without data
        else:
            z = jax.eval_shape(draw, jax.eval_shape(lambda: jax.random.key(0)))
        if not isinstance(z, dict):
            raise ValueError(
                f"Product needs guides whose draws are dicts, but {guide!r} is not one."
            )
        return list(z)

    @property
    def reparameterized(self) -> bool:  # type: ignore[override]
        return all(guide.reparameterized for guide in self.guides)

    @property
    def has_entropy(self) -> bool:  # type: ignore[override]
        return all(guide.has_entropy for guide in self.guides)

    def sites(self) -> tuple[Site, ...]:
        return tuple(site for guide in self.guides for site in guide.sites())

    def init(self, key: Key, x: Data) -> PyTree:
        keys = jax.random.split(key, len(self.guides))
        return tuple(guide.init(k, x) for guide, k in zip(self.guides, keys, strict=True))

    def base_noise(self, key: Key) -> PyTree:
        keys = jax.random.split(key, len(self.guides))
        return tuple(guide.base_noise(k) for guide, k in zip(self.guides, keys, strict=True))

    def noise_sizes(self) -> dict[str, int | None]:
        return {k: v for guide in self.guides for k, v in guide.noise_sizes().items()}

    def noise_from_uniform(self, u: Array) -> PyTree:
        sizes = [sum(n or 0 for n in guide.noise_sizes().values()) for guide in self.guides]
        parts = jnp.split(u, list(accumulate(sizes))[:-1])
        return tuple(g.noise_from_uniform(part) for g, part in zip(self.guides, parts, strict=True))

    def sample(self, noise: PyTree, params: PyTree, x: Data) -> Latents:
        parts = zip(self.guides, noise, params, strict=True)
        return {k: v for guide, n, p in parts for k, v in guide.sample(n, p, x).items()}

    def _split(self, z: Latents) -> list[Latents]:
        names = [self._latent_names(guide) for guide in self.guides]
        expected = sorted(name for part in names for name in part)
        if not isinstance(z, dict) or sorted(z) != expected:
            got = sorted(z) if isinstance(z, dict) else type(z).__name__
            raise ValueError(f"Product has latents {expected}, got {got}: names must match.")
        return [{name: z[name] for name in part} for part in names]

    def site_log_probs(self, params: PyTree, x: Data, z: Latents) -> dict[str, Array]:
        parts = zip(self.guides, params, self._split(z), strict=True)
        return {
            k: v for guide, p, part in parts for k, v in guide.site_log_probs(p, x, part).items()
        }

    def site_params(self, params: PyTree) -> dict[str, PyTree]:
        parts = zip(self.guides, params, strict=True)
        return {k: v for guide, p in parts for k, v in guide.site_params(p).items()}

    def resized(self, num_rows: int) -> Product:
        return Product(*(guide.resized(num_rows) for guide in self.guides))

    def split_rows(self, params: PyTree) -> tuple[PyTree, PyTree]:
        parts = zip(self.guides, params, strict=True)
        shared, rows = zip(*(guide.split_rows(p) for guide, p in parts), strict=True)
        return shared, rows

    def join_rows(self, shared: PyTree, rows: PyTree) -> PyTree:
        parts = zip(self.guides, shared, rows, strict=True)
        return tuple(guide.join_rows(s, r) for guide, s, r in parts)

    @property
    def refinement(self) -> Refinement | None:  # type: ignore[override]
        return next((g.refinement for g in self.guides if g.refinement is not None), None)

    def free(self) -> Product:
        return Product(*(guide.free() for guide in self.guides))

    def start(self, params: PyTree, x: Data) -> PyTree:
        return tuple(guide.start(p, x) for guide, p in zip(self.guides, params, strict=True))

    def refinement_noise(self, key: Key, num_samples: int) -> PyTree:
        keys = jax.random.split(key, len(self.guides))
        parts = zip(self.guides, keys, strict=True)
        return tuple(guide.refinement_noise(k, num_samples) for guide, k in parts)

    def logits(self, params: PyTree, x: Data) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for guide, part in zip(self.guides, params, strict=True):
            if any(site.num_values for site in guide.sites()):
                found |= guide.logits(part, x)
        return found

    def distributions(self, params: PyTree, x: Data) -> dict[str, Any]:
        parts = zip(self.guides, params, strict=True)
        return {k: v for guide, p in parts for k, v in guide.distributions(p, x).items()}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        parts = zip(self.guides, params, strict=True)
        return tuple(guide.overdispersed(p, dispersion) for guide, p in parts)

    def site_entropies(self, params: PyTree, x: Data, z: Latents) -> dict[str, Array]:
        parts = zip(self.guides, params, self._split(z), strict=True)
        return {
            k: v for guide, p, part in parts for k, v in guide.site_entropies(p, x, part).items()
        }

    def log_prob(self, params: PyTree, x: Data, z: Latents) -> Array:
        return sum(map(jnp.sum, self.site_log_probs(params, x, z).values()), jnp.zeros(()))

    def sample_and_log_prob(self, noise: PyTree, params: PyTree, x: Data) -> tuple[Latents, Array]:
        z: Latents = {}
        log_q = jnp.zeros(())
        for guide, n, p in zip(self.guides, noise, params, strict=True):
            part, term = guide.sample_and_log_prob(n, p, x)
            z, log_q = z | part, log_q + term
        return z, log_q

    def sample_and_entropy(self, noise: PyTree, params: PyTree, x: Data) -> tuple[Latents, Array]:
        z: Latents = {}
        entropy = jnp.zeros(())
        for guide, n, p in zip(self.guides, noise, params, strict=True):
            part, term = guide.sample_and_entropy(n, p, x)
            z, entropy = z | part, entropy + term
        return z, entropy
