"""RELAX: REBAR plus a network that learns what the relaxed signal leaves."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bbvi._types import Key, PyTree, Site
from bbvi.baselines import MovingAverage, MovingAverageState, check_network, minus_others
from bbvi.estimators.base import Cost
from bbvi.estimators.coefficient import DECAY, Coefficient
from bbvi.estimators.discrete import BySite, DiscreteEstimator, DiscreteModel, LogitGradient
from bbvi.estimators.rebar import (
    OPTIMIZER,
    RebarState,
    add_multiples,
    check_temperature,
    control_variate,
    descend,
    draw_pairs,
    plain_gradient,
    signal_control,
)
from bbvi.estimators.relaxations import relax

# Mean size of past signals, in whose units the network is learned.
SIZE = MovingAverage(DECAY)


class RelaxState(NamedTuple):
    """What is learned from past steps.

    Attributes:
      signal: coefficients and temperature of the relaxed signal.
      coefficients: of the network's control variate, by site.
      network: its parameters.
      opt_state: of their optimizer.
      size: mean absolute learning signal.
    """

    signal: RebarState
    coefficients: dict[str, Coefficient]
    network: PyTree
    opt_state: optax.OptState
    size: MovingAverageState


@dataclasses.dataclass(frozen=True)
class Relax(DiscreteEstimator):
    r"""REBAR with a free-form control variate beside the relaxed signal.

    As in ``Rebar``, z are perturbed logits, :math:`b = H(z)` the draw and :math:`\tilde z` another
    draw of z given b:

    .. math::
      g = \big(f(b) - c(\tilde z)\big) \nabla_\eta \log q(b)
          + \nabla_\eta c(z) - \nabla_\eta c(\tilde z), \qquad
      c(z) = \lambda f(\sigma(z / \tau)) + \kappa v\, r_\psi(\sigma(z), \sigma(\eta))

    averaged over the draws, each with the mean of the others' signals as baseline. The network
    :math:`r_\psi` sees one connected component of the model at a time: its relaxed latents and
    their probabilities, which tell one datum from another. v is the mean size of past signals.
    One step of Adam per step of the fit moves :math:`\psi` and :math:`\tau` along the gradient of
    the squared estimate; :math:`\lambda` in [0, 2] and :math:`\kappa` in [0, 1] are least-squares
    coefficients for each site. All of them come from past steps, and what they multiply has mean
    zero: unbiased. A network that does no good gets :math:`\kappa = 0`.

    ``log_joint`` must be twice differentiable in the latents between their values. Categorical
    sites are ``bbvi.OneHotCategorical``.

    Cost: ``num_samples`` values of ``log_joint`` and twice as many gradients, with as many
    Hessian-vector products for the temperature.

    Args:
      num_samples: S, draws per step.
      network: any hashable object with ``init(key, inputs) -> params`` and ``apply(params, inputs)
        -> []``, such as a ``flax.linen`` module. ``inputs`` is a vector of length 2 n, for n latent
        entries in a component (K for each one-hot vector): first the relaxed latents, then the
        probabilities, site by site in the order of ``guide.sites()``. The same network serves all
        components; entries that the smaller ones lack are zero. None: one hidden layer of 32 units.
      temperature: initial value of :math:`\tau`, positive.

    Raises:
      TypeError: ``network`` is not one, or not hashable.
      ValueError: a temperature that is not positive; a network that does not return a scalar; sites
        that are not discrete, or draw category numbers; a ``log_joint`` without a derivative
        between the values; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: x @ z["b"],
      ...     bbvi.MeanField({"b": bbvi.Bernoulli((3,))}),
      ...     jax.numpy.array([1.0, 0.0, -2.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.Relax(2),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(abs(float(v)), 1) for v in result.params.guide.families["b"]["logits"]]
      [1.0, 0.0, 2.0]

    References:
      Grathwohl, Choi, Wu, Roeder and Duvenaud (2018), Backpropagation through the Void: Optimizing
      Control Variates for Black-Box Gradient Estimation.
    """

    num_samples: int = 4
    network: Any = None
    temperature: float = 0.5

    is_binary = False
    is_relaxed = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self)
        if self.network is not None:
            check_network(self.network)

    @property
    def cost(self) -> Cost:
        return Cost(self.num_samples, 2 * self.num_samples)

    def draw_sites(self, key: Key, sites: tuple[Site, ...]) -> BySite:
        return draw_pairs(key, sites, self.num_samples)

    def init_logits(self, model: DiscreteModel, logits: BySite) -> RelaxState:
        inputs = jnp.zeros(2 * component_entries(model).shape[1])
        # The estimator has no key of its own; from which parameters it starts matters little.
        params = self._network.init(jax.random.key(0), inputs)
        # Weakly typed ones would compile the loop twice.
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
        check_output(jax.eval_shape(self._network.apply, params, inputs), inputs)
        return RelaxState(
            RebarState.init(model, self.temperature),
            {site.name: Coefficient.init() for site in model.sites},
            params,
            OPTIMIZER.init(params),
            SIZE.init((), None),
        )

    def logit_gradient(
        self, noise: BySite, model: DiscreteModel, logits: BySite, state: RelaxState
    ) -> tuple[LogitGradient, RelaxState]:
        plain, indices = plain_gradient(noise, model, logits)
        relaxed, slope = signal_control(noise, indices, model, logits, state.signal.log_temperature)

        def by_network(params: PyTree) -> BySite:
            return control_variate(
                lambda values: state.size.value() * self._apply(params, values, model, logits),
                noise,
                indices,
                model,
                logits,
                temperature=1.0,
            )

        learned, pullback = jax.vjp(by_network, state.network)
        multiples = {name: c.value() for name, c in state.coefficients.items()}
        without_network = add_multiples(plain.ascent, state.signal.multiples(), relaxed)
        without_relaxed = add_multiples(plain.ascent, multiples, learned)
        ascent = add_multiples(without_network, multiples, learned)
        # The network is trained as if its coefficient were 1: at 0 it would learn nothing.
        (grads,) = pullback(jax.tree.map(jnp.add, without_network, learned))
        network, opt_state = descend(grads, state.opt_state, state.network)
        signal = minus_others(plain.log_weights) if self.num_samples > 1 else plain.log_weights
        _, size = SIZE(state.size, jnp.mean(jnp.abs(signal))[None], None)
        state = RelaxState(
            state.signal.update(without_relaxed, relaxed, slope, self.temperature),
            {n: c.update(without_network[n], learned[n]) for n, c in state.coefficients.items()},
            network,
            opt_state,
            size,
        )
        return plain._replace(ascent=ascent), state

    @property
    def _network(self) -> Any:
        return Perceptron() if self.network is None else self.network

    def _apply(self, params: PyTree, values: BySite, model: DiscreteModel, logits: BySite) -> Array:
        """The network's output ``[S, C]`` at relaxed latents."""
        fixed = {
            site.name: relax(site, jax.lax.stop_gradient(logits[site.name])[None], 1.0)
            for site in model.sites
        }
        table = component_entries(model)

        def by_component(values: BySite) -> Array:
            parts = [values[site.name].reshape(len(values[site.name]), -1) for site in model.sites]
            padded = jnp.concatenate([*parts, jnp.zeros((len(parts[0]), 1))], axis=1)
            return padded[:, table]

        latents, probs = by_component(values), by_component(fixed)
        probs = jnp.broadcast_to(probs, latents.shape)
        inputs = jnp.concatenate([latents, probs], axis=-1)
        return jax.vmap(jax.vmap(functools.partial(self._network.apply, params)))(inputs)


@dataclasses.dataclass(frozen=True)
class Perceptron:
    """One hidden layer; its output is zero at first."""

    width: int = 32

    def init(self, key: Key, inputs: Array) -> PyTree:
        """Parameters for inputs of this length."""
        hidden = jax.random.normal(key, (len(inputs), self.width)) / jnp.sqrt(len(inputs))
        zeros = jnp.zeros(self.width)
        return {"hidden": hidden, "bias": zeros, "output": zeros, "constant": jnp.zeros(())}

    def apply(self, params: PyTree, inputs: Array) -> Array:
        """The output, a scalar."""
        units = jnp.tanh(inputs @ params["hidden"] + params["bias"])
        return units @ params["output"] + params["constant"]


def component_entries(model: DiscreteModel) -> np.ndarray:
    """For each component the places ``[C, n]`` of its latent entries among those of all sites.

    Where a component has fewer than the largest, the place is one past the end.
    """
    labels = []
    for site in model.sites:
        label = np.zeros(site.block_shape, int)
        if model.components is not None:
            found = model.components.sites[site.name]
            label = np.broadcast_to(found.labels, found.shape)
        labels.append(np.repeat(label.ravel(), math.prod(site.shape or ()) // label.size))
    label = np.concatenate(labels)
    sizes = np.bincount(label)
    order = np.argsort(label, kind="stable")
    table = np.full((len(sizes), sizes.max()), len(label))
    table[np.arange(sizes.max())[None] < sizes[:, None]] = order
    return table


def check_output(output: Any, inputs: Array) -> None:
    """Raise unless the network returns one floating-point scalar."""
    leaves = jax.tree.leaves(output)
    got = [leaf.shape for leaf in leaves]
    if got != [()] or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise ValueError(
            "the network of Relax must return one floating-point scalar, of shape (), for inputs "
            f"of shape {inputs.shape}; got shapes {got}. Take the only entry of a last layer of "
            "one unit: nn.Dense(1)(h)[0]."
        )
