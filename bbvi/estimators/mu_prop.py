"""MuProp: the score function with a Taylor expansion about the guide's mean."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from bbvi.baselines import minus_others
from bbvi.estimators.base import Cost
from bbvi.estimators.coefficient import Coefficient
from bbvi.estimators.discrete import BySite, DiscreteEstimator, DiscreteModel, LogitGradient
from bbvi.estimators.first_order import (
    linear_signal,
    mean_values,
    score_gradient,
    signal_slopes,
    through_means,
    uniform_draws,
)
from bbvi.estimators.relaxations import relaxed_log_prob


@dataclasses.dataclass(frozen=True)
class MuProp(DiscreteEstimator):
    r"""Score function with the Taylor expansion of the log joint about the mean as baseline.

    With :math:`f_s` log p - log q of draw :math:`b_s`, and the slope :math:`f'(\mu)` at the mean,

    .. math::
      g = \frac1S \sum_s \big(f_s - a_s + \alpha f'(\mu) \cdot (b_s - \mu)\big) (b_s - \mu)
          - \alpha \frac{\partial \mu}{\partial \eta} f'(\mu)

    The expansion does not depend on the draws, so that the other draws may serve as a baseline
    besides: :math:`a_s` is the mean of their :math:`f_j + \alpha f'(\mu) \cdot (b_j - \mu)`, and
    :math:`f(\mu)` for a single draw, as in the paper. There :math:`\alpha = -1`, which leaves no
    noise where f is linear, and may be worse than nothing where it is not. Here it is the one that
    would have been best, by least squares, in past steps, for each site and in [-1, 1], and 0 at
    the start. Signals are those of the connected component.

    Unbiased, for Bernoulli sites and for ``OneHotCategorical`` ones, if ``log_joint`` is
    differentiable between the values of its latents.

    Cost: ``num_samples`` values of ``log_joint`` and one slope.

    Args:
      num_samples: S, draws per step.

    Raises:
      ValueError: sites of another kind; a ``log_joint`` that is not differentiable in real values
        of the latents; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.0, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.MuProp(2),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(float(v), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.0, -2.0]

    References:
      Gu, Levine, Sutskever and Mnih (2016), MuProp: Unbiased Backpropagation for Stochastic Neural
      Networks.
    """

    num_samples: int = 4

    is_binary: ClassVar[bool] = False
    is_relaxed: ClassVar[bool] = True

    @property
    def cost(self) -> Cost:
        return Cost(values=self.num_samples, gradients=1)

    def init_logits(self, model: DiscreteModel, logits: BySite) -> dict[str, Coefficient]:
        return {site.name: Coefficient.init() for site in model.sites}

    def logit_gradient(
        self, noise: BySite, model: DiscreteModel, logits: BySite, state: dict[str, Coefficient]
    ) -> tuple[LogitGradient, dict[str, Coefficient]]:
        draws = uniform_draws(model, logits, noise, with_slopes=False)
        means = jax.tree.map(lambda leaf: leaf[None], mean_values(model, logits))
        at_mean = model.evaluate(means, with_slopes=True)
        slopes = signal_slopes(at_mean.slopes, logits)
        linear = linear_signal(model, slopes, draws.deviations)
        if self.num_samples > 1:
            signals, linear = minus_others(draws.log_weights), minus_others(linear)
        else:
            log_q = {
                s.name: relaxed_log_prob(s, means[s.name], logits[s.name]) for s in model.sites
            }
            signals = draws.log_weights - (at_mean.log_p - model.total(log_q))
        plain = score_gradient(model, signals, draws.deviations)
        noisy = score_gradient(model, linear, draws.deviations)
        mean = through_means(model, logits, jax.tree.map(lambda leaf: leaf[0], slopes))
        control = {name: leaf - mean[name] for name, leaf in noisy.items()}

        ascent = {
            name: leaf + state[name].value(-1.0) * control[name] for name, leaf in plain.items()
        }
        # The expansion's own gradient does not depend on the draws, so the control variate has no
        # covariance with it; without it, the coefficient is exact where f is linear.
        state = {
            name: state[name].update(leaf - mean[name], control[name])
            for name, leaf in plain.items()
        }
        return LogitGradient(ascent, draws.log_weights, draws.model_grads), state
