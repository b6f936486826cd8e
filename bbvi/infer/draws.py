"""Fresh draws from a guide, and their log weights: what a result computes when it is asked."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._tree import shapes
from bbvi._types import Data, Key, Latents, Params, PyTree
from bbvi.guides.base import Guide
from bbvi.infer.batching import Batching, Feed, Source, minibatches
from bbvi.infer.placement import readable
from bbvi.problem import Problem, check_problem
from bbvi.refinement import free_point, free_problem

# Draws are made at most this many at a time, to bound the memory of a large request, and fewer
# where each is over many rows of data.
DRAW_BATCH = 256
ROW_DRAWS = 1 << 13
ROW_GROUP = 128  # of data gone through at a time


def over_keys(
    function: Callable[[Key], PyTree], key: Key, num_samples: int, num_rows: int = 1
) -> PyTree:
    """``function`` of ``num_samples`` keys: batches one after another, the last cut to length."""
    size = max(1, min(DRAW_BATCH, ROW_DRAWS // num_rows))
    if num_samples <= size:
        return jax.vmap(function)(jax.random.split(key, num_samples))
    num_batches = -(-num_samples // size)
    keys = jax.random.split(key, (num_batches, size))
    batches = jax.lax.map(jax.vmap(function), keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_samples], batches)


@readable
@functools.partial(jax.jit, static_argnames=("problem", "num_samples"))
def draw(problem: Problem, key: Key, params: Params, x: Data, num_samples: int) -> Latents:
    """Draws ``[S, ...]``."""
    params, problem = free_point(problem, params, x), free_problem(problem)

    def one(key: Key) -> Latents:
        return problem.guide.sample(problem.guide.base_noise(key), params.guide, x)

    return over_keys(one, key, num_samples)


def _evaluated_draws(
    problem: Problem, key: Key, params: Params, x: Data, num_samples: int
) -> tuple[Latents, Array, Array]:
    params, problem = free_point(problem, params, x), free_problem(problem)

    def one(key: Key) -> tuple[Latents, Array, Array]:
        noise = problem.guide.base_noise(key)
        z, log_q = problem.guide.sample_and_log_prob(noise, params.guide, x)
        return z, problem.log_joint(x, z, *problem.model_args(params)), log_q

    return over_keys(one, key, num_samples)


@readable
@functools.partial(jax.jit, static_argnames=("problem", "num_samples"))
def evaluated_draws(
    problem: Problem, key: Key, params: Params, x: Data, num_samples: int
) -> tuple[Latents, Array, Array]:
    """Draws ``[S, ...]``, their log joints ``[S]`` and their log densities ``[S]``."""
    return _evaluated_draws(problem, key, params, x, num_samples)


@readable
@functools.partial(jax.jit, static_argnames=("problem", "num_samples"))
def log_weights(problem: Problem, key: Key, params: Params, x: Data, num_samples: int) -> Array:
    """Log weights ``[S]`` at fresh draws, which are not kept."""
    _, log_p, log_q = _evaluated_draws(problem, key, params, x, num_samples)
    return log_p - log_q


def batch_log_weights(
    problem: Problem, source: Source, key: Key, params: Params, num_samples: int
) -> Array:
    """Log weights ``[S]`` at fresh draws, each for a batch of its own and scaled to all data."""
    assert source.batching is not None
    row_key, key = jax.random.split(key)
    weights = []
    for feed, count in source.random_feeds(row_key, num_samples):
        key, feed_key = jax.random.split(key)
        weights.append(_feed_log_weights(problem, source.batching, feed_key, params, feed, count))
    return jnp.concatenate(weights)


@readable
@functools.partial(jax.jit, static_argnames=("problem", "batching", "num_batches"))
def _feed_log_weights(
    problem: Problem, batching: Batching, key: Key, params: Params, feed: Feed, num_batches: int
) -> Array:
    """One draw for each of the first batches of a feed."""

    def one(drawn: tuple[Array, Key]) -> Array:
        batch, rows = batching.take(feed, drawn[0])
        own = select_params(problem, params, rows)
        point, free = free_point(problem, own, batch), free_problem(problem)
        z, log_q = free.sample_and_log_q(free.base_noise(drawn[1], 1), point, batch)
        return batching.scale * (free.log_p(point, batch, z) - log_q)[0]

    draws = jnp.arange(num_batches), jax.random.split(key, num_batches)
    size = max(1, min(DRAW_BATCH, ROW_DRAWS // batching.batch_size))
    return jax.lax.map(one, draws, batch_size=min(size, num_batches))


def select_params(problem: Problem, params: Params, rows: Array) -> Params:
    """The parameters for some rows of the data."""
    shared, own = problem.guide.split_rows(params.guide)
    own = jax.tree.map(lambda leaf: leaf[rows], own)
    return params._replace(guide=problem.guide.join_rows(shared, own))


def component_log_weights(
    problem: Problem, key: Key, params: Params, x: Data, num_samples: int
) -> Array:
    """Log weights ``[S, C]`` at fresh draws, for each component of the model.

    Where every latent belongs to a row of the data, rows are gone through in groups: memory and
    the search for components do not grow with their number.
    """
    batching = None
    if all(site.is_local for site in problem.guide.sites()):
        with contextlib.suppress(ValueError):  # not a sum over rows
            batching = minibatches(problem, x, ROW_GROUP)[1]
    if batching is None:  # or too few of them
        return _component_log_weights(problem, key, params, x, num_samples)
    num_groups = -(-batching.num_data // ROW_GROUP)
    weights = []
    for rows in np.array_split(np.arange(batching.num_data), num_groups):
        key, group_key = jax.random.split(key)
        group, _ = minibatches(problem, x, len(rows))
        part = batching.map_rows(lambda leaf: leaf[rows], x)  # noqa: B023
        own = select_params(group, params, jnp.asarray(rows))
        weights.append(_component_log_weights(group, group_key, own, part, num_samples))
    return jnp.concatenate(weights, axis=1)


@readable
@functools.partial(jax.jit, static_argnames=("problem", "num_samples"))
def _component_log_weights(
    problem: Problem, key: Key, params: Params, x: Data, num_samples: int
) -> Array:
    params, problem = free_point(problem, params, x), free_problem(problem)

    def one(key: Key) -> Array:
        z = problem.guide.sample(problem.guide.base_noise(key), params.guide, x)
        draws = jax.tree.map(lambda leaf: leaf[None], z)
        log_p, log_q = problem.by_component(params, x, draws)
        return (log_p - log_q)[0]

    is_local = all(site.is_local for site in problem.guide.sites())
    num_rows = jax.tree.leaves(problem.draw_shapes(params, x))[0].shape[0] if is_local else 1
    return over_keys(one, key, num_samples, num_rows)


@readable
@functools.partial(jax.jit, static_argnames=("problem",))
def log_prob(problem: Problem, params: Params, x: Data, z: Latents) -> Array:
    """Log density of one value of the latents."""
    params, problem = free_point(problem, params, x), free_problem(problem)
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
