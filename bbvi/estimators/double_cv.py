"""Double control variates: a leave-one-out Taylor expansion beside a leave-one-out baseline."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from bbvi.baselines import minus_others
from bbvi.estimators.base import Cost
from bbvi.estimators.coefficient import Coefficient
from bbvi.estimators.discrete import (
    BySite,
    DiscreteEstimator,
    DiscreteModel,
    LogitGradient,
)
from bbvi.estimators.first_order import (
    linear_signal,
    score_gradient,
    through_means,
    uniform_draws,
)


@dataclasses.dataclass(frozen=True)
class DoubleCv(DiscreteEstimator):
    r"""Leave-one-out score function with a Taylor control variate from the other draws' slopes.

    With :math:`f_k` log p - log q of draw :math:`b_k`, :math:`\bar f'_{-k}` the mean slope of f at
    the other draws and :math:`\mu` the mean of b,

    .. math::
      g = \frac1K \sum_k \Big(f_k + \alpha c_k - \frac{1}{K-1} \sum_{j \ne k} (f_j + \alpha c_j)
          \Big) (b_k - \mu) - \alpha \frac{\partial \mu}{\partial \eta} \bar f', \qquad
      c_k = \bar f'_{-k} \cdot (b_k - \mu)

    The control variate enters twice: against the noise of a draw's own signal, and against that of
    its baseline. All signals are those of the connected component. Where f is linear, nothing is
    left of the noise at :math:`\alpha = -1`. But slopes say little of f's differences where it is
    curved, so that a fixed coefficient may hurt: here it is the one that would have been best, by
    least squares, in past steps, for each site and in [-1, 1], and 0 at the start.

    Unbiased, for Bernoulli sites and for ``OneHotCategorical`` ones, if ``log_joint`` is
    differentiable between the values of its latents.

    Cost: ``num_samples`` values and slopes of ``log_joint``.

    Args:
      num_samples: K, draws per step, at least 2.

    Raises:
      ValueError: a single draw; sites of another kind; a ``log_joint`` that is not differentiable
        in real values of the latents; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.5, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.DoubleCv(2),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(float(v), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.5, -2.0]

    References:
      Titsias and Shi (2022), Double Control Variates for Gradient Estimation in Discrete Latent
      Variable Models.
    """

    num_samples: int = 4

    is_binary: ClassVar[bool] = False
    is_relaxed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2:
            raise ValueError(
                "DoubleCv compares each draw with the others, so num_samples must be at least 2, "
                f"got {self.num_samples}; use MuProp for a single draw."
            )

    @property
    def cost(self) -> Cost:
        return Cost(gradients=self.num_samples)

    def init_logits(self, model: DiscreteModel, logits: BySite) -> dict[str, Coefficient]:
        return {site.name: Coefficient.init() for site in model.sites}

    def logit_gradient(
        self, noise: BySite, model: DiscreteModel, logits: BySite, state: dict[str, Coefficient]
    ) -> tuple[LogitGradient, dict[str, Coefficient]]:
        draws = uniform_draws(model, logits, noise, with_slopes=True)
        mean_slopes = {name: jnp.mean(leaf, axis=0) for name, leaf in draws.slopes.items()}
        other_slopes = {
            name: mean_slopes[name][None] - (leaf - mean_slopes[name][None]) / (len(leaf) - 1)
            for name, leaf in draws.slopes.items()
        }
        linear = linear_signal(model, other_slopes, draws.deviations)
        plain = score_gradient(model, minus_others(draws.log_weights), draws.deviations)
        noisy = score_gradient(model, minus_others(linear), draws.deviations)
        mean = through_means(model, logits, mean_slopes)
        control = {name: leaf - mean[name] for name, leaf in noisy.items()}

        ascent = {
            name: leaf + state[name].value(-1.0) * control[name] for name, leaf in plain.items()
        }
        state = {name: state[name].update(leaf, control[name]) for name, leaf in plain.items()}
        return LogitGradient(ascent, draws.log_weights, draws.model_grads), state
