"""What can be said of a fit from draws of q, their weights, and a few steps more."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._tree import entry_name, named_leaves
from bbvi._types import Data, Key, Latents, Params, PyTree
from bbvi.diagnostics import (
    MomentCorrections,
    MonteCarlo,
    moment_corrections,
    monte_carlo_mean,
    psis_khat,
    smoothed_weights,
)
from bbvi.infer.chunk import chunk_shape, run_chunk
from bbvi.infer.compiling import jit
from bbvi.infer.loader import Loader
from bbvi.infer.step import Algorithm, FitState
from bbvi.problem import Problem
from bbvi.refinement import free_point, free_problem

if TYPE_CHECKING:
    from bbvi.infer.result import FitResult

NUM_DRAWS = 4096  # with 1000 draws the k-hat of too narrow a guide often passes for a good one
GROUP = 64  # draws at a time, and as many groups: the latter is how many gradients are taken
MAX_ENTRIES = 1 << 23  # of draws that are compared with their weighted moments, on the host
# With minibatches: about as many rows as the data have, and k-hats of some of them.
MIN_BATCHES, MAX_BATCHES = 16, 256
NUM_ROWS, ROW_DRAWS = 32, 1000
MIN_MOVE = 100  # steps more, or a hundredth of those taken


class Worst(NamedTuple):
    """The scalar latent of which something is largest, and how large it is there."""

    latent: str
    value: float
    error: float = 0.0


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """What a result's verdict is made of. ``None`` stands for what is not known.

    Estimates are from the same 4096 draws of q.

    Attributes:
      level: ``good``, ``resample`` (usable through ``FitResult.resample``), ``do not trust``, or
        ``unchecked``: with minibatches too little can be computed to say more.
      reasons: why not better, in words.
      advice: what to call next.
      elbo: the ELBO; of all data, by random batches, after a fit with minibatches.
      khat: shape of the tail of the importance weights. It is noise where they hardly vary.
      effective_sample_size: how many draws of the posterior those of q are worth.
      num_draws: how many they are.
      num_bad: at how many of them log p - log q is not finite.
      divergence: KL(q || posterior) in nats, as the weights have it: a lower bound where they miss
        part of the posterior.
      corrections: what Pareto-smoothed weights change in mean and deviation of every latent, a
        pytree like z of ``MomentCorrections``.
      movement: how far the posterior means of every latent moved in ``num_moves`` steps more, in
        standard deviations; a pytree like z. What the noise of the optimizer leaves in them.
      num_moves: how many steps those were.
      gradient_snr: signal-to-noise ratio of the gradient at the end, norm of the mean over root of
        the trace of the covariance, for normal sites in units of q. Far below 1 at an optimum.
      resolution: the latent whose floats are rounded most, and by how many of its deviations.
      note: what k-hats are of, or why there is none.

    Example:
      >>> import bbvi
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal()})
      >>> result = bbvi.fit(lambda x, z: -0.5 * (z["mu"] - x) ** 2, guide, 1.5, progress=False)
      >>> result.diagnostics.level
      'good'

    References:
      Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational
      Inference; Welandawe, Andersen, Vehtari and Huggins (2022), Robust, Automated, and Accurate
      Black-box Variational Inference.
    """

    level: str = "unchecked"
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    elbo: MonteCarlo | None = None
    khat: float | None = None
    effective_sample_size: float | None = None
    num_draws: int = NUM_DRAWS
    num_bad: int = 0
    divergence: float | None = None
    corrections: PyTree = None
    movement: PyTree = None
    num_moves: int = 0
    gradient_snr: float | None = None
    resolution: Worst | None = None
    note: str = ""

    @property
    def mean_correction(self) -> Worst | None:
        """The latent whose mean the weights move most, and by how many deviations."""
        return self._worst(lambda found: (found.mean, found.mean_error))

    @property
    def sd_correction(self) -> Worst | None:
        """The latent whose deviation the weights change most, and the log of its factor."""
        return self._worst(lambda found: (found.log_sd, found.log_sd_error))

    @property
    def largest_movement(self) -> Worst | None:
        """The latent whose mean moved furthest, and by how many deviations."""
        if self.movement is None:
            return None
        return _largest({n: (leaf,) for n, leaf in named_leaves(self.movement, "latents").items()})

    def _worst(self, pick: Any) -> Worst | None:
        if self.corrections is None:
            return None
        is_leaf = lambda node: isinstance(node, MomentCorrections)  # noqa: E731
        leaves = named_leaves(self.corrections, "latents", is_leaf)
        return _largest({name: pick(found) for name, found in leaves.items()})


def _largest(leaves: dict[str, Any]) -> Worst:
    """Of arrays (and their errors) by latent, the largest entry in absolute value."""
    name, parts = max(leaves.items(), key=lambda item: np.max(np.abs(item[1][0]), initial=0.0))
    where = np.unravel_index(np.argmax(np.abs(parts[0])), np.shape(parts[0]))
    return Worst(entry_name(name, where), *(float(part[where]) for part in parts))


def measure(result: FitResult) -> Diagnostics:
    """All that is measured; ``bbvi.infer.verdict`` judges it."""
    if result.batching is not None:
        return _measure_batches(result)
    num_entries = NUM_DRAWS * sum(
        math.prod(leaf.shape)
        for leaf in jax.tree.leaves(result.problem.draw_shapes(result.params, result.x))
    )
    has_draws = num_entries <= MAX_ENTRIES
    moved, num_moves = _more_steps(result) if has_draws else (None, 0)
    # Threefry is half of what would be compiled here; guides of one's own may rest on it.
    is_uniform = None not in result.problem.guide.noise_sizes().values()
    key = jax.random.key(0, impl="rbg" if is_uniform else None)
    found = _evaluate(
        result.problem, result.algorithm, key, result.state, moved, result.x, has_draws=has_draws
    )
    weights, z, shifts, snr = jax.tree.map(np.asarray, found)
    bad = int(np.sum(~np.isfinite(weights)))
    snr = None if result.algorithm is None else float(snr)
    measured = Diagnostics(num_bad=bad, gradient_snr=snr)
    if moved is not None:
        movement = jax.tree.map(_relative, shifts, z)
        measured = dataclasses.replace(measured, movement=movement, num_moves=num_moves)
    if bad:
        return measured
    smoothed = smoothed_weights(weights)
    size = 1 / float(np.sum(smoothed.probabilities**2))
    elbo = monte_carlo_mean(weights)
    mean_weight = np.mean(np.exp(weights.astype(np.float64) - weights.max()))
    measured = dataclasses.replace(
        measured,
        elbo=elbo,
        khat=smoothed.khat,
        effective_sample_size=size,
        divergence=max(0.0, float(weights.max() + np.log(mean_weight) - elbo.value)),
    )
    if not has_draws:
        return measured
    corrections = jax.tree.map(lambda leaf: moment_corrections(leaf, smoothed.probabilities), z)
    return dataclasses.replace(measured, corrections=corrections, resolution=_resolution(z))


def _relative(shift: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Shifts of a mean, by group, in deviations of the draws."""
    sd = draws.astype(np.float64).std(axis=0)
    return np.abs(shift.mean(axis=0)) / np.maximum(sd, np.finfo(np.float32).tiny)


