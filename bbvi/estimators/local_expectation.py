"""Exact expectations over one discrete entry at a time, for all entries at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._tree import named_leaves, with_leaf
from bbvi._types import Data, Latents, Params, PyTree, Site
from bbvi.dependence.local_values import local_values, num_colours
from bbvi.estimators.base import Cost, SurrogateEstimator, check_elbo
from bbvi.problem import Problem, over_draws


@dataclasses.dataclass(frozen=True)
class LocalExpectation(SurrogateEstimator):
    r"""Gradient of the ELBO with each discrete entry summed out exactly, given the others' draws.

    .. math::
      g = -\frac1S \sum_s \sum_i \sum_k \nabla_\phi q_i(k; \phi)
          \big[ R_i(z_s \text{ with } z_i = k) - \log q_i(k; \phi) \big]

    :math:`R_i` is the sum of the terms of ``log_joint`` that read entry i. Entries that share no
    term are changed together (a colouring of the graph that ``bbvi.explain`` shows), so that a
    step costs S K values of ``log_joint`` per colour: one colour for independent assignments, two
    for chains and grids. Unbiased; without variance where the entries are independent given all
    that is not drawn.

    Args:
      num_samples: S, draws per step of the other entries.

    Raises:
      ValueError: a site without finitely many values (give it another estimator in ``PerSite``);
        an objective other than the ELBO; entries whose shared terms depend on data.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     s = 2.0 * z["s"] - 1.0
      ...     return x * jnp.sum(s[1:] * s[:-1]) + 0.3 * jnp.sum(s)
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     bbvi.MeanField({"s": bbvi.Bernoulli((20,))}),
      ...     0.1,
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.LocalExpectation(4),
      ...     num_steps=500,
      ...     progress=False,
      ... )
      >>> bool(result.elbo(jax.random.key(1), 1000).value > 14.0)
      True

    References:
      Titsias and Lázaro-Gredilla (2015), Local Expectation Gradients for Black Box Variational
      Inference.
    """

    num_samples: int = 4

    is_pathwise: ClassVar[bool] = False
    takes_site_weights: ClassVar[bool] = True

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)
        for site in problem.guide.sites():
            check_local(problem, params, x, site)

    def cost_for(self, problem: Problem, params: Params, x: Data) -> Cost:
        sites = [site.name for site in problem.guide.sites()]
        return Cost(self.num_samples * (1 + local_cost(problem, params, x, sites)))

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        z = problem.sample(noise, stop_gradient(params), x)
        log_p, log_q = problem.log_p(params, x, z), problem.log_q(params, x, z)
        terms = [local_term(problem, params, x, z, site) for site in problem.guide.sites()]
        # The mean of log p carries the gradient of learned model parameters, and nothing else.
        scalar = -jnp.mean(log_p + sum(terms))
        return scalar, (stop_gradient(log_p - log_q), state)


def check_local(problem: Problem, params: Params, x: Data, site: Site) -> None:
    """Raise unless the entries of a site can be summed out."""
    if site.num_values is None or site.event_ndims != 0:
        raise ValueError(
            f"site '{site.name}' ({site.family}) does not take finitely many values, so "
            "LocalExpectation cannot sum it out; use Reparameterization or ScoreFunction for it: "
            f"estimator={{'{site.name}': bbvi.ScoreFunction(...), ...}}."
        )
    z, sites, args = (
        problem.draw_shapes(params, x),
        problem.guide.sites(),
        problem.model_args(params),
    )
    if num_colours(problem.log_joint, sites, x, z, *args)[site.name] is None:
        raise ValueError(
            f"which entries of site '{site.name}' share a term of log_joint depends on the values "
            "of index data in x, so LocalExpectation cannot change them together; close over "
            "those indices in log_joint, or use ScoreFunction for the site."
        )


def local_cost(problem: Problem, params: Params, x: Data, names: Collection[str]) -> int:
    """Values of ``log_joint`` that sums over the named sites take, for each draw."""
    sites, args = problem.guide.sites(), problem.model_args(params)
    colours = num_colours(problem.log_joint, sites, x, problem.draw_shapes(params, x), *args)
    return sum((s.num_values or 0) * (colours[s.name] or 0) for s in sites if s.name in names)


def local_term(problem: Problem, params: Params, x: Data, z: Latents, site: Site) -> Array:
    """``[S]`` scalars whose gradient is that of the ELBO in a discrete site's parameters."""
    guide, sites, args = problem.guide, problem.guide.sites(), problem.model_args(params)
    values = stop_gradient(
        over_draws(
            lambda draw: local_values(problem.log_joint, sites, site, x, draw, *args),
            stop_gradient(z),
        )
    )  # [S, K, *shape]
    draw = jax.tree.map(lambda leaf: leaf[0], z)

    def log_q_at(value: Array) -> Array:
        filled = jnp.full_like(named_leaves(draw, "latents")[site.leaves[0]], value)
        flipped = with_leaf(draw, "latents", site.leaves[0], filled)
        return guide.site_log_probs(params.guide, x, flipped)[site.name]

    log_q = jax.vmap(log_q_at)(jnp.arange(site.num_values))[None]  # [1, K, *shape]: q has no draws
    weighted = problem.weighted({site.name: stop_gradient(log_q)})[site.name]
    signal = values - values.mean(axis=1, keepdims=True) - weighted
    return jnp.sum(jnp.exp(log_q) * signal, axis=range(1, signal.ndim))
