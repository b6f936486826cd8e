"""What estimators for discrete latents that use slopes of the log joint share."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._types import PyTree
from bbvi.estimators.discrete import (
    BySite,
    DiscreteModel,
    as_floats,
    draw_indices,
    log_probs,
)


class Draws(NamedTuple):
    """Draws from the guide, and f = log p - log q there, the logits in log q being held fixed.

    Attributes:
      values: by site, real-valued: ``[S, *blocks]``, or one-hot ``[S, *blocks, K]``.
      deviations: the same less their means; they are the scores too.
      log_weights: f by component of the model, ``[S, C]``.
      slopes: by site, derivatives of f in the values; empty unless asked for.
      model_grads: gradient of minus the mean of f in the learned parameters.
    """

    values: BySite
    deviations: BySite
    log_weights: Array
    slopes: BySite
    model_grads: PyTree


def hard_draws(
    model: DiscreteModel, logits: BySite, indices: BySite, *, with_slopes: bool
) -> Draws:
    """The log joint, and its slopes, at draws ``{site: [S, *blocks]}`` by number."""
    values, means = model.values(indices), mean_values(model, logits)
    evaluation = model.evaluate(values, with_slopes=with_slopes)
    values = as_floats(values)
    return Draws(
        values=values,
        deviations={name: leaf - means[name][None] for name, leaf in values.items()},
        log_weights=evaluation.log_p - model.total(log_probs(logits, indices)),
        slopes=signal_slopes(evaluation.slopes, logits),
        model_grads=evaluation.model_grads,
    )


def uniform_draws(
    model: DiscreteModel, logits: BySite, uniforms: BySite, *, with_slopes: bool
) -> Draws:
    """The same at independent draws, by inverse transform of uniforms."""
    return hard_draws(model, logits, draw_indices(logits, uniforms), with_slopes=with_slopes)


def signal_slopes(slopes: BySite, logits: BySite) -> BySite:
    """Slopes of log p - log q from those of log p: log q is linear, and its slopes the logits.

    Up to a constant over the K entries of a one-hot vector, along which nothing can move.
    """
    return {name: leaf - logits[name][None] for name, leaf in slopes.items()}


def mean_values(model: DiscreteModel, logits: BySite) -> BySite:
    """Means of the values: probabilities of a one, or of each category."""
    return {
        site.name: (jax.nn.softmax if site.event_ndims else jax.nn.sigmoid)(logits[site.name])
        for site in model.sites
    }


def through_means(model: DiscreteModel, logits: BySite, slopes: BySite) -> BySite:
    """Slopes in the means as slopes in the logits."""
    _, pullback = jax.vjp(functools.partial(mean_values, model), logits)
    return pullback(slopes)[0]


def linear_signal(model: DiscreteModel, slopes: BySite, steps: BySite) -> Array:
    """Inner products ``[S, C]`` of slopes and steps, over the latents of each component."""
    return model.total(
        {
            site.name: jnp.sum(product, axis=-1) if site.event_ndims else product
            for site in model.sites
            for product in [slopes[site.name] * steps[site.name]]
        }
    )


def score_gradient(model: DiscreteModel, signals: Array, deviations: BySite) -> BySite:
    """Mean of signals ``[S, C]`` times scores."""
    spread = model.spread(signals)
    return {
        site.name: jnp.mean(
            (spread[site.name][..., None] if site.event_ndims else spread[site.name])
            * deviations[site.name],
            axis=0,
        )
        for site in model.sites
    }
