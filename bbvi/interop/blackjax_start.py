"""Where a sampler of BlackJAX starts from a fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bbvi import supports
from bbvi._tree import named_leaves
from bbvi._types import Data, Key, Latents, Params, check_key
from bbvi.guides.base import Guide, StructuredGuide
from bbvi.guides.families import Beta, Dirichlet, Gamma, LocationScale, Normal
from bbvi.guides.gaussian import Layout
from bbvi.guides.local import LocalGuide
from bbvi.guides.mean_field import MeanField
from bbvi.guides.product import Product
from bbvi.infer.result import FitResult
from bbvi.problem import Problem

MIN_DRAWS, DRAWS_PER_DIMENSION = 4000, 10  # of q, for its covariance


class SamplerStart(NamedTuple):
    """A posterior over one unconstrained vector u ``[D]``, and where to begin to sample it.

    Attributes:
      log_density: ``u -> []``, log p(x, z(u)) plus the log determinant: what
        samplers take. It is a pytree
        that holds the data, so that it may be an argument of a compiled function.
      positions: draws of u from the fitted guide, ``[C, D]``, one for each chain.
      inverse_mass_matrix: covariance of u under the guide, ``[D, D]``; its diagonal ``[D]`` where
        the guide's latents are independent.
      constrain: ``u -> z``, the latents of one u.
    """

    log_density: Callable[[Array], Array]
    positions: Array
    inverse_mass_matrix: Array
    constrain: Callable[[Array], Latents]


def to_blackjax(result: FitResult, key: Key, num_chains: int = 4) -> SamplerStart:
    r"""Density, positions and inverse mass matrix for Hamiltonian Monte Carlo from a fit.

    Chains that start in the posterior, with its scales, need little warm-up. A bad fit does not
    make their answer wrong, but can make them slow: where k-hat is above 0.7, run
    ``blackjax.window_adaptation`` with this matrix as ``initial_inverse_mass_matrix``.

    Args:
      result: what ``fit`` returned, with continuous latents.
      key: typed key.
      num_chains: C, how many chains will be run.

    Returns:
      A ``SamplerStart``. Nothing in it is BlackJAX's own: other samplers take the same.

    Raises:
      ValueError: a latent is discrete or an angle; data of which only batches were in memory, see
        ``FitResult.at``.
      TypeError: a guide of your own, which does not say on which supports its latents are.

    Example:
      >>> import bbvi, blackjax, jax
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):  # mu is N(1.2, 0.4)
      ...     return norm.logpdf(z["mu"]) + norm.logpdf(x, z["mu"], 0.8165)
      >>> result = bbvi.fit(log_joint, bbvi.MeanField({"mu": bbvi.Normal()}), 2.0, progress=False)
      >>> start = bbvi.interop.to_blackjax(result, jax.random.key(1))
      >>> start.positions.shape, start.inverse_mass_matrix.shape
      ((4, 1), (1,))
      >>> nuts = blackjax.nuts(start.log_density, 0.8, start.inverse_mass_matrix)
      >>> state = nuts.init(start.positions[0])  # and then nuts.step(key, state), in a scan
      >>> start.constrain(state.position)["mu"].shape
      ()

    References:
      Hoffman and Gelman (2014), The No-U-Turn Sampler; Zhang, Carpenter, Gelman and Vehtari (2022),
      Pathfinder, for starts from a variational fit.
    """
    draw_key, position_key = jax.random.split(check_key(key))
    if result.batching is not None and result.batching.is_streamed:
        raise ValueError(
            "a sampler needs all rows of the data at once, but they were streamed in batches: take "
            "as many as fit into memory, to_blackjax(result.at(x), key)."
        )
    problem = result.problem
    layout = Layout(tuple(_unconstrained_sites(problem.guide).items()))
    num_draws = max(MIN_DRAWS, DRAWS_PER_DIMENSION * layout.size)

    def unconstrained(key: Key, num_samples: int) -> Array:
        return _unconstrain(layout, result.sample(key, num_samples))

    draws = unconstrained(draw_key, num_draws)
    centred = draws - draws.mean(axis=0)[None]
    if _is_independent(problem.guide):
        covariance = jnp.sum(centred**2, axis=0) / (num_draws - 1)
    else:
        covariance = centred.T @ centred / (num_draws - 1)
    treedef: Any = jax.tree.structure(problem.draw_shapes(result.params, result.x))
    return SamplerStart(
        # A pytree of its data: as constants of a program they would be compiled into it.
        jax.tree_util.Partial(
            functools.partial(_log_density, problem, layout, treedef), result.params, result.x
        ),
        unconstrained(position_key, num_chains),
        covariance,
        functools.partial(_constrain, layout, treedef),
    )


def _log_density(
    problem: Problem, layout: Layout, treedef: Any, params: Params, x: Data, u: Array
) -> Array:
    z = _constrain(layout, treedef, u)
    return problem.log_joint(x, z, *problem.model_args(params)) + layout.log_det(u)


def _constrain(layout: Layout, treedef: Any, u: Array) -> Latents:
    values, _ = layout.constrain(u)
    names = named_leaves(jax.tree.unflatten(treedef, range(treedef.num_leaves)), "latents")
    return jax.tree.unflatten(treedef, [values[name] for name in names])


@functools.partial(jax.jit, static_argnames="layout")
def _unconstrain(layout: Layout, draws: Latents) -> Array:
    """Vectors ``[S, D]`` of draws."""
    return jax.vmap(lambda z: layout.unconstrain(named_leaves(z, "latents")))(draws)


def _parts(guide: Guide) -> tuple[Guide, ...]:
    return guide.guides if isinstance(guide, Product) else (guide,)


def _is_independent(guide: Guide) -> bool:
    return all(isinstance(part, MeanField | LocalGuide) for part in _parts(guide))


def _unconstrained_sites(guide: Guide) -> dict[str, Normal]:
    """For each latent a site of its shape and support, which has the bijector."""
    sites = {}
    for part in _parts(guide):
        if not isinstance(part, StructuredGuide):
            raise TypeError(
                f"{type(part).__name__} does not say on which supports its latents are; a sampler "
                "can start from MeanField, FullRank, LowRank, Local, Amortized and their Product."
            )
        for name, family in part.named_families.items():
            sites[name] = Normal(family.shape, support=_support(name, family))
    return sites


def _support(name: str, family: Any) -> supports.Support:
    if isinstance(family, LocationScale):
        return family.support
    table = {Gamma: supports.positive, Beta: supports.unit_interval, Dirichlet: supports.simplex}
    if type(family) not in table:
        raise ValueError(
            f"latent '{name}' is {family!r}, but Hamiltonian Monte Carlo moves unconstrained real "
            "numbers. Sum discrete latents out of log_joint; write an angle as that of a point in "
            "the plane."
        )
    return table[type(family)]
