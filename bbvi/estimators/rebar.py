"""REBAR: the learning signal at relaxed draws as a control variate of the discrete one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bbvi._types import Key, PyTree, Site
from bbvi.baselines import minus_others
from bbvi.estimators.base import Cost
from bbvi.estimators.coefficient import Coefficient
from bbvi.estimators.discrete import (
    BySite,
    DiscreteEstimator,
    DiscreteModel,
    LogitGradient,
    log_probs,
    scores,
)
from bbvi.estimators.relaxations import (
    harden,
    perturb,
    perturb_given,
    positive_uniforms,
    relax,
    relaxed_log_prob,
)

# A function of relaxed latents {site: [S, *site.shape]}, by component [S, C].
OfRelaxed: TypeAlias = Callable[[BySite], Array]
# Relaxed values lie nearer to the middle than draws: the best multiple is often above one.
MAX_COEFFICIENT = 2.0
# The learned temperature stays within a factor 20 of the initial one.
MAX_LOG_CHANGE = 3.0
# Squared gradients may be tiny, and what matters is their sign: no epsilon to speak of.
OPTIMIZER = optax.adam(1e-2, eps=1e-16)


class RebarState(NamedTuple):
    """What is learned from past steps.

    Attributes:
      coefficients: of the control variate, by site.
      log_temperature: ``[]``.
      opt_state: of the temperature's optimizer.
    """

    coefficients: dict[str, Coefficient]
    log_temperature: Array
    opt_state: optax.OptState

    @staticmethod
    def init(model: DiscreteModel, temperature: float) -> RebarState:
        log_temperature = jnp.log(jnp.asarray(temperature, jnp.zeros(()).dtype))
        coefficients = {site.name: Coefficient.init() for site in model.sites}
        return RebarState(coefficients, log_temperature, OPTIMIZER.init(log_temperature))

    def multiples(self) -> BySite:
        """The coefficients to use."""
        return {name: c.value(high=MAX_COEFFICIENT) for name, c in self.coefficients.items()}

    def update(self, rest: BySite, control: BySite, slope: BySite, initial: float) -> RebarState:
        """The state after one more step.

        Args:
          rest: the estimate without the control variate.
          control: the control variate.
          slope: its derivative in the log temperature.
          initial: the initial temperature.
        """
        multiples = self.multiples()
        by_temperature = sum(
            multiples[name] * jnp.vdot(leaf + multiples[name] * control[name], slope[name])
            for name, leaf in rest.items()
        )
        log_temperature, opt_state = descend(by_temperature, self.opt_state, self.log_temperature)
        low, high = math.log(initial) - MAX_LOG_CHANGE, math.log(initial) + MAX_LOG_CHANGE
        coefficients = {
            name: c.update(rest[name], control[name]) for name, c in self.coefficients.items()
        }
        return RebarState(coefficients, jnp.clip(log_temperature, low, high), opt_state)


@dataclasses.dataclass(frozen=True)
class Rebar(DiscreteEstimator):
    r"""The score-function gradient with a relaxed copy of the signal as control variate.

    With logistic or Gumbel noise, :math:`z = \eta + g` and :math:`b = H(z)`, the argmax (for one
    binary latent :math:`1[z > 0]`). :math:`\tilde z` is another draw of z given b, from noise of
    its own, and :math:`c(z) = f(\sigma(z / \tau))` the learning signal f = log p - log q at a
    point between the values:

    .. math::
      g = \big(f(b) - \lambda c(\tilde z)\big) \nabla_\eta \log q(b)
          + \lambda \nabla_\eta c(z) - \lambda \nabla_\eta c(\tilde z)

    averaged over the draws. The derivative of :math:`\tilde z` is taken at fixed noise and fixed
    b, and that of f only through its argument. What :math:`\lambda` multiplies has mean zero for
    every :math:`\tau`: unbiased. For each site :math:`\lambda`, in [0, 2], is the least-squares
    coefficient of past steps, and :math:`\tau` follows the gradient of the squared estimate; both
    serve from the next step on. With several draws the signals :math:`f(b) - \lambda c(\tilde z)`
    of the others are the baseline of each: they are independent of its score, whose mean is zero,
    so that this too is unbiased. f is that of an entry's connected component of the model.

    ``log_joint`` must be twice differentiable in the latents between their values. Categorical
    sites are ``bbvi.OneHotCategorical``.

    Cost: ``num_samples`` values of ``log_joint`` and twice as many gradients, with as many
    Hessian-vector products for the temperature.

    Args:
      num_samples: S, draws per step.
      temperature: initial value of :math:`\tau`, positive.

    Raises:
      ValueError: a temperature that is not positive; sites that are not discrete, or draw category
        numbers; a ``log_joint`` without a derivative between the values; an objective other than
        the ELBO.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.0, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.Rebar(2),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(abs(float(v)), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.0, 2.0]

    References:
      Tucker, Mnih, Maddison, Lawson and Sohl-Dickstein (2017), REBAR: Low-Variance, Unbiased
      Gradient Estimates for Discrete Latent Variable Models.
    """

    num_samples: int = 4
    temperature: float = 0.5

    is_binary = False
    is_relaxed = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self)

    @property
    def cost(self) -> Cost:
        return Cost(self.num_samples, 2 * self.num_samples)

    def draw_sites(self, key: Key, sites: tuple[Site, ...]) -> BySite:
        return draw_pairs(key, sites, self.num_samples)

    def init_logits(self, model: DiscreteModel, logits: BySite) -> RebarState:
        return RebarState.init(model, self.temperature)

    def logit_gradient(
        self, noise: BySite, model: DiscreteModel, logits: BySite, state: RebarState
    ) -> tuple[LogitGradient, RebarState]:
        plain, indices = plain_gradient(noise, model, logits)
        control, slope = signal_control(noise, indices, model, logits, state.log_temperature)
        ascent = add_multiples(plain.ascent, state.multiples(), control)
        state = state.update(plain.ascent, control, slope, self.temperature)
        return plain._replace(ascent=ascent), state


def check_temperature(estimator: Any) -> None:
    """Raise unless the estimator's temperature is a positive number."""
    temperature = estimator.temperature
    if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
        raise ValueError(
            f"{type(estimator).__name__} temperature must be a positive number, got "
            f"{temperature!r}."
        )


