"""Natural-gradient steps for Gaussian guides, as an optax transformation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bbvi._checks import check_positive
from bbvi._optimizers import default_optimizer
from bbvi._types import Params, PyTree
from bbvi.guides.base import Guide

MEMORY = 0.02  # of the cosine between gradients, and what steps are shortened by at a time
OPPOSITE = -0.5


def natural_gradient(
    guide: Guide, step_size: float = 0.3, *, max_norm: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    r"""Natural-gradient descent for the Gaussian part of a guide, Adam at 0.05 for the rest.

    .. math::
      \phi \leftarrow \phi - \rho F(\phi)^{-1} g, \qquad
      \rho = \min\big(\text{step\_size}, \, \text{max\_norm} / \|g\|_{F^{-1}}\big)

    F is the Fisher information of q, so :math:`\|g\|_{F^{-1}}` is the length of the natural
    gradient in coordinates relative to q: locations in its standard deviations, factors of its
    covariance. A step does not depend on the units of the latents or, for ``FullRank``, on how
    they are correlated; on a Gaussian posterior a step of 1 without noise is the solution. Steps
    become shorter where successive gradients point against one another. To take smaller ones lower
    ``step_size``: updates that are scaled afterwards are a part of the way to another Gaussian, not
    a shorter step, unless ``update`` is told by what, as ``fit_rate``. Cost: a few operations per
    parameter, for ``FullRank`` three products of D x D matrices.

    Args:
      guide: ``MeanField`` with normal sites, ``FullRank``, ``LowRank`` (which goes by its marginal
        deviations only), or a ``Mixture`` of them.
      step_size: share of the natural gradient taken.
      max_norm: longest step, in those coordinates; of length 1, q moves by about half a nat.

    Returns:
      An optax transformation of ``Params``, for ``fit(..., optimizer=...)``.

    Raises:
      TypeError: the guide has no Gaussian part with a natural gradient.
      ValueError: a step size or norm that is not positive; from ``update``, no parameters.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> guide = bbvi.FullRank({"w": bbvi.Normal((2,))})
      >>> precision = jnp.array([[1.0, -0.99], [-0.99, 1.0]])
      >>> result = bbvi.fit(
      ...     lambda x, z: -0.5e-6 * (z["w"] - 5000.0) @ precision @ (z["w"] - 5000.0),
      ...     guide,
      ...     optimizer=bbvi.natural_gradient(guide, 0.05),
      ...     num_steps=2000,
      ...     progress=False,
      ... )
      >>> bool(abs(result.params.guide["loc"] - 5000.0).max() < 1500.0)  # 0.2 standard deviations
      True

    References:
      Amari (1998), Natural Gradient Works Efficiently in Learning; Tan (2021), Analytic Natural
      Gradient Updates for Cholesky Factor in Gaussian Variational Approximation.
    """
    if not (isinstance(guide, Guide) and guide.has_natural_gradient):
        raise TypeError(
            "natural_gradient needs a MeanField guide with Normal sites, a FullRank or a LowRank "
            f"guide or a Mixture of them, got {guide!r}; use an optax optimizer such as "
            "optax.adam(0.05)."
        )
    for name, value in (("step_size", step_size), ("max_norm", max_norm)):
        check_positive(f"natural_gradient {name}", value)
    others = default_optimizer()

    def init(params: Params) -> NaturalState:
        like, rest = guide.local_gradient(params.guide, params.guide)
        one = jnp.ones((), jax.tree.leaves(like)[0].dtype)
        none = jax.tree.map(jnp.zeros_like, like)
        return NaturalState(none, 0 * one, one, others.init(Params(rest, params.model)))

    def update(
        grads: Params,
        state: optax.OptState,
        params: Params | None = None,
        *,
        fit_rate: Array | float = 1.0,
        **extra: Any,
    ) -> tuple[Params, optax.OptState]:
        del extra
        if params is None:
            raise ValueError("natural_gradient needs the parameters: update(grads, state, params).")
        gradient, rest = guide.local_gradient(params.guide, grads.guide)
        norm = guide.local_norm(gradient)
        rate = jnp.minimum(step_size, max_norm / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        direction, turning, factor = _slow_down(gradient, state)
        step = jax.tree.map(lambda leaf: -factor * rate * leaf, gradient)
        moved, others_state = others.update(Params(rest, grads.model), state.others)
        moved = moved._replace(guide=_local_step(guide, params.guide, step, moved.guide, fit_rate))
        return moved, NaturalState(direction, turning, factor, others_state)

    return optax.GradientTransformationExtraArgs(init, update)


class NaturalState(NamedTuple):
    """Between two steps.

    Attributes:
      direction: of the last gradient, of length 1.
      turning: moving average of the cosine between successive gradients.
      factor: what steps are shortened by.
      others: state of the optimizer of everything else.
    """

    direction: PyTree
    turning: Array
    factor: Array
    others: optax.OptState


def _slow_down(gradient: PyTree, state: NaturalState) -> tuple[PyTree, Array, Array]:
    """Direction, turning and factor after a gradient.

    Where a guide knows less of the covariance than the posterior has, the information is not its
    curvature, and steps that are too long for the steepest direction go to and fro: successive
    gradients are opposite. Noise alone has a mean cosine of about -rate / 2, far from that.
    """
    leaves = jax.tree.leaves(gradient)
    square = sum((jnp.vdot(leaf, leaf) for leaf in leaves), jnp.zeros((), leaves[0].dtype))
    inverse = jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))
    direction = jax.tree.map(lambda leaf: inverse * leaf, gradient)
    before = jax.tree.leaves(state.direction)
    cosine = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(direction), before, strict=True))
    turning = (1 - MEMORY) * state.turning + MEMORY * cosine
    factor = jnp.where(turning < OPPOSITE, (1 - MEMORY) * state.factor, state.factor)
    return direction, turning, factor


def in_local_coordinates(
    guide: Guide, optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """An optimizer run in coordinates relative to q, so that units of the latents do not matter.

    For guides with a Gaussian part whose natural gradient is not trusted to be a step by itself.

    Args:
      guide: one with a natural gradient.
      optimizer: any optax optimizer that does not read the parameters.
    """

    def init(params: Params) -> optax.OptState:
        gradient = guide.local_gradient(params.guide, params.guide)
        return optimizer.init(Params(gradient, params.model))

    def update(
        grads: Params,
        state: optax.OptState,
        params: Params | None = None,
        *,
        fit_rate: Array | float = 1.0,
        **extra: Any,
    ) -> tuple[Params, optax.OptState]:
        del extra
        if params is None:
            raise ValueError("the optimizer needs the parameters: update(grads, state, params).")
        gradient = guide.local_gradient(params.guide, grads.guide)
        moved, state = optimizer.update(Params(gradient, grads.model), state)
        step, rest = moved.guide
        moved = moved._replace(guide=_local_step(guide, params.guide, step, rest, fit_rate))
        return moved, state

    return optax.GradientTransformationExtraArgs(init, update)


def _local_step(
    guide: Guide, params: PyTree, step: PyTree, rest: PyTree, rate: Array | float
) -> PyTree:
    """What to add to the parameters for ``rate`` times a step, over ``rate``.

    ``fit`` multiplies updates by its rate. A step on the curved set of covariances is not linear
    in its length: where latents are so correlated that q is a thousand times narrower in one
    direction than in another, a part of a step to the wrong place is off by as much.
    """
    shortened = jax.tree.map(lambda leaf: jnp.asarray(rate, leaf.dtype) * leaf, (step, rest))
    moved = guide.local_step(params, *shortened)
    return jax.tree.map(lambda leaf: leaf / jnp.asarray(rate, leaf.dtype), moved)
