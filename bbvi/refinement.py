"""Guides whose local parameters are refined for the data at hand, in terms of free ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._types import Data, Params, PyTree
from bbvi.problem import Problem


def free_problem(problem: Problem) -> Problem:
    """The same with the refined parameters as free ones: what draws are made and scored by."""
    if problem.guide.refinement is None:
        return problem
    return dataclasses.replace(problem, guide=problem.guide.free())


def free_point(problem: Problem, params: Params, x: Data) -> Params:
    r"""Parameters of ``free_problem``: those of the rows of x, refined from where they start.

    Each step goes along the natural gradient of the ELBO in location m and log scale s, but at
    most one standard deviation far, and e times as wide or narrow:

    .. math::
      m \leftarrow m + \rho \, e^{2 s} \, \partial_m \widehat{\mathrm{ELBO}}, \qquad
      s \leftarrow s + \tfrac{\rho}{2} \, \partial_s \widehat{\mathrm{ELBO}}

    Where the posterior is a product of normal densities a whole step, rho = 1, leads to it once
    the scale is right. The noise of the estimate is the same at every call, so that the result is
    a differentiable function of all parameters.
    """
    refinement = problem.guide.refinement
    if refinement is None:
        return params
    free = free_problem(problem)
    shared, rows = free.guide.split_rows(problem.guide.start(params.guide, x))
    # The same noise on purpose, here and at every call.
    noise = problem.guide.refinement_noise(jax.random.key(0), refinement.num_samples)

    def elbo(rows: PyTree) -> Array:
        point = params._replace(guide=free.guide.join_rows(shared, rows))
        z, entropy = free.sample_and_entropy(noise, point, x)
        return jnp.mean(free.log_p(point, x, z) + entropy)

    def move(own: dict[str, Array], grads: dict[str, Array]) -> dict[str, Array]:
        scale = jnp.exp(own["log_scale"])
        by_loc = jnp.clip(refinement.step_size * scale * grads["loc"], -1, 1)
        by_log_scale = jnp.clip(0.5 * refinement.step_size * grads["log_scale"], -1, 1)
        return {"loc": own["loc"] + scale * by_loc, "log_scale": own["log_scale"] + by_log_scale}

    def step(rows: PyTree, _: None) -> tuple[PyTree, None]:
        return jax.tree.map(move, rows, jax.grad(elbo)(rows), is_leaf=_is_normal), None

    rows, _ = jax.lax.scan(step, rows, length=refinement.num_steps)
    return params._replace(guide=free.guide.join_rows(shared, rows))


def _is_normal(node: PyTree) -> bool:
    return isinstance(node, dict) and set(node) == {"loc", "log_scale"}
