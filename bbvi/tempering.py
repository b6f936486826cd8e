"""Annealed evidence lower bounds: the log joint is raised to a power that ends at one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bbvi._types import Data, Latents, LogJoint, PyTree
from bbvi.factors import FactorizedLogJoint
from bbvi.objectives import Elbo

ROUNDING = 1e-6  # a schedule may miss 1 by that much


@dataclasses.dataclass(frozen=True)
class Tempered(Elbo):
    r"""The ELBO with an annealed power of the log joint, :math:`-E_q[\beta_t \log p - \log q]`.

    A small :math:`\beta` flattens the posterior, so that q spreads over all of it before it has to
    settle: a cure for bad starts where there are several modes. Of a ``FactorizedLogJoint`` with
    data terms only these are multiplied by :math:`\beta`, and q starts at the prior.

    Any estimator of the ELBO estimates its gradient: the steps of ``fit`` and ``make_step`` hand it
    the log joint times :math:`\beta_t`. The losses recorded are the tempered ones. ``fit`` lowers
    no rate and judges nothing before :math:`\beta` is 1; ``result.elbo`` is the plain bound.

    Args:
      schedule: :math:`\beta_t` as a function of the step, positive, and 1 by the end of the run,
        such as ``optax.linear_schedule(0.01, 1.0, 2000)``.

    Raises:
      TypeError: ``schedule`` is not a function of a traced step that returns a scalar.
      ValueError: from ``fit``: a value that is not positive, or a last one other than 1.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp, optax
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):  # most of the mass is at 4; the start is at -4
      ...     return jnp.logaddexp(norm.logpdf(z, -4.0) - 2.0, norm.logpdf(z, 4.0))
      >>> guide = bbvi.MeanField(bbvi.Normal())
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     guide,
      ...     key=jax.random.key(0),
      ...     objective=bbvi.Tempered(optax.linear_schedule(0.02, 1.0, 2000)),
      ...     init_params=guide.params_at(jnp.asarray(-4.0), 0.5),
      ...     progress=False,
      ... )
      >>> round(float(result.params.guide.normal[0, 0]))
      4

    References:
      Katahira, Watanabe and Okada (2008), Deterministic Annealing Variant of Variational Bayes
      Method; Mandt, McInerney, Abrol, Ranganath and Blei (2016), Variational Tempering.
    """

    schedule: Callable[[ArrayLike], ArrayLike]

    def __post_init__(self) -> None:
        step = jax.ShapeDtypeStruct((), jnp.int32)
        try:
            value = jax.eval_shape(lambda step: jnp.asarray(self.schedule(step)), step)
        except TypeError as error:
            raise TypeError(
                "Tempered schedule must be a function of the step that JAX can trace, got "
                f"{self.schedule!r}: {error}"
            ) from error
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"Tempered schedule must return one real number, got {value.dtype}"
                f"{list(value.shape)}."
            )

    def num_annealing_steps(self, first: int, num_steps: int) -> int:
        """How many of the steps from number ``first`` on come before the power is 1 for good.

        Raises:
          ValueError: the power is not positive, or is not 1 at the last of the steps.
        """
        betas = np.asarray(jax.vmap(self.schedule)(first + jnp.arange(num_steps)), np.float64)
        if not (betas > 0).all():
            step = int(np.argmin(betas > 0))
            raise ValueError(
                f"Tempered schedule must be positive, got {betas[step]:.6g} at step {first + step}."
            )
        is_one = np.abs(betas - 1) < ROUNDING
        if not is_one[-1]:
            raise ValueError(
                f"Tempered schedule must end at 1, got {betas[-1]:.6g} at the last step "
                f"{first + num_steps - 1}: anneal faster, or raise num_steps."
            )
        return 0 if is_one.all() else num_steps - int(np.argmin(is_one[::-1]))


def tempered(log_joint: LogJoint) -> LogJoint:
    """The log joint as ``(x, z, (theta, beta)) -> []``, with its data terms or all times beta."""
    if isinstance(log_joint, FactorizedLogJoint):
        return dataclasses.replace(
            log_joint, terms=_TemperedTerms(log_joint.terms, log_joint.data_terms)
        )
    return _TemperedLogJoint(log_joint)


@dataclasses.dataclass(frozen=True)
class _TemperedLogJoint:
    """A plain log joint times a power."""

    log_joint: LogJoint

    def __call__(self, x: Data, z: Latents, model: tuple[PyTree, Array]) -> Array:
        theta, beta = model
        return beta * self.log_joint(x, z, *_model_args(theta))


@dataclasses.dataclass(frozen=True)
class _TemperedTerms:
    """The terms of a ``FactorizedLogJoint``, those of the data (or all) times a power."""

    terms: Callable[..., Any]
    data_terms: tuple[str, ...]

    def __call__(self, x: Data, z: Latents, model: tuple[PyTree, Array]) -> dict[str, Array]:
        theta, beta = model
        terms = self.terms(x, z, *_model_args(theta))
        names = self.data_terms or tuple(terms)
        return {name: beta * term if name in names else term for name, term in terms.items()}


def _model_args(theta: PyTree) -> tuple[PyTree, ...]:
    return () if theta is None else (theta,)
