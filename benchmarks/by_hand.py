"""Estimators for discrete latents written by hand, each for one model and nothing else.

The model is the binary autoencoder of digits with free logits eta ``[N, D]``: what somebody would
write who knew that the data are independent, that all latents are Bernoulli, and that the decoder
is linear. Each ``Method`` has the arithmetic of the estimator of bbvi that it is measured against.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from models.digits_vae import NUM_LATENTS

DECAY = 0.99


class Method(NamedTuple):
    """One estimator: ``gradient(eta, theta, noise, x, state)`` of the ELBO, to be maximised."""

    draw: Callable[[Array, int], Any]
    gradient: Callable[..., tuple[Array, Array, Any, Any]]
    init: Callable[[], Any] = lambda: ()


def log_p(b: Array, theta: Any, x: Array) -> Array:
    """Log joints ``[S, N]`` at draws ``[S, N, D]``."""
    logits = theta["bias"] + b @ theta["weights"]
    fit = jnp.sum(x * logits - jax.nn.softplus(logits), -1)
    return fit + jnp.sum(b * theta["prior"] - jax.nn.softplus(theta["prior"]), -1)


def log_q(b: Array, eta: Array) -> Array:
    return jnp.sum(b * eta - jax.nn.softplus(eta), -1)


def value(b: Array, theta: Any, x: Array) -> tuple[Array, Any]:
    """Log joints ``[S, N]`` and the gradient of their mean over draws in theta."""

    def mean(theta: Any) -> tuple[Array, Array]:
        found = log_p(b, theta, x)
        return jnp.sum(found) / len(b), found

    grads, found = jax.grad(mean, has_aux=True)(theta)
    return found, grads


def slopes(b: Array, theta: Any, x: Array) -> tuple[Array, Array, Any]:
    """The same, and derivatives ``[S, N, D]`` in the latents."""

    def total(b: Array, theta: Any) -> tuple[Array, Array]:
        found = log_p(b, theta, x)
        return jnp.sum(found), found

    (by_b, grads), found = jax.grad(total, argnums=(0, 1), has_aux=True)(b, theta)
    return found, by_b, jax.tree.map(lambda leaf: leaf / len(b), grads)


def minus_others(f: Array) -> Array:
    return (f - jnp.mean(f, 0)) * (len(f) / (len(f) - 1))


def hard(u: Array, eta: Array) -> Array:
    return (u < jax.nn.sigmoid(eta)).astype(eta.dtype)


def uniforms(num_samples: int) -> Callable[[Array, int], Array]:
    shape = num_samples, -1, NUM_LATENTS
    # Flat: three times as fast on CPU as along a short last axis.
    return lambda key, n: jax.random.uniform(key, (num_samples * n * NUM_LATENTS,)).reshape(shape)


def bound(f: Array) -> Array:
    return jnp.sum(jnp.mean(f, 0))


def best(state: Array) -> Array:
    return -state[0] / jnp.where(state[1] > 0, state[1], 1)


def learn(state: Array, plain: Array, control: Array) -> Array:
    """Decayed sums of two products, and the error of the first, from how far off each step was."""
    covariance, variance = jnp.vdot(plain, control), jnp.vdot(control, control)
    past = jnp.where(state[1] > 0, state[1], 1)
    residual = (covariance + best(state) * variance) / jnp.sqrt(1 + variance / past)
    off = jnp.where(state[1] > 0, residual, 0)
    error = jnp.hypot(DECAY * state[2], off)
    return jnp.stack([DECAY * state[0] + covariance, DECAY * state[1] + variance, error])


def multiple(state: Array, low: float, high: float) -> Array:
    """The best multiple so far, the smaller the less certain it is."""
    size = jnp.abs(state[0])
    share = state[2] / jnp.where(size > 0, size, 1)
    return jnp.clip(best(state) * jnp.maximum(1 - 2 * share**2, 0), low, high)


def no_moments() -> Array:
    return jnp.zeros(3)


def leave_one_out(num_samples: int) -> Method:
    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b = hard(u, eta)
        found, by_theta = value(b, theta, x)
        f = found - log_q(b, eta)
        score = b - jax.nn.sigmoid(eta)
        return bound(f), jnp.mean(minus_others(f)[..., None] * score, 0), by_theta, state

    return Method(uniforms(num_samples), gradient)


def adaptive(num_samples: int) -> Method:
    """The terms that read a latent, and a learned multiple of the rest of its datum's.

    Of the fit, the part that is linear in the latents is a sum of terms that read one each.
    """

    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b = hard(u, eta)

        def mean(theta: Any) -> tuple[Array, Any]:
            common = jnp.sum(jax.nn.softplus(theta["bias"] + b @ theta["weights"]), -1)
            linear = x @ theta["weights"].T + theta["prior"]
            own = b * linear - jax.nn.softplus(theta["prior"])
            found = x @ theta["bias"] - common + jnp.sum(own, -1)
            return jnp.sum(found) / num_samples, (found, own - common[..., None])

        by_theta, (found, local) = jax.grad(mean, has_aux=True)(theta)
        each = b * eta - jax.nn.softplus(eta)
        f, local, score = found - jnp.sum(each, -1), local - each, b - jax.nn.sigmoid(eta)
        near = jnp.mean(minus_others(local) * score, 0)
        far = jnp.mean(minus_others(f[..., None] - local) * score, 0)
        ascent = near + multiple(state, 0, 1) * far
        return bound(f), ascent, by_theta, learn(state, near, far)

    return Method(uniforms(num_samples), gradient, no_moments)


def pairs(num_samples: int, *, is_arm: bool) -> Method:
    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b1, b2 = hard(u, eta), hard(1 - u, eta)
        b = jnp.concatenate([b1, b2])
        found, by_theta = value(b, theta, x)
        f = found - log_q(b, eta)
        difference = (f[: len(u)] - f[len(u) :])[..., None]
        if is_arm:
            ascent = jnp.mean(difference * (0.5 - u), 0)
        else:
            ascent = 0.5 * jnp.mean(difference * (b1 - b2), 0) * jax.nn.sigmoid(jnp.abs(eta))
        return bound(f), ascent, by_theta, state

    return Method(uniforms(num_samples // 2), gradient)


def arms(num_samples: int) -> Method:
    def draw(key: Array, n: int) -> Array:
        flat = jax.random.exponential(key, (num_samples * n * NUM_LATENTS,))
        return flat.reshape(num_samples, n, NUM_LATENTS)

    def gradient(eta: Array, theta: Any, e: Array, x: Array, state: Any) -> Any:
        power, log_rare = num_samples - 1, jax.nn.log_sigmoid(-jnp.abs(eta))
        others = jnp.tensordot(1 - jnp.eye(num_samples), e, axes=1, precision="highest")
        is_rare = power * (jnp.log(others) - jnp.log(jnp.sum(e, 0))) < log_rare
        b = (is_rare == (eta <= 0)).astype(eta.dtype)
        found, by_theta = value(b, theta, x)
        f = found - log_q(b, eta)
        plain = jnp.sum((f - jnp.mean(f, 0))[..., None] * b, 0) / power
        ratio = jnp.maximum(2 - jnp.exp(-log_rare / power), 0) ** power
        return bound(f), plain * jax.nn.sigmoid(jnp.abs(eta)) / (1 - ratio), by_theta, state

    return Method(draw, gradient)


def double_cv(num_samples: int) -> Method:
    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b, mu = hard(u, eta), jax.nn.sigmoid(eta)
        found, by_b, by_theta = slopes(b, theta, x)
        f, slope, step = found - log_q(b, eta), by_b - eta, b - mu
        mean_slope = jnp.mean(slope, 0)
        others = mean_slope - (slope - mean_slope) / (num_samples - 1)
        linear = jnp.sum(others * step, -1)
        plain = jnp.mean(minus_others(f)[..., None] * step, 0)
        control = jnp.mean(minus_others(linear)[..., None] * step, 0) - mu * (1 - mu) * mean_slope
        ascent = plain + multiple(state, -1, 1) * control
        return bound(f), ascent, by_theta, learn(state, plain, control)

    return Method(uniforms(num_samples), gradient, no_moments)


def mu_prop(num_samples: int) -> Method:
    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b, mu = hard(u, eta), jax.nn.sigmoid(eta)
        found, by_theta = value(b, theta, x)
        slope = jax.grad(lambda mu: jnp.sum(log_p(mu[None], theta, x)))(mu) - eta
        f, step = found - log_q(b, eta), b - mu
        linear = jnp.sum(slope * step, -1)
        plain = jnp.mean(minus_others(f)[..., None] * step, 0)
        noisy, mean = jnp.mean(minus_others(linear)[..., None] * step, 0), mu * (1 - mu) * slope
        ascent = plain + multiple(state, -1, 1) * (noisy - mean)
        return bound(f), ascent, by_theta, learn(state, plain - mean, noisy - mean)

    return Method(uniforms(num_samples), gradient, no_moments)


def straight_through(num_samples: int) -> Method:
    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b, mu = hard(u, eta), jax.nn.sigmoid(eta)
        found, by_b, by_theta = slopes(b, theta, x)
        ascent = mu * (1 - mu) * jnp.mean(by_b - eta, 0)
        return bound(found - log_q(b, eta)), ascent, by_theta, state

    return Method(uniforms(num_samples), gradient)


def gumbel_softmax(num_samples: int) -> Method:
    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        z = eta + jnp.log(u) - jnp.log1p(-u)
        b = (z > 0).astype(eta.dtype)
        found, by_theta = value(b, theta, x)
        y = jax.nn.sigmoid(z / 0.5)
        by_y = jax.grad(lambda y: jnp.sum(log_p(y, theta, x)))(y) - eta
        ascent = jnp.mean(by_y * y * (1 - y) / 0.5, 0)
        return bound(found - log_q(b, eta)), ascent, by_theta, state

    return Method(uniforms(num_samples), gradient)


def rein_max(num_samples: int) -> Method:
    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        b, mu = hard(u, eta), jax.nn.sigmoid(eta)
        found, by_b, by_theta = slopes(b, theta, x)
        middle = (mu + b) / 2
        rate = 2 * middle * (1 - middle) - 0.5 * mu * (1 - mu)
        ascent = jnp.mean(rate * (by_b - eta), 0)
        return bound(found - log_q(b, eta)), ascent, by_theta, state

    return Method(uniforms(num_samples), gradient)


BITS = (np.arange(2**NUM_LATENTS)[:, None] >> np.arange(NUM_LATENTS)) & 1


def enumeration(_: int, *, is_shared: bool = False) -> Method:
    """Every state of every image; shared, its decoder's output is computed once for all images.

    That takes knowing that the images have the same states and only differ in their pixels.
    """

    def gradient(eta: Array, theta: Any, _: Any, x: Array, state: Any) -> Any:
        b = jnp.asarray(BITS, eta.dtype)[:, None]
        if not is_shared:
            b = jnp.broadcast_to(b, (len(BITS), *eta.shape))

        def elbo(eta: Array, theta: Any) -> Array:
            log_prob = log_q(b, eta)
            return jnp.sum(jnp.exp(log_prob) * (log_p(b, theta, x) - log_prob))

        found, (by_eta, by_theta) = jax.value_and_grad(elbo, (0, 1))(eta, theta)
        return found, by_eta, by_theta, state

    return Method(lambda key, n: (), gradient)


def unordered_set(num_samples: int) -> Method:
    """Distinct states of each image, those whose log probability plus Gumbel noise is largest."""

    def draw(key: Array, n: int) -> Array:
        return jax.random.gumbel(key, (n * len(BITS),)).reshape(n, len(BITS))

    def gradient(eta: Array, theta: Any, gumbel: Array, x: Array, state: Any) -> Any:
        every = eta @ BITS.T.astype(eta.dtype) - jnp.sum(jax.nn.softplus(eta), -1, keepdims=True)
        ranked = every + gumbel
        top, number = jax.lax.top_k(ranked, num_samples)
        # Not the last of them: for a slice of the largest XLA sorts them all, at 60 times the cost.
        least = jnp.min(top, -1, keepdims=True)
        rest = jax.nn.logsumexp(jnp.where(ranked < least, every, -jnp.inf), -1)
        b = ((number.T[..., None] >> np.arange(NUM_LATENTS)) & 1).astype(eta.dtype)
        members = log_q(b, eta)
        first, others = set_weights(members, rest)

        def mean(theta: Any) -> tuple[Array, Array]:
            found = log_p(b, theta, x)
            return jnp.sum(first * found), found

        by_theta, found = jax.grad(mean, has_aux=True)(theta)
        f = found - members
        signal = first * (f - jnp.sum(others * f, 1))
        ascent = jnp.sum(signal[..., None] * (b - jax.nn.sigmoid(eta)), 0)
        return jnp.sum(first * f), ascent, by_theta, state

    return Method(draw, gradient)


def set_weights(members: Array, rest: Array) -> tuple[Array, Array]:
    """Probabilities ``[S, N]`` that each was drawn first, and weights in each one's baseline.

    From log probabilities ``[S, N]`` of the members and ``[N]`` of all that is not in the set.
    """
    every = frozenset(range(len(members)))

    @functools.cache
    def log_next(drawn: frozenset[int]) -> Array:
        """Log probability that the next draws are all the other members, in any order."""
        if drawn == every:
            return jnp.zeros_like(rest)
        missing = sorted(every - drawn)
        left = jnp.logaddexp(jax.nn.logsumexp(members[np.array(missing)], 0), rest)
        after = jnp.stack([members[i] + log_next(drawn | {i}) for i in missing])
        return jax.nn.logsumexp(after, 0) - left

    def weight(i: int, drawn: frozenset[int]) -> Array:
        if i in drawn:
            return jnp.exp(members[i])
        return jnp.exp(members[i] + log_next(drawn | {i}) - log_next(drawn))

    def weights(drawn: frozenset[int]) -> Array:
        return jnp.stack([weight(i, drawn) for i in sorted(every)])

    return weights(frozenset()), jnp.stack([weights(frozenset({i})) for i in sorted(every)])
