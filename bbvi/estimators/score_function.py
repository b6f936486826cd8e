"""Score-function (REINFORCE) gradients with a baseline."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Params, PyTree
from bbvi.baselines import Baseline, LeaveOneOut
from bbvi.estimators.base import SurrogateEstimator, check_elbo
from bbvi.problem import Problem


def check_baseline(estimator: ScoreFunction) -> None:
    """Raise unless the baseline is one, and has the draws it needs."""
    if not isinstance(estimator.baseline, Baseline):
        raise TypeError(f"baseline must be a bbvi.Baseline, got {estimator.baseline!r}.")
    if estimator.num_samples < estimator.baseline.min_samples:
        raise ValueError(
            f"{type(estimator.baseline).__name__} needs num_samples >= "
            f"{estimator.baseline.min_samples}, got {estimator.num_samples}; draw more, or use "
            "MovingAverage or NoBaseline."
        )


@dataclasses.dataclass(frozen=True)
class ScoreFunction(SurrogateEstimator):
    r"""Score-function gradient of the ELBO, for any latents and any log joint.

    .. math::
      g = -\frac1S \sum_s \big(f_s - b_s\big) \nabla_\phi \log q(z_s; \phi), \qquad
      f_s = \log p(x, z_s) - \log q(z_s; \phi)

    Unbiased: the baseline :math:`b_s` never sees :math:`z_s`, and the term
    :math:`E[\nabla \log q] = 0` is left out. ``log_joint`` need not be differentiable in z.
    Cost: ``num_samples`` values of ``log_joint``.

    Args:
      num_samples: S, draws per step.
      baseline: ``LeaveOneOut()`` (default, S >= 2), ``MovingAverage(decay)`` or ``NoBaseline()``.

    Raises:
      ValueError: fewer draws than the baseline needs; an objective other than the ELBO.
      TypeError: ``baseline`` is not a baseline.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return jnp.where(z["b"] == 1, jnp.log(0.8), jnp.log(0.2))
      >>> guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     guide,
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.ScoreFunction(16),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> round(float(jax.nn.sigmoid(result.params.guide.families["b"]["logits"])), 1)
      0.8

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference; Williams (1992), Simple
      Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning.
    """

    num_samples: int = 32
    baseline: Baseline = dataclasses.field(default_factory=LeaveOneOut)

    is_pathwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self)

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)

    def init(self, problem: Problem, params: Params, x: Data) -> PyTree:
        return self.baseline.init()

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        # The draws are held fixed, so log_joint is differentiated in the model parameters only.
        z = problem.sample(noise, params._replace(guide=stop_gradient(params.guide)), x)
        log_q = problem.log_q(params, x, z)
        log_p = problem.log_p(params, x, z)
        log_weights = stop_gradient(log_p - log_q)
        baseline, state = self.baseline(state, log_weights)
        scalar = -jnp.mean((log_weights - baseline) * log_q + log_p)
        return scalar, (log_weights, state)
