"""Estimators written by hand, as in ``by_hand``, whose control variates are trained by Adam."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from benchmarks.by_hand import (
    DECAY,
    Method,
    bound,
    hard,
    learn,
    log_p,
    log_q,
    minus_others,
    multiple,
    no_moments,
    slopes,
    uniforms,
    value,
)
from models.digits_vae import NUM_LATENTS

ADAM = optax.adam(1e-2, eps=1e-16)
WIDTH = 32
INITIAL = math.log(0.5)  # log temperature


def average(past: Array) -> Array:
    """Averages of what ``remember`` was told; 0 before that."""
    return past[:-1] / jnp.where(past[-1] > 0, past[-1], 1)


def remember(past: Array, *values: Array) -> Array:
    return DECAY * past + (1 - DECAY) * jnp.stack([*values, jnp.ones(())])


def pair_of_uniforms(num_samples: int) -> Callable[[Array, int], Array]:
    def draw(key: Array, n: int) -> Array:
        tiny = jnp.finfo(jnp.zeros(()).dtype).tiny
        flat = jax.random.uniform(key, (2 * num_samples * n * NUM_LATENTS,), minval=tiny)
        return flat.reshape(2, num_samples, n, NUM_LATENTS)

    return draw


def logistic(u: Array, eta: Array) -> Array:
    return eta + jnp.log(u) - jnp.log1p(-u)


def along(c: Callable[[Array], Array], noise: Array, b: Array, eta: Array) -> Array:
    """Derivative of c ``[2S, N]`` at z and at its copy given b, less c there times the score."""
    u, v = noise

    def difference(eta: Array) -> tuple[Array, Array]:
        sign, log_v, log_rest = 2 * b - 1, jnp.log(v), jnp.log1p(-v)
        shifted = sign * eta + jnp.where(b == 1, log_v, log_rest)
        given = sign * (jax.nn.softplus(shifted) - jnp.where(b == 1, log_rest, log_v))
        free, given = jnp.split(c(jnp.concatenate([logistic(u, eta), given])), 2)
        return jnp.sum(free - given) / len(b), given

    moved, given = jax.grad(difference, has_aux=True)(eta)
    score = b - jax.nn.sigmoid(eta)
    return moved - jnp.mean(minus_others(given)[..., None] * score, 0)


def relaxed_signal(
    noise: Array, b: Array, eta: Array, theta: Any, x: Array, log_tau: Array
) -> tuple[Array, Array]:
    """The control variate of the relaxed signal, and its derivative in the log temperature."""

    def control(log_tau: Array) -> Array:
        def signal(z: Array) -> Array:
            y = jax.nn.sigmoid(z / jnp.exp(log_tau))
            return log_p(y, theta, x) - log_q(y, jax.lax.stop_gradient(eta))

        return along(signal, noise, b, eta)

    return jax.jvp(control, (log_tau,), (jnp.ones_like(log_tau),))


def cool(log_tau: Array, opt_state: Any, slope: Array) -> tuple[Array, Any]:
    updates, opt_state = ADAM.update(slope, opt_state)
    return jnp.clip(log_tau + updates, INITIAL - 3, INITIAL + 3), opt_state


def no_temperature() -> tuple[Array, Array, Any]:
    log_tau = jnp.zeros(()) + INITIAL
    return no_moments(), log_tau, ADAM.init(log_tau)


def rebar(num_samples: int) -> Method:
    def gradient(eta: Array, theta: Any, noise: Array, x: Array, state: Any) -> Any:
        moments, log_tau, opt_state = state
        b = (logistic(noise[0], eta) > 0).astype(eta.dtype)
        found, by_theta = value(b, theta, x)
        f, score = found - log_q(b, eta), b - jax.nn.sigmoid(eta)
        plain = jnp.mean(minus_others(f)[..., None] * score, 0)
        control, by_tau = relaxed_signal(noise, b, eta, theta, x, log_tau)
        scale = multiple(moments, 0, 2)
        ascent = plain + scale * control
        log_tau, opt_state = cool(log_tau, opt_state, scale * jnp.vdot(ascent, by_tau))
        return bound(f), ascent, by_theta, (learn(moments, plain, control), log_tau, opt_state)

    return Method(pair_of_uniforms(num_samples), gradient, no_temperature)


def relax(num_samples: int) -> Method:
    """With a network of an image's relaxed latents and probabilities, one hidden layer."""

    def apply(network: Any, y: Array, mu: Array) -> Array:
        # The probabilities are the same for all draws.
        fixed = mu @ network["hidden"][NUM_LATENTS:] + network["bias"]
        units = jnp.tanh(y @ network["hidden"][:NUM_LATENTS] + fixed)
        return units @ network["output"] + network["constant"]

    def init() -> Any:
        hidden = jax.random.normal(jax.random.key(0), (2 * NUM_LATENTS, WIDTH))
        network = {
            "hidden": hidden / jnp.sqrt(2 * NUM_LATENTS),
            "bias": jnp.zeros(WIDTH),
            "output": jnp.zeros(WIDTH),
            "constant": jnp.zeros(()),
        }
        return no_temperature(), no_moments(), network, ADAM.init(network), jnp.zeros(2)

    def gradient(eta: Array, theta: Any, noise: Array, x: Array, state: Any) -> Any:
        (moments, log_tau, cooling), of_network, network, opt_state, past = state
        b, mu = (logistic(noise[0], eta) > 0).astype(eta.dtype), jax.nn.sigmoid(eta)
        found, by_theta = value(b, theta, x)
        f = found - log_q(b, eta)
        signal = minus_others(f)
        plain = jnp.mean(signal[..., None] * (b - mu), 0)
        relaxed, by_tau = relaxed_signal(noise, b, eta, theta, x, log_tau)
        (size,) = average(past)
        learned, pullback = jax.vjp(
            lambda network: along(
                lambda z: size * apply(network, jax.nn.sigmoid(z), mu), noise, b, eta
            ),
            network,
        )
        scale, share = multiple(moments, 0, 2), multiple(of_network, 0, 1)
        without_network, without_relaxed = plain + scale * relaxed, plain + share * learned
        ascent = without_network + share * learned
        (grads,) = pullback(without_network + learned)
        updates, opt_state = ADAM.update(grads, opt_state)
        log_tau, cooling = cool(log_tau, cooling, scale * jnp.vdot(ascent, by_tau))
        state = (
            (learn(moments, without_relaxed, relaxed), log_tau, cooling),
            learn(of_network, without_network, learned),
            optax.apply_updates(network, updates),
            opt_state,
            remember(past, jnp.mean(jnp.abs(signal))),
        )
        return bound(f), ascent, by_theta, state

    return Method(pair_of_uniforms(num_samples), gradient, init)


