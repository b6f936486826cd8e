"""Where the base noise of a step's draws comes from: independent, antithetic or quasi-random."""

from __future__ import annotations

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._types import Key, PyTree
from bbvi.guides.base import Guide
from bbvi.objectives import Objective

MAX_SOBOL_DIMENSION = 21_201  # direction numbers of Joe and Kuo (2008), as SciPy has them


class Sampling(abc.ABC):
    """How the base noise of the S draws of one step is made; each draw has the guide's law.

    To write one, subclass ``bbvi.sampling.Coupled`` and define ``uniforms``.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.FullRank({"w": bbvi.Normal((2,))})
      >>> [
      ...     s.draw(jax.random.key(0), guide, 4).shape
      ...     for s in (bbvi.Independent(), bbvi.Antithetic())
      ... ]
      [(4, 2), (4, 2)]
    """

    def check_num_samples(self, num_samples: int) -> None:
        """Raise if so many draws cannot be made."""
        del num_samples

    def validate(self, guide: Guide, objective: Objective) -> None:
        """Raise if the noise would be wrong for the guide or the objective."""
        del guide, objective

    @abc.abstractmethod
    def draw(self, key: Key, guide: Guide, num_samples: int) -> PyTree:
        """Base noise of S draws: every leaf ``[S, ...]``."""


@dataclasses.dataclass(frozen=True)
class Independent(Sampling):
    """Independent draws: plain Monte Carlo, for every guide and objective.

    Example:
      >>> import bbvi
      >>> bbvi.Reparameterization(8, sampling=bbvi.Independent()) == bbvi.Reparameterization(8)
      True
    """

    def draw(self, key: Key, guide: Guide, num_samples: int) -> PyTree:
        return jax.vmap(guide.base_noise)(jax.random.split(key, num_samples))


class Coupled(Sampling):
    """Draws that depend on each other, from uniforms that the guide maps to its base noise.

    Each draw by itself has the guide's law, so that the mean of any function over the draws, the
    ELBO and its gradient among them, keeps its expectation. A bound of several draws at once
    does not: it is refused.
    """

    @abc.abstractmethod
    def uniforms(self, key: Key, num_samples: int, dimension: int) -> Array:
        """Points ``[S, dimension]`` inside the unit cube, each of them uniform."""

    def validate(self, guide: Guide, objective: Objective) -> None:
        if not objective.is_mean:
            raise ValueError(
                f"{self!r} makes draws that depend on each other: only bbvi.Elbo() keeps its "
                f"expectation under them, {objective!r} does not. Use sampling=bbvi.Independent()."
            )
        families = {site.name: site.family for site in guide.sites()}
        for name, size in guide.noise_sizes().items():
            if size is None:
                raise ValueError(
                    f"{self!r} makes base noise from uniforms, but site '{name}' "
                    f"({families[name]}) has no map from them: it draws by rejection, or its guide "
                    "does not define noise_sizes and noise_from_uniform. Use "
                    "sampling=bbvi.Independent(), or a family that has one, such as bbvi.Normal "
                    "with a support."
                )

    def draw(self, key: Key, guide: Guide, num_samples: int) -> PyTree:
        dimension = sum(size or 0 for size in guide.noise_sizes().values())
        return jax.vmap(guide.noise_from_uniform)(self.uniforms(key, num_samples, dimension))


