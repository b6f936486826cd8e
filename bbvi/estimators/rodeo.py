"""RODEO: control variates for discrete latents from a Stein operator and a learned network."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bbvi._types import PyTree
from bbvi.baselines import MovingAverage, MovingAverageState, minus_others
from bbvi.estimators.base import Cost
from bbvi.estimators.coefficient import DECAY, Coefficient
from bbvi.estimators.discrete import BySite, DiscreteEstimator, DiscreteModel, LogitGradient
from bbvi.estimators.first_order import Draws, linear_signal, score_gradient, uniform_draws
from bbvi.estimators.rebar import OPTIMIZER, add_multiples, descend

# Units of the hidden layer: the network has two inputs only.
WIDTH = 32
# Of scales: they follow the fit, and need no precision.
MOMENTS = MovingAverage(DECAY)


class Scales(NamedTuple):
    """What gives the network inputs and outputs of order one: averages over past steps.

    Attributes:
      center: mean of f.
      spread: mean distance from it, over draws and components.
      noise: the same within a component.
      change: mean size of the linear change of f from draw to draw.
    """

    center: Array
    spread: Array
    noise: Array
    change: Array


class Others(NamedTuple):
    """What the other draws tell of f at each draw.

    Attributes:
      signals: mean of f at them, ``[K, C]``.
      changes: mean of the linear change of f from them to the draw, ``[K, C]``.
      slopes: mean of the slopes at them, by site.
    """

    signals: Array
    changes: Array
    slopes: BySite


class RodeoState(NamedTuple):
    """What is learned from past steps.

    Attributes:
      coefficients: of the control variates, by site.
      network: its parameters.
      opt_state: of their optimizer.
      moments: what ``Scales`` are made of.
    """

    coefficients: dict[str, Coefficient]
    network: PyTree
    opt_state: optax.OptState
    moments: MovingAverageState


@dataclasses.dataclass(frozen=True)
class Rodeo(DiscreteEstimator):
    r"""Leave-one-out score function with control variates from a Stein operator.

    The mean under :math:`q` of

    .. math:: (A h)(b) = \sum_i q(b_i \text{ flipped}) \big(h(b \text{ with } b_i \text{ flipped})
                         - h(b)\big)

    is zero for every function h. For draw :math:`b_k`, h comes from a network of two numbers,
    :math:`\bar f_{-k}` and :math:`\bar f'_{-k} \cdot b - \overline{(f' \cdot b)}_{-k}`: the mean f,
    log p - log q, of the other draws, and the mean linear change of f from them to b. It has two
    outputs :math:`h_k, \tilde h_k`, one for the noise of the baseline, one for that of the draw:

    .. math::
      g = \frac1K \sum_k \Big(f_k - \frac{1}{K-1} \sum_{j \ne k} \big(f_j + \alpha (A h_j)(b_j)\big)
          \Big) s(b_k) + \alpha (A \tilde h_k s)(b_k), \qquad s = \nabla_\eta \log q

    A flip moves the linear change by one slope, so that all this takes :math:`D + 1` values of the
    network for each draw of D latents, and none of ``log_joint``. A network can learn where slopes
    mislead, which a multiple of a Taylor expansion as in ``DoubleCv`` cannot.

    Unbiased: the network is trained to lower :math:`E |g|^2` after it has served, and h does not
    depend on the draw that A moves. For each site :math:`\alpha`, in [0, 1] and 0 at the start, is
    the coefficient that would have been best in past steps: a network that is not, or no more, good
    does no harm. Signals are those of the connected component of the model; all components and
    sites share the network. For more than two draws the paper averages outputs of the network
    rather than its inputs, at K - 1 times the cost.

    For Bernoulli sites, if ``log_joint`` is differentiable between 0 and 1.

    Cost: ``num_samples`` values and slopes of ``log_joint``.

    Args:
      num_samples: K, draws per step, at least 2.

    Raises:
      ValueError: a single draw; sites other than Bernoulli; a ``log_joint`` that is not
        differentiable in real values of the latents; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.0, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.Rodeo(2),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(abs(float(v)), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.0, 2.0]

    References:
      Shi, Zhou, Hwang, Titsias and Mackey (2022), Gradient Estimation with Discrete Stein
      Operators.
    """

    num_samples: int = 4

    is_relaxed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2:
            raise ValueError(
                "Rodeo compares each draw with the others, so num_samples must be at least 2, got "
                f"{self.num_samples}; use MuProp for a single draw."
            )

    @property
    def cost(self) -> Cost:
        return Cost(gradients=self.num_samples)

    def init_logits(self, model: DiscreteModel, logits: BySite) -> RodeoState:
        network = init_network()
        return RodeoState(
            {site.name: Coefficient.init() for site in model.sites},
            network,
            OPTIMIZER.init(network),
            MOMENTS.init((len(Scales._fields),), None),
        )

    def logit_gradient(
        self, noise: BySite, model: DiscreteModel, logits: BySite, state: RodeoState
    ) -> tuple[LogitGradient, RodeoState]:
        draws = uniform_draws(model, logits, noise, with_slopes=True)
        signals = minus_others(draws.log_weights)
        plain = score_gradient(model, signals, draws.deviations)
        others, scales = other_draws(model, draws), Scales(*state.moments.value())
        control, pullback = jax.vjp(
            lambda network: stein_control(network, others, scales, model, draws), state.network
        )
        multiples = {name: c.value() for name, c in state.coefficients.items()}
        ascent = add_multiples(plain, multiples, control)

        # The network is trained as if its coefficient were 1: at 0 it would learn nothing.
        units = scales.noise**2
        (grads,) = pullback({n: _divide(leaf + control[n], units) for n, leaf in plain.items()})
        network, opt_state = descend(grads, state.opt_state, state.network)
        distances = draws.log_weights - jnp.mean(draws.log_weights)
        found = Scales(
            jnp.mean(draws.log_weights),
            *(jnp.mean(jnp.abs(leaf)) for leaf in (distances, signals, others.changes)),
        )
        _, moments = MOMENTS(state.moments, jnp.stack(found)[None], None)
        coefficients = {n: c.update(plain[n], control[n]) for n, c in state.coefficients.items()}
        return (
            LogitGradient(ascent, draws.log_weights, draws.model_grads),
            RodeoState(coefficients, network, opt_state, moments),
        )


def other_draws(model: DiscreteModel, draws: Draws) -> Others:
    """Means over the draws other than each."""
    slopes = {name: _mean_of_others(leaf) for name, leaf in draws.slopes.items()}
    at_themselves = _mean_of_others(linear_signal(model, draws.slopes, draws.values))
    changes = linear_signal(model, slopes, draws.values) - at_themselves
    return Others(_mean_of_others(draws.log_weights), changes, slopes)


def stein_control(
    network: PyTree, others: Others, scales: Scales, model: DiscreteModel, draws: Draws
) -> BySite:
    r"""The control variate, of mean zero, in units of the noise.

    Its second part follows from the first, since only one entry of the score s moves at a flip:

    .. math:: (A h s)_i = s_i \big(A h - h(b \text{ with } b_i \text{ flipped})\big)
    """

    def both(signals: Array, changes: Array) -> Array:
        return apply_network(network, signals, _divide(changes, scales.change))

    signals = _divide(others.signals - scales.center, scales.spread)
    at_draws = both(signals, others.changes)
    first, second = model.spread(at_draws[..., 0]), model.spread(at_draws[..., 1])
    spread_signals, spread_changes = model.spread(signals), model.spread(others.changes)
    for_baseline, for_draw, flipped = {}, {}, {}
    for name, b in draws.values.items():
        changes = spread_changes[name] + others.slopes[name] * (1 - 2 * b)
        at_flips = both(spread_signals[name], changes)
        rate = jnp.abs(draws.deviations[name])  # the probability of the other value
        for_baseline[name] = rate * (at_flips[..., 0] - first[name])
        for_draw[name] = rate * (at_flips[..., 1] - second[name])
        flipped[name] = at_flips[..., 1]
    whole = model.spread(model.total(for_draw) - _mean_of_others(model.total(for_baseline)))
    return {
        name: scales.noise * jnp.mean((whole[name] - leaf) * draws.deviations[name], axis=0)
        for name, leaf in flipped.items()
    }


def init_network() -> dict[str, Array]:
    """Parameters at which the network is zero."""
    # The estimator has no key of its own; from which parameters it starts matters little.
    hidden, bias = jnp.split(jax.random.normal(jax.random.key(0), (3, WIDTH)), [2])
    return {"hidden": hidden, "bias": bias[0], "output": jnp.zeros((WIDTH, 2))}


def apply_network(params: PyTree, signals: Array, changes: Array) -> Array:
    """The two outputs ``[..., 2]`` at inputs ``[...]``: one hidden layer."""
    inputs = jnp.stack([signals, changes], axis=-1)
    bias = params["bias"].reshape(*[1 for _ in signals.shape], WIDTH)
    return jax.nn.leaky_relu(inputs @ params["hidden"] + bias, 0.3) @ params["output"]


def _mean_of_others(leaf: Array) -> Array:
    return leaf - minus_others(leaf)


def _divide(value: Array, scale: Array) -> Array:
    """In units of a scale; zero before there is one."""
    return jnp.where(scale > 0, value / jnp.where(scale > 0, scale, 1), 0)
