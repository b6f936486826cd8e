"""Discrete draws as hard limits of logistic and Gumbel noise, and points between the values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._random import draw_flat
from bbvi._types import Key, Site


def positive_uniforms(key: Key, shape: tuple[int, ...]) -> Array:
    """Uniforms that are never 0, which has no logistic and no Gumbel."""
    return draw_flat(jax.random.uniform, key, shape, minval=jnp.finfo(jnp.zeros(()).dtype).tiny)


def perturb(site: Site, u: Array, logits: Array) -> Array:
    """Perturbed logits z ``[S, *site.shape]`` from uniforms: ``harden(z)`` is a draw."""
    if site.event_ndims:
        return jax.nn.log_softmax(logits)[None] + _gumbel(u)
    return logits[None] + jnp.log(u) - jnp.log1p(-u)


def perturb_given(site: Site, index: Array, v: Array, logits: Array) -> Array:
    """Perturbed logits from uniforms, given the draw: with that of ``perturb``, jointly the same.

    The draw is held fixed in derivatives.
    """
    if not site.event_ndims:
        # Given 1, z = log(1 + v e^eta) - log(1 - v); 0 is its mirror image.
        is_one = index == 1
        sign, log_v, log_rest = jnp.where(is_one, 1, -1), jnp.log(v), jnp.log1p(-v)
        shifted = sign * logits[None] + jnp.where(is_one, log_v, log_rest)
        return sign * (jax.nn.softplus(shifted) - jnp.where(is_one, log_rest, log_v))
    # The largest is a standard Gumbel, the others are Gumbels cut off at it.
    gumbel, is_top = _gumbel(v), jax.nn.one_hot(index, v.shape[-1], dtype=bool)
    top = jnp.sum(jnp.where(is_top, gumbel, 0), axis=-1, keepdims=True)
    return jnp.where(
        is_top, gumbel, -jnp.logaddexp(-jax.nn.log_softmax(logits)[None] - gumbel, -top)
    )


def harden(site: Site, z: Array) -> Array:
    """Draws as indices ``[S, *blocks]``."""
    is_one_hot = bool(site.event_ndims)
    return jnp.argmax(z, axis=-1).astype(jnp.int32) if is_one_hot else (z > 0).astype(jnp.int32)


def relax(site: Site, z: Array, temperature: Array | float) -> Array:
    """Values between those of draws; towards ``harden(z)`` as the temperature falls."""
    return jax.nn.softmax(z / temperature) if site.event_ndims else jax.nn.sigmoid(z / temperature)


def relaxed_log_prob(site: Site, value: Array, logits: Array) -> Array:
    """The log density ``[S, *blocks]`` of draws, continued linearly between their values."""
    if site.event_ndims:
        return jnp.sum(value * jax.nn.log_softmax(logits)[None], axis=-1)
    return value * logits[None] - jax.nn.softplus(logits)[None]


def _gumbel(u: Array) -> Array:
    return -jnp.log(-jnp.log(u))