def rodeo(num_samples: int) -> Method:
    def ratio(a: Array, scale: Array) -> Array:
        return jnp.where(scale > 0, a / jnp.where(scale > 0, scale, 1), 0)

    def apply(network: Any, signals: Array, changes: Array) -> Array:
        """Both outputs ``[S, N, 1 + D, 2]``; the flips of a draw have its signal in common."""
        by_signal, by_change = network["hidden"]
        fixed = signals[..., None] * by_signal + network["bias"]
        units = fixed[..., None, :] + changes[..., None] * by_change
        return jax.nn.leaky_relu(units, 0.3) @ network["output"]

    def init() -> Any:
        normal = jax.random.normal(jax.random.key(0), (3, WIDTH))
        network = {"hidden": normal[:2], "bias": normal[2], "output": jnp.zeros((WIDTH, 2))}
        return no_moments(), network, ADAM.init(network), jnp.zeros(5)

    def gradient(eta: Array, theta: Any, u: Array, x: Array, state: Any) -> Any:
        moments, network, opt_state, past = state
        b, mu = hard(u, eta), jax.nn.sigmoid(eta)
        found, by_b, by_theta = slopes(b, theta, x)
        f, slope, step = found - log_q(b, eta), by_b - eta, b - mu
        signal, other_slope = minus_others(f), slope - minus_others(slope)
        plain = jnp.mean(signal[..., None] * step, 0)
        linear = jnp.sum(slope * b, -1)
        change = jnp.sum(other_slope * b, -1) - (linear - minus_others(linear))
        flips = change[..., None] + other_slope * (1 - 2 * b)
        center, spread, noise, size = average(past)
        signals = ratio(f - signal - center, spread)
        changes = ratio(jnp.concatenate([change[..., None], flips], -1), size)

        def control(network: Any) -> Array:
            h = apply(network, signals, changes)
            moved = jnp.abs(step)[..., None] * (h[..., 1:, :] - h[..., :1, :])
            baseline, own = jnp.moveaxis(jnp.sum(moved, -2), -1, 0)
            whole = own - (baseline - minus_others(baseline))
            return noise * jnp.mean((whole[..., None] - h[..., 1:, 1]) * step, 0)

        learned, pullback = jax.vjp(control, network)
        (grads,) = pullback(ratio(plain + learned, noise**2))
        updates, opt_state = ADAM.update(grads, opt_state)
        center = jnp.mean(f)
        scales = (jnp.mean(jnp.abs(a)) for a in (f - center, signal, change))
        state = (
            learn(moments, plain, learned),
            optax.apply_updates(network, updates),
            opt_state,
            remember(past, center, *scales),
        )
        return bound(f), plain + multiple(moments, 0, 1) * learned, by_theta, state

    return Method(uniforms(num_samples), gradient, init)