def draw_pairs(key: Key, sites: tuple[Site, ...], num_samples: int) -> BySite:
    """Uniforms ``{site: [2, S, *site.shape]}``: of z, and of its copy given the draw."""
    keys = jax.random.split(key, len(sites))
    return {
        site.name: positive_uniforms(k, (2, num_samples, *(site.shape or ())))
        for site, k in zip(sites, keys, strict=True)
    }


def plain_gradient(
    noise: BySite, model: DiscreteModel, logits: BySite
) -> tuple[LogitGradient, BySite]:
    """The score-function gradient, and its draws as indices."""
    indices = {
        site.name: harden(site, perturb(site, noise[site.name][0], logits[site.name]))
        for site in model.sites
    }
    evaluation = model.evaluate(model.values(indices))
    log_weights = evaluation.log_p - model.total(log_probs(logits, indices))
    ascent = times_score(log_weights, indices, model, logits)
    return LogitGradient(ascent, log_weights, evaluation.model_grads), indices


def times_score(signal: Array, indices: BySite, model: DiscreteModel, logits: BySite) -> BySite:
    """Mean of signals ``[S, C]`` times the scores of their draws.

    Each draw's baseline is the mean of the others' signals; a single draw has none.
    """
    by_block = model.spread(minus_others(signal) if len(signal) > 1 else signal)

    def one(a: Array, score: Array) -> Array:
        return jnp.mean(a.reshape(a.shape + (1,) * (score.ndim - a.ndim)) * score, axis=0)

    return {name: one(by_block[name], leaf) for name, leaf in scores(logits, indices).items()}


def control_variate(
    function: OfRelaxed,
    noise: BySite,
    indices: BySite,
    model: DiscreteModel,
    logits: BySite,
    temperature: Array | float,
) -> BySite:
    """Mean zero: the derivative of E[c(z)] along the draws, minus that through z given b."""
    num_samples = jax.tree.leaves(indices)[0].shape[0]

    def difference(logits: BySite) -> tuple[Array, Array]:
        def both(site: Site) -> Array:
            (u, v), eta = noise[site.name], logits[site.name]
            z = perturb(site, u, eta), perturb_given(site, indices[site.name], v, eta)
            return relax(site, jnp.concatenate(z), temperature)

        free, given = jnp.split(function({site.name: both(site) for site in model.sites}), 2)
        return jnp.sum(free - given) / num_samples, given

    slopes, given = jax.grad(difference, has_aux=True)(logits)
    by_score = times_score(given, indices, model, logits)
    return jax.tree.map(jnp.subtract, slopes, by_score)


def signal_control(
    noise: BySite, indices: BySite, model: DiscreteModel, logits: BySite, log_temperature: Array
) -> tuple[BySite, BySite]:
    """The control variate of the relaxed signal, and its derivative in the log temperature."""
    fixed = jax.lax.stop_gradient(logits)

    def signal(values: BySite) -> Array:
        log_q = {s.name: relaxed_log_prob(s, values[s.name], fixed[s.name]) for s in model.sites}
        return model.log_p(values, model.args) - model.total(log_q)

    def control(log_temperature: Array) -> BySite:
        temperature = jnp.exp(log_temperature)
        return control_variate(signal, noise, indices, model, logits, temperature)

    return jax.jvp(control, (log_temperature,), (jnp.ones_like(log_temperature),))


def add_multiples(gradient: BySite, multiples: BySite, control: BySite) -> BySite:
    """A gradient plus a multiple of a control variate for each site."""
    return {name: leaf + multiples[name] * control[name] for name, leaf in gradient.items()}


def descend(
    grads: PyTree, opt_state: optax.OptState, params: PyTree
) -> tuple[PyTree, optax.OptState]:
    """One step of the optimizer; none where squares of a huge gradient overflow."""
    updates, new_state = OPTIMIZER.update(grads, opt_state, params)
    new = optax.apply_updates(params, updates), new_state
    is_finite = jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new)]).all()
    return jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, (params, opt_state))
