"""Many independent gradients at one point: their mean, their spread, and the time they take."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._optimizers import Optimizer, default_optimizer
from bbvi._tree import named_leaves
from bbvi._types import Data, Key, Params, PyTree
from bbvi.estimators import Estimator
from bbvi.infer.step import Algorithm, FitState
from bbvi.problem import Problem

BATCH = 50  # replicates whose spread about their own mean is taken, and whose means are compared
MAX_ENTRIES = 20_000_000  # of gradients held at once
MIN_BATCH = 10


class Replicates(NamedTuple):
    """Moments of R independent gradients, for one block of P parameters.

    Attributes:
      mean: ``[P]``.
      variance: ``[P]``, unbiased.
      variance_error: ``[P]`` standard errors of ``variance``, by fourth moments.
      distances: ``[R]`` squared distances to the mean, whose mean is the trace of the covariance;
        the same replicates of two estimators have the same key.
      batch_means: ``[N, P]`` means of batches of replicates.
    """

    mean: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray
    distances: np.ndarray
    batch_means: np.ndarray

    def of_entries(self, kept: np.ndarray) -> Replicates:
        """Some entries, by a mask; distances stay those of all."""
        return self._replace(
            mean=self.mean[kept],
            variance=self.variance[kept],
            variance_error=self.variance_error[kept],
            batch_means=self.batch_means[:, kept],
        )

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        return float(self.distances.mean())

    @property
    def trace_error(self) -> float:
        """Its standard error, by the fourth moments that the distances are made of."""
        return float(self.distances.std(ddof=1) / np.sqrt(len(self.distances)))

    @property
    def kurtosis(self) -> float:
        """That of the squared distances; 0 where all are the same."""
        deviations = self.distances - self.trace
        spread = float(np.mean(deviations**2))
        return float(np.mean(deviations**4)) / spread**2 if spread else 0.0

    @property
    def kurtoses(self) -> np.ndarray:
        """``[P]`` kurtosis of every entry; 0 where all are the same."""
        fourth = len(self.distances) * self.variance_error**2 + self.variance**2
        is_noisy = self.variance > 0
        return np.where(is_noisy, fourth / np.where(is_noisy, self.variance, 1.0) ** 2, 0.0)

    @property
    def mean_variance(self) -> np.ndarray:
        """``[P]`` squared standard errors of ``mean``."""
        return self.variance / len(self.distances)


@dataclasses.dataclass(frozen=True)
class Run:
    """One estimator on one problem, its state fixed while gradients are replicated.

    Attributes:
      problem: model, guide and objective.
      estimator: what is run.
    """

    problem: Problem
    estimator: Estimator

    @property
    def _algorithm(self) -> Algorithm:
        return Algorithm(self.problem, self.estimator, Optimizer.of(default_optimizer()))

    def start(self, key: Key, params: Params, x: Data) -> FitState:
        """State at a point, before anything is learned there."""
        return self._algorithm.init(key, x, params)

    def gradient(self, key: Key, state: FitState, x: Data) -> tuple[Params, FitState]:
        """A gradient at the state's parameters, and the state with what was learned from it."""
        algorithm = self._algorithm
        noise = algorithm.draw(state._replace(key=key), state.step, x)
        found, learned = algorithm.estimate(state, x, noise)
        return found.grads, state._replace(estimator_state=learned)

    def loss(self, key: Key, state: FitState, x: Data) -> Array:
        """A loss at the state's parameters."""
        algorithm = self._algorithm
        noise = algorithm.draw(state._replace(key=key), state.step, x)
        return algorithm.estimate(state, x, noise)[0].loss


@functools.partial(jax.jit, static_argnames=("run",))
def resolution(run: Run, key: Key, state: FitState, x: Data) -> Array:
    """What rounding leaves of a learning signal: a few units in the last place of the loss."""
    loss = run.loss(key, state, x)
    return 4 * jnp.finfo(loss.dtype).eps * jnp.abs(loss)


@functools.partial(jax.jit, static_argnames=("run", "num_steps"))
def settle(run: Run, key: Key, params: Params, x: Data, num_steps: int) -> FitState:
    """A state whose coefficients and baselines have learned from some gradients at the point."""
    start_key, key = jax.random.split(key)
    state = run.start(start_key, params, x)
    if not jax.tree.leaves(state.estimator_state):
        return state

    def learn(state: FitState, key: Key) -> tuple[FitState, None]:
        return run.gradient(key, state, x)[1], None

    return jax.lax.scan(learn, state, jax.random.split(key, num_steps))[0]


