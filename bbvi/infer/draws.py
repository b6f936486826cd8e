"""Fresh draws from a guide, and their log weights: what a result computes when it is asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._tree import shapes
from bbvi._types import Data, Key, Latents, Params, PyTree
from bbvi.guides.base import Guide
from bbvi.problem import Problem, check_problem

# Draws are made at most this many at a time, to bound the memory of a large request.
DRAW_BATCH = 256


def over_keys(function: Callable[[Key], PyTree], key: Key, num_samples: int) -> PyTree:
    """``function`` of ``num_samples`` keys: batches one after another, the last cut to length."""
    if num_samples <= DRAW_BATCH:
        return jax.vmap(function)(jax.random.split(key, num_samples))
    num_batches = -(-num_samples // DRAW_BATCH)
    keys = jax.random.split(key, (num_batches, DRAW_BATCH))
    batches = jax.lax.map(jax.vmap(function), keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_samples], batches)


@functools.partial(jax.jit, static_argnames=("problem", "num_samples"))
def draw(problem: Problem, key: Key, params: Params, x: Data, num_samples: int) -> Latents:
    """Draws ``[S, ...]``."""

    def one(key: Key) -> Latents:
        return problem.guide.sample(problem.guide.base_noise(key), params.guide, x)

    return over_keys(one, key, num_samples)


@functools.partial(jax.jit, static_argnames=("problem", "num_samples"))
def log_weights(problem: Problem, key: Key, params: Params, x: Data, num_samples: int) -> Array:
    """Log weights ``[S]`` at fresh draws."""

    def one(key: Key) -> Array:
        noise = problem.guide.base_noise(key)
        z, log_q = problem.guide.sample_and_log_prob(noise, params.guide, x)
        return problem.log_joint(x, z, *problem.model_args(params)) - log_q

    return over_keys(one, key, num_samples)


@functools.partial(jax.jit, static_argnames=("problem", "num_samples"))
def component_log_weights(
    problem: Problem, key: Key, params: Params, x: Data, num_samples: int
) -> Array:
    """Log weights ``[S, C]`` at fresh draws, for each component of the model."""

    def one(key: Key) -> Array:
        z = problem.guide.sample(problem.guide.base_noise(key), params.guide, x)
        draws = jax.tree.map(lambda leaf: leaf[None], z)
        log_p, log_q = problem.by_component(params, x, draws)
        return (log_p - log_q)[0]

    return over_keys(one, key, num_samples)


@functools.partial(jax.jit, static_argnames=("problem",))
def log_prob(problem: Problem, params: Params, x: Data, z: Latents) -> Array:
    """Log density of one value of the latents."""
    return problem.guide.log_prob(params.guide, x, z)


def with_proposal(
    problem: Problem, params: Params, x: Data, proposal: Any
) -> tuple[Problem, Params]:
    """The problem with another guide and its parameters in place of the fitted ones."""
    is_pair = isinstance(proposal, tuple) and len(proposal) == 2
    if not (is_pair and isinstance(proposal[0], Guide)):
        raise TypeError(
            "proposal must be a guide and its parameters, (guide, guide.params_at(z, scale)), got "
            f"{proposal!r}."
        )
    guide, phi = proposal
    own = jax.eval_shape(lambda: guide.init(jax.random.key(0), x))
    if jax.tree.map(jnp.shape, phi) != jax.tree.map(jnp.shape, own):
        raise ValueError(
            f"the parameters of the proposal are {shapes(phi, 'guide')}, but {guide!r} has "
            f"{shapes(own, 'guide')}."
        )
    problem, params = Problem(problem.log_joint, guide), Params(phi, params.model)
    check_problem(problem, params, x)
    return problem, params
