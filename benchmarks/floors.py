"""Hand-written fused loops: what a careful user would write for one problem, and nothing more.

They check nothing, guard nothing and serve no one while they run. Each method gives ``init() ->
params``, ``draw(key) -> noise`` of one step, and ``gradient(params, noise, x) -> (loss, grads)``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from benchmarks.problems import LEARNING_RATE, Problem

BLOCK_ENTRIES = 1 << 17  # base noise is drawn for a block of steps at once
MAX_BLOCK = 1000
HALF_LOG_2PI_E = 0.5 * math.log(2.0 * math.pi * math.e)


class Method(NamedTuple):
    init: Callable[[], Any]
    draw: Callable[[Array], Any]
    gradient: Callable[[Any, Any, Any], tuple[Array, Any]]


def prepare(problem: Problem, x: Any) -> Callable[[int, int], np.ndarray]:
    """``run(num_steps, seed) -> losses`` from a fresh start."""
    method = _method(problem)
    optimizer = optax.adam(LEARNING_RATE)

    def step(state: Any, noise: Any, x: Any) -> tuple[Any, Array]:
        params, opt_state = state
        loss, grads = method.gradient(params, noise, x)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def start(_: Array) -> Any:
        params = method.init()
        return params, optimizer.init(params)

    draw = method.draw
    if problem.restarts > 1:
        step, start = jax.vmap(step, (0, 0, None)), jax.vmap(start)
        draw = _draw_all(method.draw, problem.restarts)

    noise = jax.eval_shape(draw, jax.random.key(0))
    block = BLOCK_ENTRIES // sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(noise))
    block = max(1, min(MAX_BLOCK, block))

    def loop(key: Array, x: Any, num_blocks: int, num_steps: Array) -> Array:
        def take(state: Any, inputs: Any) -> tuple[Any, Array]:
            index, noise = inputs
            blank = jnp.zeros((problem.restarts,) if problem.restarts > 1 else ())
            # On CPU a small step compiles into a tighter program inside a branch.
            return lax.cond(
                index < num_steps, lambda s: step(s, noise, x), lambda s: (s, blank), state
            )

        def run_block(state: Any, index: Array) -> tuple[Any, Array]:
            keys = jax.random.split(jax.random.fold_in(key, index), block)
            steps = index * block + jnp.arange(block)
            return lax.scan(take, state, (steps, jax.vmap(draw)(keys)))

        state = start(jnp.arange(problem.restarts)) if problem.restarts > 1 else start(key)
        _, losses = lax.scan(run_block, state, jnp.arange(num_blocks))
        return losses.reshape(-1, *losses.shape[2:])

    compiled = jax.jit(loop, static_argnums=2)

    def run(num_steps: int, seed: int) -> np.ndarray:
        losses = compiled(jax.random.key(seed), x, -(-num_steps // block), num_steps)
        return np.asarray(losses)[:num_steps]

    return run


def _draw_all(draw: Callable[[Array], Any], restarts: int) -> Callable[[Array], Any]:
    return lambda key: jax.vmap(draw)(jax.random.split(key, restarts))


def _method(problem: Problem) -> Method:
    if problem.estimator == "score_function":
        return _score_function(problem)
    return _full_rank(problem) if problem.family == "full_rank" else _mean_field(problem)


def _mean_target(problem: Problem, x: Any, u: Array) -> Array:
    """Mean log density of draws ``[S, D]``; a single draw is faster without a batch axis."""
    if problem.num_samples == 1:
        return problem.target(x, u[0])
    return jnp.mean(jax.vmap(lambda u: problem.target(x, u))(u))


def _normal(problem: Problem) -> Callable[[Array], Array]:
    return lambda key: jax.random.normal(key, (problem.num_samples, problem.dim))


def _mean_field(problem: Problem) -> Method:
    dim = problem.dim

    def init() -> Array:  # locations and log scales in one vector
        return jnp.concatenate([jnp.zeros(dim), jnp.full(dim, math.log(0.1))])

    def loss(params: Array, noise: Any, x: Any) -> Array:
        loc, log_scale = params[:dim], params[dim:]
        if problem.batch is not None:
            noise, rows = noise
            weight = len(x["signs"]) / problem.batch
            x = jax.tree.map(lambda leaf: leaf[rows], x) | {"weight": weight}
        u = loc + jnp.exp(log_scale) * noise
        return -(_mean_target(problem, x, u) + jnp.sum(log_scale) + dim * HALF_LOG_2PI_E)

    draw = _normal(problem)
    if problem.batch is not None:
        num_rows = len(problem.data()["signs"])

        def draw(key: Array) -> tuple[Array, Array]:
            noise_key, row_key = jax.random.split(key)
            rows = jax.random.randint(row_key, (problem.batch,), 0, num_rows)
            return _normal(problem)(noise_key), rows

    return Method(init, draw, jax.value_and_grad(loss))


@jax.custom_vjp
def _lower(matrix: Array) -> Array:
    """A matrix that starts strictly lower triangular and stays so: only its gradient is masked."""
    return matrix


_lower.defvjp(lambda matrix: (matrix, None), lambda _, grad: (jnp.tril(grad, -1),))


def _full_rank(problem: Problem) -> Method:
    dim = problem.dim

    def init() -> dict[str, Array]:
        log_diag = jnp.full(dim, math.log(0.1))
        return {"loc": jnp.zeros(dim), "log_diag": log_diag, "lower": jnp.zeros((dim, dim))}

    def loss(params: dict[str, Array], noise: Array, x: Any) -> Array:
        u = params["loc"] + noise @ _lower(params["lower"]).T + jnp.exp(params["log_diag"]) * noise
        entropy = jnp.sum(params["log_diag"]) + dim * HALF_LOG_2PI_E
        return -(_mean_target(problem, x, u) + entropy)

    return Method(init, _normal(problem), jax.value_and_grad(loss))


def _score_function(problem: Problem) -> Method:
    """Leave-one-out: the score is written by hand, so log_joint is never differentiated."""
    dim, num = problem.dim, problem.num_samples

    def gradient(params: Array, noise: Array, x: Any) -> tuple[Array, Array]:
        loc, log_scale = params[:dim], params[dim:]
        scale = jnp.exp(log_scale)
        u = loc + scale * noise
        log_p = jax.vmap(lambda u: problem.target(x, u))(u)
        log_q = -0.5 * jnp.sum(noise * noise, axis=1) - jnp.sum(log_scale)
        signal = log_p - log_q + 0.5 * dim * math.log(2.0 * math.pi)
        weights = (signal - jnp.mean(signal)) / (num - 1)
        grad_loc = weights @ noise / scale
        grad_log_scale = weights @ (noise * noise - 1.0)
        return -jnp.mean(signal), -jnp.concatenate([grad_loc, grad_log_scale])

    return Method(_mean_field(problem).init, _normal(problem), gradient)
