"""Divergences from a guide's sites to their priors, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from bbvi._tree import named_leaves
from bbvi._types import Data, Latents, Params
from bbvi.dependence.reads import latents_read
from bbvi.problem import Problem, over_draws

Prior: TypeAlias = Callable[..., Mapping[str, Any]]


def entropy_by_prior(prior: Prior, problem: Problem, params: Params, x: Data, z: Latents) -> Array:
    r"""``[S]`` scalars whose expectation is the entropy of q, by way of divergences.

    .. math:: -\sum_{i} \big[\log p_i(z_i) + KL(q_i \,\|\, p_i)\big] + \sum_j H(q_j)

    over the sites i that have a prior and the others j.
    """

    def of_draw(draw: Latents) -> Array:
        values = named_leaves(draw, "latents")
        entropies = dict(problem.guide.site_entropies(params.guide, x, draw))
        priors = prior(x, draw, *problem.model_args(params))
        for name, divergence in divergences(priors, problem, params, x).items():
            with jax.numpy_rank_promotion("allow"):  # distrax relies on it
                log_p = jnp.sum(priors[name].log_prob(values[name]))
            entropies[name] = -log_p - divergence
        return sum(problem.weighted(entropies).values(), jnp.zeros(()))

    return over_draws(of_draw, z)


def divergences(
    priors: Mapping[str, Any], problem: Problem, params: Params, x: Data
) -> dict[str, Array]:
    """The divergence from each site to its prior, or an error that names the site."""
    if not isinstance(priors, Mapping) or not priors:
        raise TypeError(
            f"prior must return a dict of distrax distributions by site, got {priors!r}."
        )
    sites = {site.name: site for site in problem.guide.sites()}
    distributions, found = problem.guide.distributions(params.guide, x), {}
    for name, p in priors.items():
        if name not in sites:
            raise ValueError(f"prior names site '{name}'; the guide's are {list(sites)}.")
        if not isinstance(p, distrax.Distribution):
            raise TypeError(f"the prior of site '{name}' must be of distrax, got {p!r}.")
        pair = f"from site '{name}' ({sites[name].family}) to its prior {type(p).__name__}"
        try:
            with jax.numpy_rank_promotion("allow"):
                found[name] = distributions[name].kl_divergence(p)
        except (KeyError, NotImplementedError) as error:
            raise ValueError(
                f"there is no divergence {pair} in closed form: leave the site out of prior, and "
                "its entropy is used."
            ) from error
        if found[name].shape != distributions[name].batch_shape:
            raise ValueError(
                f"the divergence {pair} has shape {found[name].shape}, but there are independent "
                f"entries {distributions[name].batch_shape}: give the prior that batch shape."
            )
    return {name: jnp.sum(divergence) for name, divergence in found.items()}


def check_prior(prior: Prior, problem: Problem, params: Params, x: Data) -> None:
    """Raise unless the divergences exist and the prior of a site does not depend on its value."""

    def of_draw(x: Data, z: Latents, params: Params) -> dict[str, Array]:
        return divergences(prior(x, z, *problem.model_args(params)), problem, params, x)

    z = problem.draw_shapes(params, x)
    for name, read in latents_read(of_draw, x, z, params).items():
        if name in read:
            raise ValueError(
                f"the prior of site '{name}' depends on '{name}' itself, so that its divergence is "
                "not the expected one: leave the site out of prior, and its entropy is used."
            )
