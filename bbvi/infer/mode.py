"""A starting point from a short deterministic optimisation."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bbvi._checks import check_count
from bbvi._tree import as_arrays
from bbvi._types import Data, Key, Latents, LogJoint, Params, PyTree, check_key
from bbvi.guides import MeanField, VectorGuide
from bbvi.guides.gaussian import Layout
from bbvi.problem import Problem, check_problem


def find_mode(
    log_joint: LogJoint,
    guide: MeanField | VectorGuide,
    x: Data = None,
    *,
    key: Key | None = None,
    model_params: PyTree = None,
    num_steps: int = 100,
) -> Latents:
    r"""Mode of the unconstrained posterior by L-BFGS, for a guide to start from.

    .. math:: \max_u \; \log p(x, T(u)) + \log |\det \partial T / \partial u|

    The best point met is returned, also when a later step leaves the finite numbers. A posterior
    without a mode (a centred hierarchical model, say) gives a far point: then start elsewhere.

    Args:
      log_joint: ``(x, z) -> []``, differentiable, or ``(x, z, theta) -> []``.
      guide: a guide whose sites are all normal (on any support).
      x: data.
      key: typed key of the small random start, ``jax.random.key(0)`` by default.
      model_params: theta of a learned model, held fixed.
      num_steps: L-BFGS steps.

    Returns:
      One value of the latents, for ``guide.params_at(z, scale)``.

    Raises:
      TypeError: a site of the guide is not normal.
      ValueError: ``log_joint`` does not fit the guide, or is nowhere finite on the way.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return -0.5 * ((z["w"] - 1000.0) / 50.0) ** 2
      >>> guide = bbvi.MeanField({"w": bbvi.Normal()})
      >>> z = bbvi.find_mode(log_joint, guide)
      >>> round(float(z["w"]))
      1000
      >>> result = bbvi.fit(
      ...     log_joint, guide, init_params=guide.params_at(z, 50.0), num_steps=100, progress=False
      ... )

    References:
      Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder: Parallel quasi-Newton variational
      inference.
    """
    check_count("num_steps", num_steps)
    names = tuple(guide.named_families) if isinstance(guide, MeanField | VectorGuide) else ()
    layout = guide.layout if names else Layout(())
    if not names or len(layout.sites) != len(names):
        raise TypeError(
            "find_mode needs a MeanField, FullRank, LowRank or NormalizingFlow guide whose sites "
            f"are all bbvi.Normal (on any support), got {guide!r}."
        )
    problem = Problem(log_joint, guide)
    start_key = check_key(jax.random.key(0) if key is None else key)
    params = problem.init(start_key, x, model_params)
    x = as_arrays(x)
    check_problem(problem, params, x)
    u = 0.1 * jax.random.normal(jax.random.fold_in(start_key, 1), (layout.size,))
    best, value = _minimize(problem, layout, u, params, x, num_steps)
    if not bool(jnp.isfinite(value)):
        raise ValueError(
            "log_joint is not finite anywhere on the way to its mode; start the guide from values "
            "you know with guide.params_at(z)."
        )
    return guide.pack(layout.constrain(best)[0])


@functools.partial(jax.jit, static_argnames=("problem", "layout", "num_steps"))
def _minimize(
    problem: Problem, layout: Layout, u: Array, params: Params, x: Data, num_steps: int
) -> tuple[Array, Array]:
    """The best point and its value along an L-BFGS path."""
    guide: Any = problem.guide

    def loss(u: Array) -> Array:
        values, log_det = layout.constrain(u)
        return -problem.log_joint(x, guide.pack(values), *problem.model_args(params)) - log_det

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        u, state, best, best_value = carry
        value, grad = value_and_grad(u, state=state)
        is_better = value < best_value  # false for NaN
        best = jnp.where(is_better, u, best)
        best_value = jnp.where(is_better, value, best_value)
        updates, state = optimizer.update(grad, state, u, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(u, updates), state, best, best_value), None

    first = (u, optimizer.init(u), u, jnp.full((), jnp.inf, u.dtype))
    (_, _, best, best_value), _ = jax.lax.scan(step, first, length=num_steps + 1)
    return best, best_value
