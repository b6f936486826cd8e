"""Guides over latents of which each datum has its own: free parameters, a row for each datum."""

from __future__ import annotations

import abc
import copy
import dataclasses
from typing import Any

import jax
from jax import Array

from bbvi._types import Data, Key, Latents, PyTree, Site
from bbvi.guides.base import StructuredGuide
from bbvi.guides.families import Family
from bbvi.guides.mean_field import MeanField, MeanFieldParams


class LocalGuide(StructuredGuide):
    """Independent families over the rows of the data: the leading axis of every site.

    A subclass says in ``free_params`` what the parameters of the rows of x are; everything else
    follows from the mean field there.
    """

    has_entropy = True

    def __init__(self, sites: PyTree):
        super().__init__(sites, Family)

    @abc.abstractmethod
    def free_params(self, params: PyTree, x: Data) -> MeanFieldParams:
        """Parameters of ``mean_field`` for the rows of x."""

    def resized(self, num_rows: int) -> LocalGuide:
        """The same guide over so many rows."""
        for name, family in self.named_families.items():
            if not family.shape:
                raise ValueError(
                    f"latent '{name}' of {self!r} has no axis for the rows of the data: give its "
                    "site a shape that begins with their number."
                )
        resized = copy.copy(self)
        families = tuple(family.resized(num_rows) for family in self.families)
        object.__setattr__(resized, "families", families)
        return resized

    @property
    def mean_field(self) -> MeanField:
        """The same sites with free parameters; everything is computed by it."""
        return MeanField(jax.tree.unflatten(self.treedef, self.families))

    @property
    def reparameterized(self) -> bool:  # type: ignore[override]
        return self.mean_field.reparameterized

    def sites(self) -> tuple[Site, ...]:
        return tuple(dataclasses.replace(s, is_local=True) for s in self.mean_field.sites())

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


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Local(LocalGuide):
    r"""A mean field over latents of which each datum has its own, for fits with minibatches.

    .. math:: q(z; \phi) = \prod_{n=1}^N \prod_i q_i(z_{ni}; \phi_{ni})

    It is ``MeanField`` with parameters that are kept row by row: with ``fit(..., batch_size=B)`` a
    step reads and writes the B rows of its batch and no others, and each row has an optimizer state
    of its own, so that it moves only when its datum is seen. Put it in a ``Product`` with a guide
    of the latents that all data share.

    Args:
      sites: pytree of families, as for ``MeanField``, with shapes that begin with N.

    Raises:
      TypeError: a leaf of ``sites`` is not a family.
      ValueError: a site has no axis for the rows, or sites differ in their number.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.Product(
      ...     bbvi.MeanField({"mean": bbvi.Normal()}), bbvi.Local({"effect": bbvi.Normal((50, 2))})
      ... )
      >>> [(site.name, site.is_local) for site in guide.sites()]
      [('mean', False), ('effect', True)]

    References:
      Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational Inference.
    """

    def __init__(self, sites: PyTree):
        super().__init__(sites)
        sizes = {name: family.shape[:1] for name, family in self.named_families.items()}
        if len(set(sizes.values())) != 1 or () in sizes.values():
            raise ValueError(
                "Local has a row of each latent for each datum: shapes must begin with the same "
                f"number of rows, got { ({n: f.shape for n, f in self.named_families.items()}) }."
            )

    def init(self, key: Key, x: Data) -> dict[str, PyTree]:
        return self.mean_field.site_params(self.mean_field.init(key, x))

    def params_at(self, z: Latents, scale: float = 0.1) -> dict[str, PyTree]:
        """Parameters that put q at the latents ``z``; see ``MeanField.params_at``."""
        return self.mean_field.site_params(self.mean_field.params_at(z, scale))

    def free_params(self, params: dict[str, PyTree], x: Data) -> MeanFieldParams:
        del x
        return self.mean_field.from_site_params(params)

    def site_params(self, params: dict[str, PyTree]) -> dict[str, PyTree]:
        return params

    def split_rows(self, params: PyTree) -> tuple[PyTree, PyTree]:
        return (), params

    def join_rows(self, shared: PyTree, rows: PyTree) -> PyTree:
        del shared
        return rows

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        wider = self.mean_field.overdispersed(self.free_params(params, None), dispersion)
        return self.mean_field.site_params(wider)
