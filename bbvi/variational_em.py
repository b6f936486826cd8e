"""Variational EM: an optimizer that moves the guide and the model in turns."""

from __future__ import annotations

import numbers
from typing import Any

import optax
from jax import Array

from bbvi._optimizers import Optimizer
from bbvi._types import Params


def alternating(
    guide_optimizer: optax.GradientTransformation,
    model_optimizer: optax.GradientTransformation,
    *,
    num_guide_steps: int,
    num_model_steps: int,
) -> optax.GradientTransformationExtraArgs:
    r"""Optimizer for variational EM: E-steps move the guide, then M-steps the model, and so on.

    .. math::
      \phi \leftarrow \phi + \Delta(\nabla_\phi L(\phi, \theta)) \text{ so many times, then }
      \theta \leftarrow \theta + \Delta(\nabla_\theta L(\phi, \theta)) \text{ so many times}

    Both raise the same bound :math:`L(\phi, \theta) \le \log p(x; \theta)`, so that phases end
    where joint training may end too, at a stationary point of L, though not always the same one.
    If the guide contains the posterior and an E-phase is long enough to reach it, the next M-step
    follows the gradient of :math:`\log p(x; \theta)`, and a long M-phase is the M-step of exact EM.

    The part at rest keeps its parameters and its optimizer's state: Adam's moments and the counts
    that schedules read are those of its own steps. A step computes both gradients in either phase.

    Args:
      guide_optimizer: any optax optimizer, for phi.
      model_optimizer: any optax optimizer, for theta.
      num_guide_steps: steps of an E-phase; the first phase is one.
      num_model_steps: steps of an M-phase.

    Returns:
      An optimizer of ``Params`` for ``fit`` or ``make_step``. A run that is continued from a state
      goes on in the middle of its phase.

    Raises:
      TypeError: an optimizer is not one of optax.
      ValueError: a number of steps is not an int >= 1; when a run starts, there is no theta.

    Example:
      >>> import bbvi, jax.numpy as jnp, optax
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z, theta):
      ...     return norm.logpdf(z, theta).sum() + norm.logpdf(x, z).sum()
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     bbvi.MeanField(bbvi.Normal((4,))),
      ...     jnp.array([1.8, 2.2, 2.0, 2.4]),
      ...     model_params=jnp.array(0.0),
      ...     optimizer=bbvi.alternating(
      ...         optax.adam(0.05), optax.sgd(0.1), num_guide_steps=10, num_model_steps=1
      ...     ),
      ...     num_steps=2000,
      ...     progress=False,
      ... )
      >>> round(float(result.params.model), 1)  # the maximum likelihood: the mean of x
      2.1

    References:
      Neal and Hinton (1998), A View of the EM Algorithm That Justifies Incremental, Sparse, and
      Other Variants; Dempster, Laird and Rubin (1977), Maximum Likelihood from Incomplete Data via
      the EM Algorithm.
    """
    _check_steps(num_guide_steps=num_guide_steps, num_model_steps=num_model_steps)
    period = num_guide_steps + num_model_steps
    parts = {
        "guide": _in_phase(guide_optimizer, 0, num_guide_steps, period),
        "model": _in_phase(model_optimizer, num_guide_steps, period, period),
    }
    return optax.partition(parts, _labels)


def _check_steps(**numbers_of_steps: Any) -> None:
    for name, steps in numbers_of_steps.items():
        is_count = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
        if not (is_count and steps >= 1):
            raise ValueError(f"{name} must be an int >= 1, got {steps!r}.")


def _in_phase(
    optimizer: optax.GradientTransformation, first: int, end: int, period: int
) -> optax.GradientTransformationExtraArgs:
    """The optimizer in steps ``first`` to ``end`` of every period, and rest in the others."""

    def is_moving(count: Array, *, fit_step: Array | None = None, **_: Any) -> Array:
        # Rows of minibatches have states of their own, which count only the steps they are in.
        place = (count if fit_step is None else fit_step) % period
        return (first <= place) & (place < end)

    transformation = Optimizer.of(optimizer).transformation
    return optax.conditionally_mask(transformation, is_moving, forward_extra_args=True)


def _labels(params: Any) -> Params:
    """Which optimizer moves what."""
    if not isinstance(params, Params):
        raise TypeError(
            f"alternating moves bbvi.Params(guide, model), got {type(params).__name__}."
        )
    if params.model is None:
        raise ValueError(
            "alternating trains a guide and a model in turns, but there are no model parameters: "
            "give model_params and log_joint(x, z, theta), or use the guide's optimizer alone."
        )
    return Params("guide", "model")
