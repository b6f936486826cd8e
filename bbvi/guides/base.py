"""What a guide is: a family q(z | x; phi) written for one draw."""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._checks import check_positive, is_count
from bbvi._tree import named_leaves
from bbvi._types import Data, Key, Latents, PyTree, Site


@dataclasses.dataclass(frozen=True)
class Refinement:
    """Steps on the ELBO by which a guide's parameters are refined for the data at hand.

    Attributes:
      num_steps: how many.
      step_size: share of a step of natural gradient.
      num_samples: draws that estimate the ELBO.
    """

    num_steps: int
    step_size: float
    num_samples: int


class Guide(abc.ABC):
    r"""A variational family :math:`q(z \mid x; \phi)`, written for ONE draw; the library vmaps.

    A guide holds configuration only (hashable, compared by value); its parameters ``phi`` are a
    separate pytree. To write one, subclass, set ``reparameterized`` honestly and define ``init``,
    ``sample`` and ``log_prob``; everything else has a default.

    ``sample`` receives the draw's *base noise*: by default simply the key. A guide whose noise
    does not depend on its parameters returns that noise from ``base_noise``, so that the engine
    can draw it for many steps at once.

    Example:
      >>> import jax, jax.numpy as jnp, bbvi
      >>> class Exponential(bbvi.Guide):
      ...     reparameterized = True
      ...
      ...     def init(self, key, x):
      ...         return jnp.zeros(())
      ...
      ...     def sample(self, key, params, x):
      ...         return jax.random.exponential(key) * jnp.exp(params)
      ...
      ...     def log_prob(self, params, x, z):
      ...         return -params - z * jnp.exp(-params)
      >>> Exponential().sites()[0].name
      'latents'

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    reparameterized: ClassVar[bool] = False
    has_entropy: bool = False
    has_natural_gradient: bool = False
    refinement: Refinement | None = None

    @abc.abstractmethod
    def init(self, key: Key, x: Data) -> PyTree:
        """Initial variational parameters phi."""

    @abc.abstractmethod
    def sample(self, noise: PyTree, params: PyTree, x: Data) -> Latents:
        """One draw z, from the output of ``base_noise``."""

    @abc.abstractmethod
    def log_prob(self, params: PyTree, x: Data, z: Latents) -> Array:
        """Log density of one draw: a scalar."""

    def base_noise(self, key: Key) -> PyTree:
        """Randomness of one draw that does not depend on the parameters; by default the key."""
        return key

    def noise_sizes(self) -> dict[str, int | None]:
        """How many uniforms each site's base noise is a function of; None: it is not one.

        Antithetic and quasi-random draws need such a function, ``noise_from_uniform``.
        """
        return {site.name: None for site in self.sites()}

    def noise_from_uniform(self, u: Array) -> PyTree:
        """Base noise of one draw from independent uniforms ``[sum of noise_sizes]`` on (0, 1).

        It is the quantile function entry by entry, so that points that are evenly spread or
        mirrored give noise that is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no map from uniforms to base noise.")

    def sites(self) -> tuple[Site, ...]:
        """The sites an estimator can be chosen for; by default one that covers all latents."""
        return (Site("latents", ("latents",), type(self).__name__, self.reparameterized),)

    def site_log_probs(self, params: PyTree, x: Data, z: Latents) -> dict[str, Array]:
        """Log density of one draw, split over the independent blocks of ``sites()``.

        For each site an array of the leaf's shape without its ``event_ndims`` trailing axes, or a
        scalar where the site is one block. Together they sum to ``log_prob``.
        """
        (site,) = self.sites()
        return {site.name: self.log_prob(params, x, z)}

    def site_params(self, params: PyTree) -> dict[str, PyTree]:
        """Parameters (or their gradient) by site.

        No parameter serves two sites, except those of a network that serves them all.
        """
        (site,) = self.sites()
        return {site.name: params}

    def resized(self, num_rows: int) -> Guide:
        """The guide for so many rows of data; another one only where sites are local."""
        del num_rows
        return self

    def split_rows(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters shared by all data, and those with a leading axis over the rows of them."""
        return params, ()

    def join_rows(self, shared: PyTree, rows: PyTree) -> PyTree:
        """The inverse of ``split_rows``, for as many rows as there are."""
        del rows
        return shared

    def free(self) -> Guide:
        """The guide over refined parameters, where there is a ``refinement``."""
        return self

    def start(self, params: PyTree, x: Data) -> PyTree:
        """Parameters of ``free()`` that the refinement starts from."""
        del x
        return params

    def refinement_noise(self, key: Key, num_samples: int) -> PyTree:
        """Base noise ``[S, ...]`` of ``free()`` for the refinement."""
        return jax.vmap(self.base_noise)(jax.random.split(key, num_samples))

    def logits(self, params: PyTree, x: Data) -> dict[str, Array]:
        """Logits of each discrete site (``num_values`` in ``sites()``), differentiable in phi.

        ``[*blocks]`` for two values, of the value 1; ``[*blocks, K]`` otherwise, and for one-hot
        vectors. The estimators made for discrete latents work on these.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what the logits of its discrete sites are; "
            "define logits(params, x)."
        )

    def site_entropies(self, params: PyTree, x: Data, z: Latents) -> dict[str, Array]:
        """Scalars whose expectation over z is each site's entropy, exact where a form exists."""
        return {name: -jnp.sum(log_q) for name, log_q in self.site_log_probs(params, x, z).items()}

    def distributions(self, params: PyTree, x: Data) -> dict[str, Any]:
        """The sites that are distributions of distrax, whose batch axes are independent blocks."""
        del params, x
        return {}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        """Parameters of the same family, wider: natural parameters divided by ``dispersion``.

        Optional; it must keep the blocks of ``sites()`` independent.
        """
        raise NotImplementedError(f"{type(self).__name__} has no overdispersed form.")

    def sample_and_log_prob(self, noise: PyTree, params: PyTree, x: Data) -> tuple[Latents, Array]:
        """One draw and its log density."""
        z = self.sample(noise, params, x)
        return z, self.log_prob(params, x, z)

    def sample_and_entropy(self, noise: PyTree, params: PyTree, x: Data) -> tuple[Latents, Array]:
        """One draw and a scalar whose expectation is the entropy of q."""
        z = self.sample(noise, params, x)
        return z, sum(self.site_entropies(params, x, z).values(), jnp.zeros(()))

    def local_gradient(self, params: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        """A gradient in coordinates relative to q itself, where there is a Gaussian part.

        Near ``params`` these coordinates have the identity as Fisher information, so that a plain
        gradient step in them is one of natural gradient, whatever the units of the latents.

        Returns:
          The gradient of the Gaussian part in these coordinates, and that of everything else as
          it is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no natural gradient.")

    def local_norm(self, gradient: PyTree) -> Array:
        """Lengths of a Gaussian part's ``local_gradient``: of each block that moves on its own."""
        return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient)))

    def local_step(self, params: PyTree, step: PyTree, rest: PyTree) -> PyTree:
        """What to add to ``params`` to take a step given in the form of ``local_gradient``."""
        raise NotImplementedError(f"{type(self).__name__} has no natural gradient.")

    def stop_gradient(self, z: Latents, sites: Iterable[str]) -> Latents:
        """``z`` with no gradient through the latents of the named sites."""
        stopped = {leaf for site in self.sites() if site.name in set(sites) for leaf in site.leaves}
        if stopped == {"latents"}:
            return jax.lax.stop_gradient(z)
        treedef = jax.tree.structure(z)
        leaves = [
            jax.lax.stop_gradient(leaf) if name in stopped else leaf
            for name, leaf in named_leaves(z, "latents").items()
        ]
        return jax.tree.unflatten(treedef, leaves)


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class StructuredGuide(Guide):
    """A guide over a pytree of named families: keeps the tree hashable and maps names to leaves."""

    families: tuple[Any, ...]
    treedef: Any

    def __init__(self, sites: PyTree, is_family: type):
        try:
            leaves, treedef = jax.tree.flatten(sites, is_leaf=lambda s: isinstance(s, is_family))
        except ValueError as error:  # keys that cannot be sorted
            raise TypeError(
                f"{type(self).__name__} needs the names of its sites to be strings, got {sites!r}."
            ) from error
        # What a site is made of has no names: a distribution of another library may be a pytree.
        numbered = jax.tree.unflatten(treedef, range(len(leaves)))
        named = {number: name for name, number in named_leaves(numbered, "latents").items()}
        for number, leaf in enumerate(leaves):
            name = named.get(number, "latents")
            if not isinstance(leaf, is_family):
                raise TypeError(
                    f"{type(self).__name__} got {leaf!r} for latent '{name}'; expected a site such "
                    f"as bbvi.Normal((3,)) (an instance of bbvi.guides.{is_family.__name__})."
                )
        if not leaves:
            raise ValueError(f"{type(self).__name__} needs at least one latent, got {sites!r}.")
        object.__setattr__(self, "families", tuple(leaves))
        object.__setattr__(self, "treedef", treedef)

    @property
    def named_families(self) -> dict[str, Any]:
        """The families by latent path."""
        names = named_leaves(jax.tree.unflatten(self.treedef, range(len(self.families))), "latents")
        return dict(zip(names, self.families, strict=True))

    def pack(self, values: dict[str, Array]) -> Latents:
        """The latents' pytree from values by name."""
        return jax.tree.unflatten(self.treedef, [values[name] for name in self.named_families])

    def unpack(self, z: Latents) -> dict[str, Array]:
        """Values by name from the latents' pytree; an error names what does not match."""
        found = jax.tree.structure(z)
        if found != self.treedef:
            raise ValueError(
                f"latents have structure {found}, but the guide's are {self.treedef}: names and "
                "nesting must match."
            )
        values = named_leaves(z, "latents")
        for name, family in self.named_families.items():
            if values[name].shape != family.shape:
                raise ValueError(
                    f"latent '{name}' has shape {values[name].shape}, but the guide's site "
                    f"{family!r} has shape {family.shape}."
                )
        return values

    def values_at(self, z: Latents, scale: Any) -> dict[str, Array]:
        """Values by name for ``params_at``; an error names one that the guide cannot be at."""
        if not isinstance(scale, jax.Array):
            check_positive("params_at scale", scale)
        try:
            values = self.unpack(jax.tree.map(jnp.asarray, z))
        except TypeError as error:
            raise TypeError(f"latents must be arrays of numbers, got {z!r}.") from error
        for name, family in self.named_families.items():
            is_known = not isinstance(values[name], jax.core.Tracer)
            if is_known and not bool(family.contains(values[name])):
                raise ValueError(
                    f"latent '{name}' cannot be placed at {values[name]}: its values under "
                    f"{family!r} are {family.values}."
                )
        return values

    def __repr__(self) -> str:
        return f"{type(self).__name__}({jax.tree.unflatten(self.treedef, self.families)!r})"


def check_shape(shape: Any, name: str) -> tuple[int, ...]:
    """``shape`` as a tuple of non-negative ints, or an error that says how to write it."""
    if isinstance(shape, numbers.Integral):
        raise TypeError(f"{name} shape must be a tuple, got {shape!r}; write ({shape},).")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(
            f"{name} shape must be a tuple of ints such as (3,), got {shape!r}. A site has a shape "
            "and no parameters: those are found by fit."
        )
    if not all(is_count(n) for n in shape):
        raise ValueError(f"{name} shape must hold positive ints, got {tuple(shape)}.")
    return tuple(int(n) for n in shape)


def size(shape: tuple[int, ...]) -> int:
    """Number of entries of an array of this shape."""
    return math.prod(shape)