def blocks(problem: Problem, params: Params) -> dict[str, Array]:
    """Parameters, or their gradient, by name of the latent and kind of parameter, as vectors."""
    by_site = problem.guide.site_params(params.guide)
    parts = [(name, tree) for name, tree in by_site.items()]
    if _is_shared(by_site):
        parts = [("guide", params.guide)]
    if params.model is not None:
        parts.append(("model", params.model))
    return {
        f"{name}.{leaf_name}".rstrip("."): jnp.ravel(leaf)
        for name, tree in parts
        for leaf_name, leaf in named_leaves(tree, "").items()
    }


def _is_shared(by_site: dict[str, PyTree]) -> bool:
    """Whether one network serves several sites."""
    leaves = jax.tree.leaves(by_site)
    return len({id(leaf) for leaf in leaves}) < len(leaves)


def replicate(
    run: Run, key: Key, state: FitState, x: Data, num_replicates: int
) -> dict[str, Replicates]:
    """Moments of at least so many gradients, by block."""
    entries = sum(np.size(leaf) for leaf in jax.tree.leaves(state.params))
    size = int(np.clip(MAX_ENTRIES // max(entries, 1), MIN_BATCH, BATCH))
    found = _replicate(run, key, state, x, -(-num_replicates // size), size)
    moments = {}
    for name in blocks(run.problem, state.params):  # in the guide's order
        leaves = found[name]
        means, variance, fourth, distances = (np.asarray(leaf, np.float64) for leaf in leaves)
        spread = np.sqrt(np.maximum(fourth - variance**2, 0) / distances.size)
        moments[name] = Replicates(means.mean(axis=0), variance, spread, distances.ravel(), means)
    return moments


@functools.partial(jax.jit, static_argnames=("run", "num_batches", "size"))
def _replicate(
    run: Run, key: Key, state: FitState, x: Data, num_batches: int, size: int
) -> dict[str, tuple[Array, ...]]:
    """By block: batches' means, variance, fourth central moment, squared distances."""

    def gradient(key: Key) -> dict[str, Array]:
        return blocks(run.problem, run.gradient(key, state, x)[0])

    def moments(g: Array) -> tuple[Array, ...]:
        mean = jnp.mean(g, axis=0)
        deviations = g - mean[None]
        correction = size / (size - 1)
        distances = correction * jnp.sum(deviations**2, axis=1)
        variance = correction * jnp.mean(deviations**2, axis=0)
        return mean, variance, jnp.mean(deviations**4, axis=0), distances

    def batch(sums: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        gradients = jax.vmap(gradient)(jax.random.split(key, size))
        found = {name: moments(g) for name, g in gradients.items()}
        added = {name: (sums[name][0] + f[1], sums[name][1] + f[2]) for name, f in found.items()}
        return added, {name: (f[0], f[3]) for name, f in found.items()}

    keys = jax.random.split(key, num_batches)
    zeros = {
        name: (jnp.zeros_like(leaf), jnp.zeros_like(leaf))
        for name, leaf in blocks(run.problem, state.params).items()
    }
    sums, stacked = jax.lax.scan(batch, zeros, keys)
    return {
        name: (means, sums[name][0] / num_batches, sums[name][1] / num_batches, distances)
        for name, (means, distances) in stacked.items()
    }


def joined(parts: dict[str, Replicates]) -> Replicates:
    """All blocks as one."""
    every = list(parts.values())
    return Replicates(
        np.concatenate([part.mean for part in every]),
        np.concatenate([part.variance for part in every]),
        np.concatenate([part.variance_error for part in every]),
        np.sum([part.distances for part in every], axis=0),
        np.concatenate([part.batch_means for part in every], axis=1),
    )


def rounds(
    runs: dict[str, tuple[Run, FitState]], x: Data, num_steps: int, num_rounds: int
) -> dict[str, list[float]]:
    """Seconds per gradient, one after another as in a run, in interleaved rounds.

    Args:
      runs: what to time, each with its state.
      x: data.
      num_steps: gradients in a round.
      num_rounds: that count; one before them, which compiles, does not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(num_rounds + 1):
        for name, (run, state) in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(_march(run, jax.random.key(number), state, x, num_steps))
            if number:
                seconds[name].append((time.perf_counter() - began) / num_steps)
    return seconds


@functools.partial(jax.jit, static_argnames=("run", "num_steps"))
def _march(run: Run, key: Key, state: FitState, x: Data, num_steps: int) -> Any:
    def step(carry: tuple[FitState, PyTree], key: Key) -> tuple[Any, None]:
        state, sums = carry
        grads, state = run.gradient(key, state, x)
        return (state, jax.tree.map(jnp.add, sums, grads)), None

    sums = jax.tree.map(jnp.zeros_like, state.params)
    return jax.lax.scan(step, (state, sums), jax.random.split(key, num_steps))[0][1]
