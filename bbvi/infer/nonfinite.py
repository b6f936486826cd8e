"""Why a step was not finite: looked into only after it happened."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._tree import is_floating, named_leaves
from bbvi._types import Data, Params, PyTree
from bbvi.estimators import Estimate
from bbvi.infer.step import Algorithm, FitState
from bbvi.refinement import free_point


@functools.partial(jax.jit, static_argnames=("algorithm",))
def _replay(
    algorithm: Algorithm, state: FitState, x: Data
) -> tuple[Data, Estimate, PyTree, Array, Array]:
    """The failing step again: data, estimate, draws ``[64, ...]``, log p and log q there."""
    noise = algorithm.draw(state, state.step, x)
    state, x, _ = algorithm.view(state, x)
    estimate, _ = algorithm.estimate(state, x, noise)
    problem, params = algorithm.free, free_point(algorithm.problem, state.params, x)
    z = problem.sample(problem.base_noise(jax.random.fold_in(state.key, state.step), 64), params, x)
    return x, estimate, z, problem.log_p(params, x, z), problem.log_q(params, x, z)


def explain_nonfinite(algorithm: Algorithm, state: FitState, x: Data) -> str:
    """A message naming the step, the quantity, the data or latents involved, and what to try."""
    # The failing step is repeated with its own key.
    with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
        x, estimate, z, log_p, log_q = _replay(algorithm, state, x)
    head = f"step {int(state.step)}: the loss is {float(estimate.loss)}"
    gradients = [
        name
        for name, leaf in named_leaves(_by_latent(algorithm, estimate.grads), "params").items()
        if not np.isfinite(np.asarray(leaf)).all()
    ]
    if gradients:
        head += f", and the gradient is not finite in {', '.join(gradients)}"
    return f"{head}. {_cause(x, z, np.asarray(log_p), np.asarray(log_q), list(gradients))}"


def _by_latent(algorithm: Algorithm, grads: Params) -> Any:
    """The gradient under the names of the guide's sites."""
    return {"guide": algorithm.problem.guide.site_params(grads.guide), "model": grads.model}


def _cause(x: Data, z: PyTree, log_p: np.ndarray, log_q: np.ndarray, gradients: list[str]) -> str:
    for name, leaf in named_leaves(x, "x").items():
        bad = int(jnp.sum(~jnp.isfinite(leaf))) if is_floating(leaf) else 0
        if bad and not np.isfinite(log_p).all():
            return (
                f"data '{name}' holds {bad} entries that are NaN or infinite; remove them, or "
                "replace them and mask their terms in log_joint."
            )
    drawn = named_leaves(z, "latents")
    broken = [n for n, leaf in drawn.items() if not np.isfinite(np.asarray(leaf)).all()]
    if broken:
        return (
            f"draws of latent {', '.join(map(repr, broken))} are not finite: its parameters have "
            "run away; lower the learning rate or use a bounded support. If the posterior is "
            "improper, flat or rising for ever in that direction, it needs a prior."
        )
    narrow = [n for n, leaf in drawn.items() if is_floating(leaf) and _has_collapsed(leaf)]
    if narrow:
        return (
            f"the guide has collapsed to a point in latent {', '.join(map(repr, narrow))}: "
            "log_joint has no bound there, and needs a prior that keeps it from that point."
        )
    wrong = ~np.isfinite(log_p)
    if wrong.any():
        where = ", ".join(
            f"'{n}' in [{np.asarray(leaf)[wrong].min():.3g}, {np.asarray(leaf)[wrong].max():.3g}]"
            for n, leaf in drawn.items()
        )
        if np.isneginf(log_p[wrong]).all():
            return (
                f"log_joint is -inf at {wrong.sum()} of {wrong.size} draws of the guide, which "
                f"therefore reaches outside the model's support; there {where}. Give the latent "
                "its support, for example bbvi.Normal((), support=bbvi.supports.positive)."
            )
        return (
            f"log_joint is {log_p[wrong][0]} at {wrong.sum()} of {wrong.size} draws; there {where}."
        )
    if not np.isfinite(log_q).all():
        return "the guide's own log density is not finite: its scale has collapsed or run away."
    if gradients:
        return (
            "log_joint is finite at these draws but its derivative is not: look for sqrt, log or "
            "a division at zero, also inside an unused branch of jnp.where."
        )
    return "log_joint overflowed at a rare draw; lower the learning rate."


def _has_collapsed(draws: Array) -> bool:
    """Whether some entry of draws ``[S, ...]`` varies so little that its variance underflows."""
    deviation = np.asarray(draws, np.float64).std(axis=0)
    return bool(np.any(deviation < math.sqrt(float(jnp.finfo(draws.dtype).tiny))))
