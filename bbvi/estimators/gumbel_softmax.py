"""Gumbel-softmax, or Concrete: pathwise gradients of relaxed draws."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from bbvi._types import Key, PyTree, Site
from bbvi.estimators.base import BiasedEstimator, Cost
from bbvi.estimators.discrete import BySite, DiscreteEstimator, DiscreteModel, LogitGradient
from bbvi.estimators.first_order import hard_draws, signal_slopes
from bbvi.estimators.rebar import check_temperature
from bbvi.estimators.relaxations import harden, perturb, positive_uniforms, relax


@dataclasses.dataclass(frozen=True, repr=False)
class GumbelSoftmax(BiasedEstimator, DiscreteEstimator):
    r"""Gumbel-softmax (Concrete): the pathwise gradient of f at relaxed draws.

    With Gumbel noise :math:`\epsilon`, or logistic noise for Bernoullis, a draw is the hard limit
    of its relaxation at temperature :math:`\tau`,

    .. math::
      b = \arg\max(\eta + \epsilon), \qquad
      y = \mathrm{softmax}\big((\eta + \epsilon) / \tau\big), \qquad
      g = \frac1S \sum_s \frac{\partial y_s}{\partial \eta} f'(y_s)

    with f = log p - log q, its logits held fixed. With ``hard=True`` the slopes are those at the
    hard draws, :math:`f'(b_s)`, which is known as straight-through Gumbel-softmax.

    Biased: it is the gradient of another expectation, that of f at relaxed draws (with
    ``hard=True`` of none). The bias falls with the temperature, and the variance grows. The loss
    and gradients of learned model parameters are those of the hard draws: a bound, and not biased.

    For Bernoulli and ``OneHotCategorical`` sites, if ``log_joint`` is differentiable between the
    values of its latents.

    Cost: ``num_samples`` values of ``log_joint``, at the hard draws, and as many with slopes, at
    the relaxed ones; with ``hard=True`` only ``num_samples`` with slopes.

    Args:
      num_samples: S, draws per step.
      temperature: :math:`\tau`, positive.
      hard: slopes at the hard draws instead of the relaxed ones.

    Raises:
      ValueError: a temperature that is not positive; sites of another kind; a ``log_joint`` that
        is not differentiable in real values of the latents; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.0, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.GumbelSoftmax(4, temperature=0.5),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(abs(float(v)), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.0, 2.0]

    References:
      Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax; Maddison, Mnih
      and Teh (2017), The Concrete Distribution: A Continuous Relaxation of Discrete Random
      Variables.
    """

    num_samples: int = 1
    temperature: float = 0.5
    hard: bool = dataclasses.field(default=False, kw_only=True)

    is_binary: ClassVar[bool] = False
    is_relaxed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self)

    @property
    def cost(self) -> Cost:
        return Cost(0 if self.hard else self.num_samples, self.num_samples)

    def draw_sites(self, key: Key, sites: tuple[Site, ...]) -> BySite:
        keys = jax.random.split(key, len(sites))
        return {
            site.name: positive_uniforms(k, (self.num_samples, *(site.shape or ())))
            for site, k in zip(sites, keys, strict=True)
        }

    def logit_gradient(
        self, noise: BySite, model: DiscreteModel, logits: BySite, state: PyTree
    ) -> tuple[LogitGradient, PyTree]:
        def soften(logits: BySite) -> tuple[BySite, BySite]:
            z = {s.name: perturb(s, noise[s.name], logits[s.name]) for s in model.sites}
            relaxed = {s.name: relax(s, z[s.name], self.temperature) for s in model.sites}
            return relaxed, {s.name: harden(s, z[s.name]) for s in model.sites}

        relaxed, pullback, indices = jax.vjp(soften, logits, has_aux=True)
        draws = hard_draws(model, logits, indices, with_slopes=self.hard)
        slopes = draws.slopes
        if not self.hard:
            slopes = signal_slopes(model.evaluate(relaxed, with_slopes=True).slopes, logits)
        (ascent,) = pullback({name: leaf / self.num_samples for name, leaf in slopes.items()})
        return LogitGradient(ascent, draws.log_weights, draws.model_grads), state