def _resolution(z: Latents) -> Worst | None:
    """The latent whose floats are rounded most, in its deviations."""
    ratios = {}
    for name, leaf in named_leaves(z, "latents").items():
        if np.issubdtype(leaf.dtype, np.floating):
            draws = leaf.astype(np.float64)
            sd = np.maximum(draws.std(axis=0), np.finfo(np.float32).tiny)
            ratios[name] = (np.abs(draws.mean(axis=0)) / sd * np.finfo(leaf.dtype).eps,)
    return _largest(ratios) if ratios else None


def _more_steps(result: FitResult) -> tuple[Params | None, int]:
    """Parameters after a few steps more by the run's own program, which is compiled already."""
    algorithm, restarts = result.algorithm, result.restarts
    if algorithm is None or result.status in ("nonfinite", "failed"):
        return None, 0
    length = math.prod(chunk_shape(algorithm, result.state, result.x))
    count = min(max(MIN_MOVE, len(result.history.loss) // 100), length)
    state = result.state if restarts is None else restarts.states
    with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
        state, is_finite, _ = run_chunk(
            algorithm,
            state,
            result.x,
            count,
            is_batched=restarts is not None,
            is_guarded=False,
        )
    params, finite = state.params, np.asarray(is_finite)
    if restarts is not None:
        params = jax.tree.map(lambda leaf: leaf[restarts.best], params)
        finite = finite[restarts.best]
    return (params, count) if finite else (None, 0)


@jit("problem", "algorithm", "has_draws")
def _evaluate(
    problem: Problem,
    algorithm: Algorithm | None,
    key: Key,
    state: FitState,
    moved: Params | None,
    x: Data,
    *,
    has_draws: bool,
) -> tuple[Array, Latents, Latents, Array]:
    """Log weights ``[S]``, draws, shifts of their means by group, and the gradient's SNR."""
    free, point = free_problem(problem), free_point(problem, state.params, x)
    there = None if moved is None else free_point(problem, moved, x)

    def gradient(key: Key) -> PyTree:
        if algorithm is None:
            return ()
        noise = algorithm.resolve(state.params, x).draw(key, algorithm.free)
        grads, guide = algorithm.estimate(state, x, noise)[0].grads, algorithm.problem.guide
        if not guide.has_natural_gradient:
            return grads
        return guide.local_gradient(state.params.guide, grads.guide), grads.model

    def group(sums: Any, key: Key) -> tuple[Any, Any]:
        draw_key, step_key = jax.random.split(key)
        noise = free.base_noise(draw_key, GROUP)
        z, log_q = free.sample_and_log_q(noise, point, x)
        weights = free.log_p(point, x, z) - log_q
        shift: Latents = ()
        if there is not None:
            other = free.sample(noise, there, x)
            shift = jax.tree.map(lambda a, b: jnp.mean(b.astype(float) - a, axis=0), z, other)
        grads = gradient(step_key)
        square = sum((jnp.vdot(g, g) for g in jax.tree.leaves(grads)), jnp.zeros(()))
        sums = jax.tree.map(jnp.add, sums, (grads, square))
        return sums, (weights, z if has_draws else (), shift)

    like = jax.eval_shape(lambda: (gradient(key), jnp.zeros(())))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    num_groups = NUM_DRAWS // GROUP
    (total, square), (weights, z, shift) = jax.lax.scan(
        group, zeros, jax.random.split(key, num_groups)
    )
    of_mean = sum((jnp.vdot(g, g) for g in jax.tree.leaves(total)), jnp.zeros(())) / num_groups**2
    trace = (square - num_groups * of_mean) / (num_groups - 1)
    signal = jnp.maximum(of_mean - trace / num_groups, 0.0)
    snr = jnp.where(trace > 0, jnp.sqrt(signal / jnp.where(trace > 0, trace, 1.0)), 0.0)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (weights, z))
    return *flat, shift, snr


def _measure_batches(result: FitResult) -> Diagnostics:
    batching = result.batching
    assert batching is not None
    num_draws = min(MAX_BATCHES, max(MIN_BATCHES, batching.steps_per_epoch))
    measured = Diagnostics(num_draws=num_draws)
    try:
        weights = result.log_weights(jax.random.key(0), num_draws)
    except Exception as error:
        if not isinstance(result.x, Loader):
            raise
        return dataclasses.replace(measured, note=str(error))  # it may have no more batches
    bad = int(np.sum(~np.isfinite(weights)))
    if bad:
        return dataclasses.replace(measured, num_bad=bad)
    khat, note = _khat_of_rows(result)
    return dataclasses.replace(measured, elbo=monte_carlo_mean(weights), khat=khat, note=note)


def _khat_of_rows(result: FitResult) -> tuple[float | None, str]:
    """The median k-hat of some rows, and what there is to say about them."""
    batching = result.batching
    assert batching is not None
    if not all(site.is_local for site in result.problem.guide.sites()):
        return None, "not known from minibatches where the data share latents"
    if isinstance(result.x, Loader):
        return None, "not known from a loader; ask result.at(x) for some rows"
    keys = jax.random.split(jax.random.key(1))
    num_rows = min(NUM_ROWS, batching.num_data)
    rows = jax.random.choice(keys[0], batching.num_data, (num_rows,), replace=False)
    few = result.at(batching.map_rows(lambda leaf: leaf[np.asarray(rows)], result.x), rows=rows)
    by_datum = np.asarray(few.component_log_weights(keys[1], ROW_DRAWS))
    if by_datum.shape[1] != num_rows or not np.isfinite(by_datum).all():
        return None, "not known: the data do not have log weights of their own"
    khats = [psis_khat(jnp.asarray(column)) for column in by_datum.T]
    good = np.mean(np.array(khats) < 0.7)
    return float(np.median(khats)), (
        f"in the median of {num_rows} random data; below 0.7, where the guide covers the "
        f"posterior, in {good:.0%}"
    )
