"""Why a step was not finite: looked into only after it happened."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._tree import is_floating, named_leaves
from bbvi._types import Data, Latents, Params, PyTree
from bbvi.dependence.failing import Failure, find_failure
from bbvi.dependence.origin import Origin
from bbvi.estimators import Estimate
from bbvi.infer.causes import (
    TOO_LARGE,
    Cause,
    cause_of_gradient,
    cause_of_value,
    support_of,
    takes_constant,
)
from bbvi.infer.placement import gathered
from bbvi.infer.step import Algorithm, FitState
from bbvi.problem import Problem
from bbvi.refinement import free_point

BATCH = 64
# So many batches of draws are searched for one like that of the step, beside its own.
MAX_BATCHES = 32


@functools.partial(jax.jit, static_argnames=("algorithm",))
def _replay(
    algorithm: Algorithm, state: FitState, x: Data
) -> tuple[Data, Params, Estimate, PyTree]:
    """The failing step again: its data, the point it was taken at, estimate and noise."""
    noise = algorithm.draw(state, state.step, x)
    state, x, _ = algorithm.view(state, x)
    estimate, _ = algorithm.estimate(state, x, noise)
    return x, free_point(algorithm.problem, state.params, x), estimate, noise


@functools.partial(jax.jit, static_argnames=("problem",))
def _densities(
    problem: Problem, noise: PyTree, params: Params, x: Data
) -> tuple[Latents, Array, Array]:
    """Draws, log p and log q."""
    z = problem.sample(noise, params, x)
    return z, problem.log_p(params, x, z), problem.log_q(params, x, z)


@functools.partial(jax.jit, static_argnames=("problem",))
def _have_derivatives(problem: Problem, params: Params, x: Data, z: Latents) -> Array:
    """At which draws the log joint's derivative is finite."""

    def is_finite(draw: Latents) -> Array:
        def value(draw: Latents, args: tuple[PyTree, ...]) -> Array:
            return problem.log_joint(x, draw, *args)

        grad = jax.grad(value, argnums=(0, 1), allow_int=True)
        leaves = jax.tree.leaves(grad(draw, problem.model_args(params)))
        real = [leaf for leaf in leaves if leaf.dtype != jax.dtypes.float0]
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in real]).all()

    return jax.vmap(is_finite)(z)


def explain_nonfinite(algorithm: Algorithm, state: FitState, x: Data) -> str:
    """A message naming the step, the term, the values there, the cause and what to try."""
    # The failing step is repeated with its own key.
    with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
        x, params, estimate, noise = gathered(_replay(algorithm, state, x))
        head = f"step {int(state.step)}: the loss is {float(estimate.loss):.6g}"
        gradients = list(_not_finite(_by_latent(algorithm, estimate.grads), "params"))
        if gradients:
            head += f", and the gradient is not finite in {', '.join(gradients)}"
        lines = _search(algorithm.free, state, params, x, noise)
    return "\n".join([f"{head}.", *(f"  {name:<6} {text}" for name, text in lines)])


def _by_latent(algorithm: Algorithm, grads: Params) -> Any:
    """The gradient under the names of the guide's sites."""
    return {"guide": algorithm.problem.guide.site_params(grads.guide), "model": grads.model}


def _not_finite(tree: PyTree, root: str) -> dict[str, int]:
    """Names of the leaves that hold NaN or infinity, and how many."""
    counts = {
        name: int(jnp.sum(~jnp.isfinite(leaf)))
        for name, leaf in named_leaves(tree, root).items()
        if is_floating(jnp.asarray(leaf))
    }
    return {name: count for name, count in counts.items() if count}


def _search(
    problem: Problem, state: FitState, params: Params, x: Data, noise: PyTree
) -> list[tuple[str, str]]:
    """What went wrong, by name: the draws of the step first, then others of the guide."""
    parts = _not_finite({"guide": problem.guide.site_params(params.guide)}, "params")
    if parts:
        return _told("", Cause(f"Parameters {', '.join(parts)} are not finite.", TOO_LARGE))
    key = jax.random.fold_in(state.key, state.step)
    others = (problem.base_noise(jax.random.fold_in(key, i), BATCH) for i in range(MAX_BATCHES))
    own = [noise] if _is_like(noise, problem) else []
    for number, batch in enumerate(itertools.chain(own, others)):
        z, log_p, log_q = _densities(problem, batch, params, x)
        where = "the step" if own and not number else "the guide"
        found = _about(problem, params, x, z, np.asarray(log_p), np.asarray(log_q), where)
        if found:
            return found
    return _told("", Cause("log_joint overflowed at a rare draw, not met again.", TOO_LARGE))


def _is_like(noise: PyTree, problem: Problem) -> bool:
    """Whether an estimator's noise is that of draws from the guide."""
    wanted = jax.eval_shape(lambda: problem.base_noise(jax.random.key(0), 1))
    same: Any = jax.tree.structure(wanted)
    if jax.tree.structure(noise) != same:
        return False
    pairs = zip(jax.tree.leaves(noise), jax.tree.leaves(wanted), strict=True)
    return all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in pairs)


