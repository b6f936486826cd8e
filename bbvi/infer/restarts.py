"""Runs from different starts: which is best, and whether they agree."""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._types import Data, Key, Params, PyTree
from bbvi.diagnostics import MonteCarlo, monte_carlo_mean
from bbvi.infer.batching import Batching, Source
from bbvi.infer.draws import batch_log_weights, select_params
from bbvi.infer.placement import gathered
from bbvi.infer.step import FitState
from bbvi.problem import Problem
from bbvi.refinement import free_point, free_problem


class Restarts(NamedTuple):
    """Several runs from different starting points.

    Attributes:
      elbos: ELBO of each run, with standard errors.
      best: index of the run that is reported.
      disagreement: for each run, the largest difference of a posterior mean from the best run's,
        in posterior standard deviations.
      states: the final state of all runs, with a leading axis.
    """

    elbos: tuple[MonteCarlo, ...]
    best: int
    disagreement: np.ndarray
    states: FitState


def compare_restarts(problem: Problem, source: Source, key: Key, state: FitState) -> Restarts:
    """Which of several runs is best, and how far the others are from it."""
    # One key for all runs on purpose: common random numbers make them comparable.
    with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
        log_weights, mean, sd = gathered(
            _evaluate(problem, source.batching, key, state.params, source.few)
        )
        if source.batching is not None:
            pick = map(operator.itemgetter, range(len(state.rate)))
            runs = [jax.tree.map(run, state.params) for run in pick]
            log_weights = [batch_log_weights(problem, source, key, run, 256) for run in runs]
    # On the host first: iterating over a device array would compile a program to take it apart.
    elbos = tuple(monte_carlo_mean(weights) for weights in np.asarray(log_weights))
    values = np.array([elbo.value for elbo in elbos])
    best = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))

    def gap(mean: Array, sd: Array) -> np.ndarray:
        # Of both runs: a discrete site may be saturated, and have no spread, in the best one.
        pooled = jnp.sqrt(0.5 * (sd**2 + sd[best][None] ** 2))
        scaled = jnp.abs(mean - mean[best][None]) / jnp.maximum(pooled, 1e-30)
        return np.asarray(scaled.reshape(len(scaled), -1).max(axis=1))

    gaps = jax.tree.leaves(jax.tree.map(gap, mean, sd))
    return Restarts(elbos, best, np.max(gaps, axis=0), state)


@functools.partial(jax.jit, static_argnames=("problem", "batching"))
def _evaluate(
    problem: Problem, batching: Batching | None, key: Key, params: Params, x: Data
) -> tuple[Array | None, PyTree, PyTree]:
    """Log weights ``[R, S]``, means and sds of the latents of every run, under common noise.

    With minibatches x is the first batch: there are no log weights then, and of latents with a row
    for each datum those of the first rows.
    """

    def one(params: Params) -> tuple[Array | None, PyTree, PyTree]:
        if batching is not None:
            params = select_params(problem, params, jnp.arange(batching.batch_size))
        free, point = free_problem(problem), free_point(problem, params, x)
        z, log_q = free.sample_and_log_q(free.base_noise(key, 1000), point, x)
        weights = free.log_p(point, x, z) - log_q if batching is None else None
        mean = jax.tree.map(lambda a: jnp.mean(a.astype(log_q.dtype), axis=0), z)
        sd = jax.tree.map(lambda a: jnp.std(a.astype(log_q.dtype), axis=0), z)
        return weights, mean, sd

    return jax.lax.map(one, params)
