"""Gaussian guides over one unconstrained vector: full-rank and low-rank plus diagonal.

The vector holds the normal sites of the latents side by side; bijectors carry each slice to its
support. Sampling is one matrix product, the entropy of the vector is a closed form, and neither
needs a triangular solve.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtri
from tensorflow_probability.substrates.jax import distributions as tfd

from bbvi._types import Data, Key, Latents, PyTree, Site
from bbvi.guides.base import StructuredGuide, size
from bbvi.guides.families import Normal


@dataclasses.dataclass(frozen=True)
class Layout:
    """How named normal sites lie side by side in one unconstrained vector."""

    sites: tuple[tuple[str, Normal], ...]

    @property
    def size(self) -> int:
        """Length of the unconstrained vector."""
        return sum(size(site.unconstrained_shape) for _, site in self.sites)

    def split(self, u: Array) -> dict[str, Array]:
        """Slices of the vector by site, in their unconstrained shapes."""
        parts, start = {}, 0
        for name, site in self.sites:
            stop = start + size(site.unconstrained_shape)
            parts[name] = u[start:stop].reshape(site.unconstrained_shape)
            start = stop
        return parts

    def join(self, parts: dict[str, Array]) -> Array:
        """The vector from slices by site."""
        return jnp.concatenate([jnp.ravel(parts[name]) for name, _ in self.sites])

    def constrain(self, u: Array) -> tuple[dict[str, Array], Array]:
        """Latents by name and the log volume |dz/du| of the bijectors."""
        values, log_det = {}, jnp.zeros((), u.dtype)
        parts = self.split(u)
        for name, site in self.sites:
            values[name], term = site.support.constrain_with_log_det(parts[name])
            log_det = log_det + term
        return values, log_det

    def unconstrain(self, values: dict[str, Array]) -> Array:
        """The vector from latents by name."""
        return self.join({n: site.support.unconstrain(values[n]) for n, site in self.sites})

    def log_det(self, u: Array) -> Array:
        """Log volume |dz/du| of the bijectors."""
        parts = self.split(u)
        return sum(s.support.log_det(parts[n]) for n, s in self.sites) + jnp.zeros((), u.dtype)


def standard_normal_log_prob(noise: Array) -> Array:
    """Log density of a vector of independent standard normals, summed."""
    return -0.5 * jnp.sum(noise**2) - 0.5 * noise.size * math.log(2 * math.pi)


def standard_normal_entropy(dimension: int) -> float:
    """Entropy of ``dimension`` independent standard normals."""
    return 0.5 * dimension * (1 + math.log(2 * math.pi))


class VectorGuide(StructuredGuide):
    """A distribution of the flattened, unconstrained latents, drawn from standard normals."""

    reparameterized = True
    has_natural_gradient = True

    def __init__(self, sites: PyTree):
        super().__init__(sites, Normal)

    @property
    def layout(self) -> Layout:
        """How the latents lie in the unconstrained vector."""
        return Layout(tuple(self.named_families.items()))

    def sites(self) -> tuple[Site, ...]:
        # The entries are dependent under q, so one estimator serves them all.
        names = tuple(self.named_families)
        return (Site(",".join(names), names, type(self).__name__, reparameterized=True),)

    @abc.abstractmethod
    def from_mean_field(self, loc: Array, log_scale: Array) -> PyTree:
        """Parameters of (nearly) independent unconstrained normals."""

    @abc.abstractmethod
    def location(self, noise: PyTree, params: PyTree) -> Array:
        """The unconstrained vector drawn with ``noise``."""

    @abc.abstractmethod
    def vector_log_prob(self, params: PyTree, u: Array) -> Array:
        """Log density of the unconstrained vector."""

    def params_at(self, z: Latents, scale: float = 0.1) -> PyTree:
        """Parameters with location ``z`` and independent unconstrained deviations ``scale``."""
        loc = self.layout.unconstrain(self.values_at(z, scale))
        return self.from_mean_field(loc, jnp.full_like(loc, jnp.log(scale)))

    @property
    def noise_size(self) -> int:
        """Number of standard normals behind a draw."""
        return self.layout.size

    def base_noise(self, key: Key) -> Array:
        return jax.random.normal(key, (self.noise_size,))

    def noise_sizes(self) -> dict[str, int | None]:
        (site,) = self.sites()
        return {site.name: self.noise_size}

    def noise_from_uniform(self, u: Array) -> Array:
        return ndtri(u)

    def init(self, key: Key, x: Data) -> PyTree:
        del x
        u = 0.1 * jax.random.normal(key, (self.layout.size,))
        return self.from_mean_field(u, jnp.full_like(u, jnp.log(0.1)))

    def sample(self, noise: PyTree, params: PyTree, x: Data) -> Latents:
        del x
        return self.pack(self.layout.constrain(self.location(noise, params))[0])

    def log_prob(self, params: PyTree, x: Data, z: Latents) -> Array:
        del x
        u = self.layout.unconstrain(self.unpack(z))
        return self.vector_log_prob(params, u) - self.layout.log_det(u)


class GaussianGuide(VectorGuide):
    """A Gaussian with some covariance structure over the flattened, unconstrained latents."""

    has_entropy = True

    @abc.abstractmethod
    def vector_entropy(self, params: PyTree) -> Array:
        """Entropy of the unconstrained vector."""

    def site_entropies(self, params: PyTree, x: Data, z: Latents) -> dict[str, Array]:
        u = self.layout.unconstrain(self.unpack(z))
        (site,) = self.sites()
        return {site.name: self.vector_entropy(params) + self.layout.log_det(u)}

    def sample_and_entropy(self, noise: PyTree, params: PyTree, x: Data) -> tuple[Latents, Array]:
        values, log_det = self.layout.constrain(self.location(noise, params))
        return self.pack(values), self.vector_entropy(params) + log_det


@jax.custom_jvp
def _strictly_lower(matrix: Array) -> Array:
    """A matrix known to be strictly lower triangular: only its derivative is masked.

    Masking the matrix itself at every step costs a pass over it, 15% of a step at D = 1000.
    """
    return matrix


@_strictly_lower.defjvp
def _strictly_lower_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return primals[0], jnp.tril(tangents[0], -1)


class FullRank(GaussianGuide):
    r"""Gaussian with a full covariance over all the latents, flattened and unconstrained.

    :math:`z = T(\mathrm{loc} + e^{\mathrm{log\_diagonal}} (I + M) \epsilon)`,
    :math:`\epsilon \sim N(0, I)`, with ``lower`` M strictly lower triangular. M is relative to the
    row's scale, so one learning rate suits latents of any scale; it is kept as a dense matrix, so
    that a step is a matrix product, and its upper triangle stays zero.

    Args:
      sites: pytree of ``bbvi.Normal`` / ``bbvi.LogNormal`` sites (any support).

    Raises:
      TypeError: a site is not normal (it has no unconstrained location and scale).

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.FullRank({"w": bbvi.Normal((3,)), "tau": bbvi.LogNormal(())})
      >>> phi = guide.init(jax.random.key(0), None)
      >>> jax.tree.map(lambda leaf: leaf.shape, phi)
      {'loc': (4,), 'log_diagonal': (4,), 'lower': (4, 4)}

    References:
      Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), Automatic Differentiation Variational
      Inference.
    """

    def from_mean_field(self, loc: Array, log_scale: Array) -> PyTree:
        return {
            "loc": loc,
            "log_diagonal": log_scale,
            "lower": jnp.zeros((loc.size, loc.size), loc.dtype),
        }

    def mean_field(self, params: PyTree) -> tuple[Array, Array]:
        """Location and log scale of the closest independent normals: those of the conditionals.

        They minimise KL(independent || this), so their precisions are the diagonal of this one's.
        """
        unit = jnp.eye(params["loc"].size, dtype=params["loc"].dtype)
        factor = (
            jax.scipy.linalg.solve_triangular(
                unit + params["lower"], unit, lower=True, unit_diagonal=True
            )
            * jnp.exp(-params["log_diagonal"])[None]
        )
        return params["loc"], -0.5 * jnp.log(jnp.sum(factor**2, axis=0))

    def local_gradient(self, params: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        # With L = E (I + M) the factor of the covariance, coordinates (w, A) relative to q are
        # loc + L w and L (I + A), A lower triangular: their gradients are L' g and the lower part
        # of L' G for G the gradient in L. A's information is 1 off its diagonal and 2 on it.
        unit = jnp.eye(params["loc"].size, dtype=params["loc"].dtype) + params["lower"]
        lower = jnp.tril(grads["lower"], -1)  # of E G, and below its diagonal
        diagonal = grads["log_diagonal"] - jnp.sum(lower * params["lower"], axis=1)
        factor = jnp.tril(unit.T @ (lower + jnp.diag(diagonal)))
        return {
            "loc": unit.T @ (jnp.exp(params["log_diagonal"]) * grads["loc"]),
            "log_diagonal": math.sqrt(0.5) * jnp.diag(factor),
            "lower": jnp.tril(factor, -1),
        }, ()

    def local_step(self, params: PyTree, step: PyTree, rest: PyTree) -> PyTree:
        # The diagonal of I + A is taken as an exponential, so that L stays a factor.
        del rest
        unit = jnp.eye(params["loc"].size, dtype=params["loc"].dtype) + params["lower"]
        growth = math.sqrt(0.5) * step["log_diagonal"]
        moved = unit @ (step["lower"] + jnp.diag(jnp.exp(growth)))
        return {
            "loc": jnp.exp(params["log_diagonal"]) * (unit @ step["loc"]),
            "log_diagonal": growth,
            "lower": jnp.tril(jnp.exp(-growth)[:, None] * moved, -1) - params["lower"],
        }

    def scale_tril(self, params: PyTree) -> Array:
        """Lower-triangular Cholesky factor of the covariance of the unconstrained vector."""
        scale = jnp.exp(params["log_diagonal"])
        return scale[:, None] * (jnp.eye(scale.size, dtype=scale.dtype) + params["lower"])

    def location(self, noise: Array, params: PyTree) -> Array:
        correlated = noise + _strictly_lower(params["lower"]) @ noise
        return params["loc"] + jnp.exp(params["log_diagonal"]) * correlated

    def noise_at(self, params: PyTree, u: Array) -> Array:
        """The noise with which ``u`` is drawn: the inverse of ``location``."""
        standardized = (u - params["loc"]) * jnp.exp(-params["log_diagonal"])
        return jax.scipy.linalg.solve_triangular(
            _strictly_lower(params["lower"]), standardized, lower=True, unit_diagonal=True
        )

    def vector_log_prob(self, params: PyTree, u: Array) -> Array:
        noise = self.noise_at(params, u)
        return standard_normal_log_prob(noise) - jnp.sum(params["log_diagonal"])

    def vector_entropy(self, params: PyTree) -> Array:
        return jnp.sum(params["log_diagonal"]) + standard_normal_entropy(self.layout.size)

    def sample_and_log_prob(self, noise: Array, params: PyTree, x: Data) -> tuple[Latents, Array]:
        values, log_det = self.layout.constrain(self.location(noise, params))
        log_q = standard_normal_log_prob(noise) - jnp.sum(params["log_diagonal"]) - log_det
        return self.pack(values), log_q


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class LowRank(GaussianGuide):
    r"""Gaussian with covariance diagonal plus low rank over the flattened, unconstrained latents.

    :math:`z = T(\mathrm{loc} + e^{\mathrm{log\_scale}} \epsilon_1 + F \epsilon_2)`, with F of
    shape ``[D, rank]``: memory and time are linear in D.

    Args:
      sites: pytree of ``bbvi.Normal`` / ``bbvi.LogNormal`` sites (any support).
      rank: number of columns of F, at least 1.

    Raises:
      TypeError: a site is not normal.
      ValueError: the rank is below 1, or above the number of entries.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.LowRank({"w": bbvi.Normal((100,))}, rank=3)
      >>> guide.init(jax.random.key(0), None)["factor"].shape
      (100, 3)

    References:
      Ong, Nott and Smith (2018), Gaussian Variational Approximation With a Factor Covariance
      Structure.
    """

    rank: int

    def __init__(self, sites: PyTree, rank: int):
        super().__init__(sites)
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"LowRank rank must be an int of at least 1, got {rank!r}.")
        if rank > self.layout.size:
            raise ValueError(
                f"LowRank rank must be at most {self.layout.size}, the number of entries of the "
                f"latents, got {rank}; bbvi.FullRank has all correlations."
            )
        object.__setattr__(self, "rank", rank)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, rank={self.rank})"

    def init(self, key: Key, x: Data) -> PyTree:
        # At factor = 0 its gradient vanishes: a small random start breaks the symmetry.
        key, factor_key = jax.random.split(key)
        params = super().init(key, x)
        noise = jax.random.normal(factor_key, params["factor"].shape)
        return params | {"factor": 0.01 * noise}

    def params_at(self, z: Latents, scale: float = 0.1) -> PyTree:
        loc = self.layout.unconstrain(self.values_at(z, scale))
        columns = jnp.eye(loc.size, self.rank, dtype=loc.dtype)
        return {
            "loc": loc,
            "log_scale": jnp.full_like(loc, jnp.log(scale)),
            "factor": 0.1 * scale * columns,
        }

    def from_mean_field(self, loc: Array, log_scale: Array) -> PyTree:
        # One column for each entry, so that no two columns have the same gradient.
        columns = jnp.arange(loc.size)[:, None] % self.rank == jnp.arange(self.rank)[None]
        factor = 0.1 * jnp.exp(log_scale)[:, None] * columns
        return {"loc": loc, "log_scale": log_scale, "factor": factor}

    def local_gradient(self, params: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        # Relative to the marginal deviations alone: the whole information has no cheap inverse.
        scale = self._scale(params)
        return {
            "loc": scale * grads["loc"],
            "log_scale": math.sqrt(0.5) * grads["log_scale"],
            "factor": scale[:, None] * grads["factor"],
        }, ()

    def local_step(self, params: PyTree, step: PyTree, rest: PyTree) -> PyTree:
        del rest
        scale = self._scale(params)
        return {
            "loc": scale * step["loc"],
            "log_scale": math.sqrt(0.5) * step["log_scale"],
            "factor": scale[:, None] * step["factor"],
        }

    def full_rank(self, params: PyTree) -> PyTree:
        """Parameters of the ``FullRank`` guide that is the same Gaussian."""
        covariance = params["factor"] @ params["factor"].T + jnp.diag(
            jnp.exp(2 * params["log_scale"])
        )
        factor = jnp.linalg.cholesky(covariance)
        scale = jnp.diag(factor)
        lower = jnp.tril(factor / scale[:, None], -1)
        return {"loc": params["loc"], "log_diagonal": jnp.log(scale), "lower": lower}

    @staticmethod
    def _scale(params: PyTree) -> Array:
        """Marginal standard deviations of the unconstrained vector."""
        squares = jnp.exp(2 * params["log_scale"]) + jnp.sum(params["factor"] ** 2, axis=1)
        return jnp.sqrt(squares)

    @property
    def noise_size(self) -> int:
        return self.layout.size + self.rank

    def location(self, noise: Array, params: PyTree) -> Array:
        independent, shared = noise[: self.layout.size], noise[self.layout.size :]
        scaled = jnp.exp(params["log_scale"]) * independent
        return params["loc"] + scaled + params["factor"] @ shared

    def _distribution(self, params: PyTree) -> Any:
        return tfd.MultivariateNormalDiagPlusLowRankCovariance(
            loc=params["loc"],
            cov_diag_factor=jnp.exp(2 * params["log_scale"]),
            cov_perturb_factor=params["factor"],
        )

    def vector_log_prob(self, params: PyTree, u: Array) -> Array:
        with jax.numpy_rank_promotion("allow"):
            return self._distribution(params).log_prob(u)

    def vector_entropy(self, params: PyTree) -> Array:
        # log det(D + F F') = log det D + log det(I + F' D^-1 F), by the matrix determinant lemma.
        whitened = jnp.exp(-params["log_scale"])[:, None] * params["factor"]
        capacitance = jnp.eye(self.rank, dtype=whitened.dtype) + whitened.T @ whitened
        log_det = jnp.linalg.slogdet(capacitance)[1]
        return (
            jnp.sum(params["log_scale"]) + 0.5 * log_det + standard_normal_entropy(self.layout.size)
        )
