"""Many steps as one compiled program."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._types import Data, Key, Params, PyTree
from bbvi.infer.compiling import jit
from bbvi.infer.step import Algorithm, FitState

# A chunk is compiled for at most MAX_CHUNK steps and run for any number up to that. Inside it,
# base noise is drawn for blocks of steps at once: generating random numbers dominates a small
# step, and one large call is far cheaper than many small ones.
MAX_CHUNK = 10_000
MAX_BLOCK = 1000
BLOCK_ENTRIES = 1 << 17
RECORD_ENTRIES = 1 << 24


@functools.partial(jax.jit, static_argnames=("algorithm", "is_batched"))
def start(algorithm: Algorithm, key: Key, x: Data, params: Params, *, is_batched: bool) -> FitState:
    """State before the first step; with restarts, keys and parameters have a leading axis."""
    init = functools.partial(algorithm.init, x=x)
    return jax.vmap(init)(key, params=params) if is_batched else init(key, params=params)


@jit("algorithm", "is_batched", "is_guarded")
def run_chunk(
    algorithm: Algorithm,
    state: FitState,
    x: Data,
    num_steps: Array,
    *,
    is_batched: bool,
    is_guarded: bool,
) -> tuple[FitState, Array, tuple[Array, PyTree]]:
    """Run ``num_steps``, at most the product of ``chunk_shape``, as one program.

    Checking every step before applying it costs up to a quarter of a step (the gradient must be
    written out and reduced first), so a chunk first runs unguarded. Only if a loss or the final
    parameters are not finite, which every bad gradient leads to, is it run again, guarded, from
    the state it began with; that is why that state is not donated. Steps have their own keys: the
    second run repeats the first.

    Args:
      algorithm: what to run.
      state: where from.
      x: data.
      num_steps: traced, so that any number runs without compiling again.
      is_batched: whether the state has a leading axis of restarts.
      is_guarded: whether a step that is not finite leaves the state as it was; unless the policy
        is to skip it, the state then stays so for the rest of the chunk.

    Returns:
      The state; whether all losses and its parameters are finite; and per step, padded to the
      chunk's length, losses and outputs of ``trace_fn``.
    """
    run = functools.partial(_run_chunk, algorithm, x=x, num_steps=num_steps, is_guarded=is_guarded)
    return jax.vmap(run)(state) if is_batched else run(state)


@functools.partial(jax.jit, static_argnames=("algorithm", "is_batched"))
def gradient_norm(algorithm: Algorithm, state: FitState, x: Data, *, is_batched: bool) -> Array:
    """Norm of the gradient at a state, with the randomness and the batch of the step before it.

    A program of its own for those who look between chunks: within the steps it would cost each of
    them the reduction, a third of a small step.
    """

    def one(state: FitState) -> Array:
        last = state._replace(step=state.step - 1)
        return algorithm.step(last, x, algorithm.draw(last, last.step, x))[1].gradient_norm

    return jax.vmap(one)(state) if is_batched else one(state)


def _run_chunk(
    algorithm: Algorithm, state: FitState, *, x: Data, num_steps: Array, is_guarded: bool
) -> tuple[FitState, Array, tuple[Array, PyTree]]:
    first, placement = state.step, algorithm.placement
    num_blocks, block = chunk_shape(algorithm, state, x)

    def take(carry: tuple[FitState, Array], noise: PyTree) -> tuple[Any, Any]:
        state, halted = carry
        if is_guarded:
            state, info = algorithm.guarded_step(state, x, noise, halted)
            halted = halted | (~info.finite & (algorithm.nonfinite != "skip"))
        else:
            state, info = algorithm.step(state, x, noise)
        traced = () if algorithm.trace_fn is None else algorithm.trace_fn(info)
        return (algorithm.placed(state), halted), (info.loss, traced)

    def run_block(carry: Any, start: Array) -> tuple[Any, Any]:
        steps = start + jnp.arange(block)
        noise = jax.vmap(lambda i: algorithm.draw(carry[0], first + i, x))(steps)
        if placement is not None:
            noise = placement.draws(noise, algorithm.resolve(carry[0].params, x).num_samples)

        def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
            index, noise = inputs
            # Masks the steps past the end; and on CPU the step compiles into a tighter program
            # inside a branch than as a bare loop body.
            return _when(index < num_steps, take, carry, noise)

        return jax.lax.scan(body, carry, (steps, noise))

    def maybe_block(carry: Any, start: Array) -> tuple[Any, Any]:
        return _when(start < num_steps, run_block, carry, start)

    starts = block * jnp.arange(num_blocks)
    (state, _), outputs = jax.lax.scan(maybe_block, (state, jnp.zeros((), bool)), starts)
    length = num_blocks * block
    losses, traces = jax.tree.map(lambda leaf: leaf.reshape(length, *leaf.shape[2:]), outputs)
    finite = [jnp.isfinite(leaf).all() for leaf in (losses, *jax.tree.leaves(state.params))]
    read = jnp.stack(finite).all(), (losses, traces)  # by the host
    return state, *(read if placement is None else placement.everywhere(read))


def _when(condition: Array, run: Callable[..., Any], carry: Any, inputs: Any) -> tuple[Any, Any]:
    """``run(carry, inputs)`` if the condition holds, else the carry as it is and zero outputs."""
    _, outputs = jax.eval_shape(run, carry, inputs)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), outputs)
    return jax.lax.cond(condition, run, lambda carry, _: (carry, blank), carry, inputs)


def chunk_shape(algorithm: Algorithm, state: FitState, x: Data) -> tuple[int, int]:
    """Blocks per chunk and steps per block, for ONE run (no axis of restarts).

    A block's noise should stay in the processor's cache; a chunk's records in a sane memory. With
    minibatches there are no more steps than a feed has data for.
    """
    noise = _noise_shapes(algorithm, state, x)
    records = trace_shapes(algorithm, state, x)
    batching = algorithm.batching
    most = MAX_CHUNK if batching is None else min(MAX_CHUNK, batching.steps_in(x))
    block = max(1, min(most, MAX_BLOCK, BLOCK_ENTRIES // max(_entries(noise), 1)))
    block = max(1, min(block, RECORD_ENTRIES // max(_entries(records), 1)))
    num_blocks = RECORD_ENTRIES // (block * max(_entries(records), 1))
    return max(1, min(num_blocks, most // block)), block


def trace_shapes(algorithm: Algorithm, state: FitState, x: Data) -> PyTree:
    """What ``trace_fn`` records of a step of ONE run, ``()`` without one."""
    trace_fn, noise = algorithm.trace_fn, _noise_shapes(algorithm, state, x)
    if trace_fn is None:
        return ()

    def record(state: FitState, x: Data, noise: PyTree) -> PyTree:
        return trace_fn(algorithm.step(state, x, noise)[1])

    return jax.eval_shape(record, state, x, noise)


def _noise_shapes(algorithm: Algorithm, state: FitState, x: Data) -> PyTree:
    return jax.eval_shape(algorithm.draw, state, jnp.int32(0), x)


def _entries(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
