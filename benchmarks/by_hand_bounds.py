"""Estimators written by hand, as in ``by_hand``, for objectives with importance weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.by_hand import Method, hard, log_p, log_q, minus_others, uniforms


def importance(b: Array, eta: Array, theta: Any, x: Array) -> tuple[Array, Array, Any]:
    """Log weights ``[S, N]``, each image's bound of all draws, and its gradient in theta."""

    def total(theta: Any) -> tuple[Array, tuple[Array, Array]]:
        log_w = log_p(b, theta, x) - log_q(b, eta)
        each = jax.nn.logsumexp(log_w, 0) - jnp.log(len(b))
        return jnp.sum(each), (log_w, each)

    by_theta, (log_w, each) = jax.grad(total, has_aux=True)(theta)
    return log_w, each, by_theta


def weighted_scores(weight: Array, b: Array, eta: Array) -> Array:
    """Sum over draws of ``weight [S, N]`` times the score."""
    return jnp.sum(weight[..., None] * (b - jax.nn.sigmoid(eta)), 0)


def vimco(num_samples: int) -> Method:
    """With the geometric mean of the other draws' weights; one bound of all draws."""

    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b = hard(u, eta)
        log_w, each, by_theta = importance(b, eta, theta, x)
        stand_in = log_w - minus_others(log_w)
        is_self = jnp.eye(num_samples, dtype=bool)[..., None]
        without = jnp.where(is_self, stand_in[:, None], log_w[None])
        signal = each - (jax.nn.logsumexp(without, 1) - jnp.log(num_samples))
        weight = signal - jax.nn.softmax(log_w, 0)
        return jnp.sum(each), weighted_scores(weight, b, eta), by_theta, state

    return Method(uniforms(num_samples), gradient)


def ovis(num_samples: int) -> Method:
    """With the unbiased baseline; one bound of all draws."""

    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b = hard(u, eta)
        log_w, each, by_theta = importance(b, eta, theta, x)
        share = jax.nn.softmax(log_w, 0)
        is_self = jnp.eye(num_samples, dtype=bool)[..., None]
        others = jax.nn.logsumexp(jnp.where(is_self, -jnp.inf, log_w[None]), 1)
        # log(1 - share), summed from the others where the share is nearly all.
        far = others - jax.nn.logsumexp(log_w, 0)
        log_rest = jnp.where(share < 0.5, jnp.log1p(-share), far)
        return jnp.sum(each), weighted_scores(-(log_rest + share), b, eta), by_theta, state

    return Method(uniforms(num_samples), gradient)


def reweighted_wake_sleep(num_samples: int) -> Method:
    """The divergence with its sign turned, which is to be maximised as the bounds are."""

    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b = hard(u, eta)
        log_w, _, by_theta = importance(b, eta, theta, x)
        share = jax.nn.softmax(log_w, 0)
        ascent = weighted_scores(share - 1 / num_samples, b, eta)
        entropy = jnp.sum(jax.scipy.special.entr(share))
        return entropy - len(x) * jnp.log(num_samples), ascent, by_theta, state

    return Method(uniforms(num_samples), gradient)