@dataclasses.dataclass(frozen=True)
class Antithetic(Coupled):
    r"""Pairs of mirrored draws, from u and 1 - u; for normal sites :math:`\epsilon` and
    :math:`-\epsilon`.

    What is odd in the noise cancels: on a quadratic log joint the gradient of the locations has no
    variance left. What is even is drawn only S / 2 times: there the variance doubles, as in the
    gradient of the scales close to the optimum.

    Example:
      >>> import bbvi
      >>> bbvi.Reparameterization(8, sampling=bbvi.Antithetic()).sampling
      Antithetic()

    References:
      Hammersley and Morton (1956), A New Monte Carlo Technique: Antithetic Variates.
    """

    def check_num_samples(self, num_samples: int) -> None:
        if num_samples % 2:
            raise ValueError(
                f"Antithetic draws come in pairs: num_samples must be even, got {num_samples}."
            )

    def uniforms(self, key: Key, num_samples: int, dimension: int) -> Array:
        bits = jax.random.bits(key, (num_samples // 2, dimension), jnp.uint32)
        # Complements the second half. Concatenated with ~bits it would cost half of a small step.
        mirror = np.repeat(np.array([0, 2**32 - 1], np.uint32), num_samples // 2)
        return unit_interval(jnp.tile(bits, (2, 1)) ^ mirror[:, None])


@dataclasses.dataclass(frozen=True)
class ScrambledSobol(Coupled):
    r"""Randomized quasi-Monte Carlo: Sobol points, scrambled afresh at every step.

    Digit by digit in base two, point n is :math:`L\,y_n \oplus b`: y_n the Sobol point, L a random
    unit lower triangular matrix and b a random vector, new for every coordinate and step. Every
    point is exactly uniform, so the gradient is unbiased; as a set the points stay as evenly
    spread as Sobol's. For smooth integrands the variance falls like :math:`S^{-3}` up to
    logarithms, against :math:`S^{-1}` of independent draws.

    ``num_samples`` must be a power of two, and the guide's noise must have at most 21,201 entries.

    Example:
      >>> import bbvi
      >>> bbvi.Reparameterization(8, sampling=bbvi.ScrambledSobol()).sampling
      ScrambledSobol()

    References:
      Matousek (1998), On the L2-Discrepancy for Anchored Boxes, for the scrambling; Owen (2003),
      Variance with Alternative Scramblings of Digital Nets, for its variance, equal to that of
      nested uniform scrambling; Buchholz, Wenzel and Mandt (2018), Quasi-Monte Carlo Variational
      Inference.
    """

    def check_num_samples(self, num_samples: int) -> None:
        if num_samples & (num_samples - 1):
            raise ValueError(
                "ScrambledSobol points are balanced in powers of two: num_samples must be one, "
                f"got {num_samples}."
            )

    def validate(self, guide: Guide, objective: Objective) -> None:
        super().validate(guide, objective)
        dimension = sum(size or 0 for size in guide.noise_sizes().values())
        if dimension > MAX_SOBOL_DIMENSION:
            raise ValueError(
                f"ScrambledSobol has {MAX_SOBOL_DIMENSION} dimensions, but the guide's base noise "
                f"has {dimension} entries. Use sampling=bbvi.Antithetic() or bbvi.Independent()."
            )

    def uniforms(self, key: Key, num_samples: int, dimension: int) -> Array:
        digits = sobol_digits(num_samples, dimension)
        # Digits past the first log2(S) of an unscrambled point are zero, so only that many columns
        # of L are ever read. Column k is a word: k zeros, the one of the diagonal, random digits.
        *columns, bits = jax.random.bits(key, (len(digits) + 1, 1, dimension), jnp.uint32)
        for k, column in enumerate(columns):
            bits = bits ^ digits[k] * ((column | jnp.uint32(1 << 31)) >> jnp.uint32(k))
        return unit_interval(jnp.broadcast_to(bits, (num_samples, dimension)))


@functools.lru_cache(maxsize=16)
def sobol_digits(num_samples: int, dimension: int) -> np.ndarray:
    """Binary digits ``[log2(S), S, d]`` of the first S Sobol points, most significant first."""
    from scipy.stats import qmc  # slow to load, and only needed here

    cells = (qmc.Sobol(dimension, scramble=False).random(num_samples) * num_samples).astype(int)
    exponents = np.arange(num_samples.bit_length() - 1)[::-1, None, None]
    return (cells >> exponents & 1).astype(np.uint32)


def unit_interval(bits: Array) -> Array:
    """Random 32-bit words as midpoints of equal cells of (0, 1).

    Never 0 or 1, whose quantiles are infinite, and with ``~bits`` at exactly 1 - u: as many digits
    are kept (23 in single precision) as leave room for the half that is added.
    """
    dtype = jnp.zeros(()).dtype
    num_digits = min(32, jnp.finfo(dtype).nmant)
    cells = bits >> jnp.uint32(32 - num_digits)
    return (cells.astype(dtype) + 0.5) * 2.0**-num_digits
