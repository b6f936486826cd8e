"""A mixture of joint distributions of all the latents, for several modes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from bbvi._types import Data, Key, Latents, PyTree, Site
from bbvi.guides.base import Guide
from bbvi.guides.gaussian import VectorGuide
from bbvi.guides.mean_field import MeanField


@dataclasses.dataclass(frozen=True)
class Mixture(Guide):
    r"""A mixture of K guides of one family, :math:`q(z) = \sum_k w_k q_k(z)`.

    For posteriors with several modes. A draw selects a component, which has no derivative in the
    weights: ``Stratified``, the default of ``fit`` for these guides, draws from every component
    instead and weighs what it finds, so that the weights have exact gradients however far apart
    the modes are. A component that starts at no mode of its own may share another's; start from
    modes that you know with ``params_at`` or ``from_components``.

    Args:
      guide: the family of every component: ``FullRank``, ``LowRank``, ``NormalizingFlow``, or a
        ``MeanField`` of reparameterized sites.
      num_components: K.

    Raises:
      TypeError: a guide of another kind.
      ValueError: a site that is not reparameterized; fewer than one component.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):  # two modes, of masses 0.25 and 0.75
      ...     far = norm.logpdf(z["w"], 20.0).sum() + jnp.log(0.75)
      ...     return jnp.logaddexp(norm.logpdf(z["w"]).sum() + jnp.log(0.25), far)
      >>> guide = bbvi.Mixture(bbvi.FullRank({"w": bbvi.Normal((2,))}), 2)
      >>> start = guide.params_at([{"w": jnp.ones(2)}, {"w": jnp.full(2, 19.0)}])
      >>> result = bbvi.fit(log_joint, guide, init_params=start, progress=False)
      >>> jax.nn.softmax(result.params.guide["logits"]).round(2).tolist()
      [0.25, 0.75]

    References:
      Jaakkola and Jordan (1998), Improving the Mean Field Approximation via the Use of Mixture
      Distributions; Morningstar, Vikram, Ham, Gallagher and Dillon (2021), Automatic
      Differentiation Variational Inference with Mixtures.
    """

    guide: MeanField | VectorGuide
    num_components: int

    def __post_init__(self) -> None:
        if not isinstance(self.guide, MeanField | VectorGuide):
            raise TypeError(
                "Mixture needs a MeanField, FullRank, LowRank or NormalizingFlow guide as its "
                f"components' family, got {self.guide!r}."
            )
        fixed = [site.name for site in self.guide.sites() if not site.reparameterized]
        if fixed:
            raise ValueError(
                f"Mixture draws from every component pathwise, but sites {fixed} are not "
                "reparameterized: leave them to another guide, beside this one in a Product."
            )
        if not isinstance(self.num_components, int) or self.num_components < 1:
            raise ValueError(
                f"Mixture num_components must be an int of at least 1, got {self.num_components!r}."
            )

    def __repr__(self) -> str:
        return f"Mixture({self.guide!r}, num_components={self.num_components})"

    def sites(self) -> tuple[Site, ...]:
        names = tuple(self.guide.named_families)
        # A draw's derivative in the weights is not that of its distribution.
        return (Site(",".join(names), names, type(self).__name__, reparameterized=False),)

    def from_components(
        self, components: Sequence[PyTree], weights: npt.ArrayLike | None = None
    ) -> PyTree:
        """Parameters of the mixture from those of each component.

        Args:
          components: K parameters of ``guide``, such as those of fits from different starts.
          weights: K positive numbers, scaled to sum to 1; equal by default.

        Returns:
          Parameters, for ``fit(..., init_params=...)``.

        Raises:
          ValueError: another number of components or weights than K; a weight that is not positive.
        """
        given = np.ones(len(components)) if weights is None else np.asarray(weights, float)
        if len(components) != self.num_components or given.shape != (self.num_components,):
            raise ValueError(
                f"Mixture has num_components={self.num_components}, got {len(components)} "
                f"components and weights of shape {given.shape}."
            )
        if not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(f"Mixture weights must be positive and finite, got {weights!r}.")
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *components)
        return {"logits": jnp.log(jnp.asarray(given / given.sum())), "components": stacked}

    def params_at(
        self,
        modes: Sequence[Latents],
        scale: float = 0.1,
        weights: npt.ArrayLike | None = None,
    ) -> PyTree:
        """Parameters with a component at each of K values of the latents; see ``from_components``.

        Args:
          modes: K values of the latents.
          scale: standard deviation of the components, in unconstrained space.
          weights: K positive numbers, scaled to sum to 1; equal by default.
        """
        return self.from_components([self.guide.params_at(z, scale) for z in modes], weights)

    def init(self, key: Key, x: Data) -> PyTree:
        # From different keys: equal components would stay equal.
        keys = jax.random.split(key, self.num_components)
        components = jax.vmap(lambda key: self.guide.init(key, x))(keys)
        return {"logits": jnp.zeros(self.num_components), "components": components}

    def base_noise(self, key: Key) -> tuple[Array, PyTree]:
        selection, inner = jax.random.split(key)
        return jax.random.uniform(selection), self.guide.base_noise(inner)

    def sample(self, noise: tuple[Array, PyTree], params: PyTree, x: Data) -> Latents:
        uniform, inner = noise
        cumulative = jnp.cumsum(jax.nn.softmax(params["logits"]))
        # Scaled by the sum, which may be rounded, so that no component without weight is selected.
        selected = jnp.sum(uniform * cumulative[-1] >= cumulative[:-1])
        component = jax.tree.map(lambda leaf: leaf[selected], params["components"])
        return self.guide.sample(inner, component, x)

    def sample_components(self, noise: PyTree, params: PyTree, x: Data) -> Latents:
        """One draw from every component, ``[K, ...]``, with base noise ``[K, ...]`` of ``guide``.

        It is differentiable in the parameters of the components.
        """
        return jax.vmap(lambda n, p: self.guide.sample(n, p, x))(noise, params["components"])

    def log_prob(self, params: PyTree, x: Data, z: Latents) -> Array:
        by_component = jax.vmap(lambda p: self.guide.log_prob(p, x, z))(params["components"])
        return jax.nn.logsumexp(jax.nn.log_softmax(params["logits"]) + by_component)

    @property
    def has_natural_gradient(self) -> bool:  # type: ignore[override]
        return self.guide.has_natural_gradient

    def local_gradient(self, params: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        # Of a component and a draw from it together, the information about the component's
        # parameters is its own times its weight.
        gradient, rest = jax.vmap(self.guide.local_gradient)(
            params["components"], grads["components"]
        )
        weights = jax.nn.softmax(params["logits"])
        weights = jnp.maximum(weights, jnp.finfo(weights.dtype).eps)

        def divide(leaf: Array) -> Array:
            return leaf / weights.reshape(-1, *(1,) * (leaf.ndim - 1))

        return jax.tree.map(divide, gradient), {"logits": grads["logits"], "components": rest}

    def local_norm(self, gradient: PyTree) -> Array:
        return jnp.max(jax.vmap(self.guide.local_norm)(gradient))

    def local_step(self, params: PyTree, step: PyTree, rest: PyTree) -> PyTree:
        components = jax.vmap(self.guide.local_step)(params["components"], step, rest["components"])
        return {"logits": rest["logits"], "components": components}