def _about(
    problem: Problem,
    params: Params,
    x: Data,
    z: Latents,
    log_p: np.ndarray,
    log_q: np.ndarray,
    where: str,
) -> list[tuple[str, str]]:
    """What is not finite at these draws; nothing if all is."""
    draws = f"{log_p.size} draws of {where}"
    runaway = _not_finite(z, "latents")
    if runaway:
        names = ", ".join(map(repr, runaway))
        reason = f"Draws of latent {names} are not finite: its parameters have run away."
        remedy = (
            "Lower the learning rate or use a bounded support. If the posterior is improper, flat "
            "or rising for ever in that direction, it needs a prior."
        )
        return _told(draws, Cause(reason, remedy))
    drawn = named_leaves(z, "latents")
    narrow = [name for name, leaf in drawn.items() if is_floating(leaf) and _has_collapsed(leaf)]
    if narrow:
        names = ", ".join(map(repr, narrow))
        reason = f"The guide has collapsed to a point in latent {names}: log_joint has no bound."
        return _told(draws, Cause(reason, "Give it a prior that keeps it from that point."))
    wrong = ~np.isfinite(log_p)
    if wrong.any():
        head = f"log_joint is {log_p[wrong][0]} at {wrong.sum()} of {draws}"
        return _failure(problem, params, x, z, wrong, head, of_gradient=False)
    if not np.isfinite(log_q).all():
        at = int(np.argmin(np.isfinite(log_q)))
        draw = jax.tree.map(lambda leaf: leaf[at], z)
        sites = _not_finite(problem.guide.site_log_probs(params.guide, x, draw), "site")
        reason = f"The guide's own log density of {', '.join(map(repr, sites))} is not finite: "
        remedy = "Lower the learning rate, or start from guide.params_at(z, scale)."
        return _told(draws, Cause(reason + "its scale has collapsed or run away.", remedy))
    try:
        wrong = ~np.asarray(_have_derivatives(problem, params, x, z))
    except (TypeError, ValueError, NotImplementedError):
        return []  # log_joint has no derivative, so that none was asked for
    if not wrong.any():
        return []
    head = f"log_joint is finite, its derivative is not at {wrong.sum()} of {draws}"
    return _failure(problem, params, x, z, wrong, head, of_gradient=True)


def _has_collapsed(draws: Array) -> bool:
    """Whether some entry of draws ``[S, ...]`` varies so little that its variance underflows."""
    deviation = np.asarray(draws, np.float64).std(axis=0)
    smallest = math.sqrt(float(jnp.finfo(draws.dtype).tiny))
    return len(draws) > 1 and bool(np.any(deviation < smallest))


def _failure(
    problem: Problem,
    params: Params,
    x: Data,
    z: Latents,
    wrong: np.ndarray,
    head: str,
    *,
    of_gradient: bool,
) -> list[tuple[str, str]]:
    """The term and the operation that fail at the first of the wrong draws."""
    draw = jax.tree.map(lambda leaf: leaf[int(np.argmax(wrong))], z)
    args = problem.model_args(params)
    try:
        failure = find_failure(problem.log_joint, x, draw, *args, of_gradient=of_gradient)
    except Exception:  # of any kind: the search must not hide what it is about
        failure = None
    if failure is None or failure.origin is None:
        names = list(named_leaves(draw, "latents"))
        ranges = ", ".join(
            f"{name} in [{np.min(leaf):.6g}, {np.max(leaf):.6g}]"
            for name, leaf in named_leaves(draw, "latents").items()
        )
        cause = Cause("The operation was not found.", support_of(names))
        return [("draws", head), ("there", ranges), *_told("", cause)]
    if of_gradient:
        cause = cause_of_gradient(failure.origin)
    else:
        cause = cause_of_value(failure.origin, failure.latents)
        data = _not_finite(x, "x")
        # Entries of the data that log_joint masks are not to blame.
        if data and takes_constant(failure.origin):
            name, bad = next(iter(data.items()))
            reason = f"Data '{name}' holds {bad} entries that are NaN or infinite."
            cause = Cause(reason, "Remove them, or replace them and mask their terms in log_joint.")
    return [("draws", head), *_place(failure, failure.origin), *_told("", cause)]


def _place(failure: Failure, origin: Origin) -> list[tuple[str, str]]:
    """Term, what it reads, and the operation, with values."""
    lines = []
    if failure.term:
        bad = f" ({failure.num_bad} entries are not finite)" if failure.num_bad > 1 else ""
        lines += [("term", f"{failure.term}, is {failure.value:.6g}{bad}")]
        lines += [("reads", ", ".join(failure.reads) or "no latent")]
    given = ", ".join(_operand(origin, k) for k in range(len(origin.operands)))
    line = f" at {origin.line}" if origin.line else ""
    return [*lines, ("where", f"{origin.primitive}({given}){line}")]


def _operand(origin: Origin, number: int) -> str:
    """The entry of an operand that counts, or the range of its entries."""
    entry, array = origin.at(number), origin.operands[number]
    if entry is not None:
        return f"{entry:.6g}"
    if not array.size:
        return "nothing"
    return f"{array.dtype}{list(array.shape)} in [{array.min():.6g}, {array.max():.6g}]"


def _told(draws: str, cause: Cause) -> list[tuple[str, str]]:
    lines = [("draws", draws)] if draws else []
    return [*lines, ("cause", cause.reason), ("try", cause.remedy)]
