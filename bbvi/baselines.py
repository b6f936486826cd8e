"""Baselines of the score-function estimator; none ever sees the sample it is subtracted from."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bbvi._optimizers import Optimizer
from bbvi._types import Data, PyTree


class Baseline(abc.ABC):
    """Subtracted from the learning signal: leaves the mean gradient alone, changes its variance.

    Attributes:
      min_samples: fewest draws a step must take.

    Example:
      >>> import dataclasses, bbvi, jax.numpy as jnp
      >>> @dataclasses.dataclass(frozen=True)
      ... class Constant(bbvi.Baseline):
      ...     value: float
      ...
      ...     def __call__(self, state, signal, x):
      ...         return jnp.full_like(signal, self.value), state
      >>> bbvi.ScoreFunction(4, Constant(-10.0)).baseline
      Constant(value=-10.0)
    """

    min_samples: ClassVar[int] = 1

    def init(self, shape: tuple[int, ...], x: Data) -> PyTree:
        """State before the first step, for a site whose blocks have this shape."""
        del shape, x
        return ()

    @abc.abstractmethod
    def __call__(self, state: PyTree, signal: Array, x: Data) -> tuple[Array, PyTree]:
        """Baselines for the signals ``[S, *shape]`` of a site, and the state for the next step.

        Entry s must not depend on ``signal[s]``: else the gradient is biased.
        """


@dataclasses.dataclass(frozen=True)
class NoBaseline(Baseline):
    """No baseline: plain REINFORCE.

    Example:
      >>> import bbvi
      >>> bbvi.ScoreFunction(num_samples=4, baseline=bbvi.NoBaseline()).num_samples
      4

    References:
      Williams (1992), Simple Statistical Gradient-Following Algorithms for Connectionist
      Reinforcement Learning.
    """

    def __call__(self, state: PyTree, signal: Array, x: Data) -> tuple[Array, PyTree]:
        return jnp.zeros_like(signal), state


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Baseline):
    r"""The mean of the other samples' signals, :math:`b_s = \frac{1}{S-1}\sum_{j \ne s} f_j`.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> bbvi.LeaveOneOut()((), jnp.array([1.0, 2.0, 6.0]), None)[0].tolist()
      [4.0, 3.5, 1.5]

    References:
      Salimans and Knowles (2014), On Using Control Variates with Stochastic Approximation for
      Variational Bayes; Kool, van Hoof and Welling (2019), Buy 4 REINFORCE Samples, Get a
      Baseline for Free!
    """

    min_samples: ClassVar[int] = 2

    def __call__(self, state: PyTree, signal: Array, x: Data) -> tuple[Array, PyTree]:
        return signal - minus_others(signal), state


def minus_others(signal: Array) -> Array:
    """Each draw's signal minus the mean of the other draws'; draws along the first axis."""
    # Centre first: sum - f_s would cancel badly when the signals are large and close.
    centred = signal - jnp.mean(signal, axis=0, keepdims=True)
    return centred * (signal.shape[0] / (signal.shape[0] - 1))


class MovingAverageState(NamedTuple):
    """Decayed sum of past mean signals, one per block, and of their weights."""

    total: Array
    weight: Array

    def value(self) -> Array:
        """The average; 0 where there is no past."""
        has_past = self.weight > 0
        return jnp.where(has_past, self.total / jnp.where(has_past, self.weight, 1), 0)


@dataclasses.dataclass(frozen=True)
class MovingAverage(Baseline):
    r"""Exponential moving average of PAST steps' mean signals, bias-corrected.

    The value used at a step is the average before that step, and the stored sums are never the
    corrected ones: updating first, or storing the correction, would bias the gradient.

    Args:
      decay: weight kept by the past at each step, in [0, 1).

    Raises:
      ValueError: ``decay`` outside [0, 1).

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> baseline = bbvi.MovingAverage(0.9)
      >>> _, state = baseline(baseline.init((), None), jnp.array([5.0]), None)
      >>> [round(b, 4) for b in baseline(state, jnp.array([1.0, 2.0]), None)[0].tolist()]
      [5.0, 5.0]

    References:
      Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"MovingAverage decay must be in [0, 1), got {self.decay}.")

    def init(self, shape: tuple[int, ...], x: Data) -> MovingAverageState:
        return MovingAverageState(jnp.zeros(shape), jnp.zeros(()))

    def __call__(
        self, state: MovingAverageState, signal: Array, x: Data
    ) -> tuple[Array, MovingAverageState]:
        total, weight = state
        update = MovingAverageState(
            self.decay * total + (1 - self.decay) * jnp.mean(signal, axis=0).astype(total.dtype),
            self.decay * weight + (1 - self.decay),
        )
        return jnp.broadcast_to(state.value(), signal.shape).astype(signal.dtype), update


# Running mean and variance of past signals, in whose units a baseline is learned.
_MOMENTS = MovingAverage(0.9)


class LearnedState(NamedTuple):
    """Parameters of a learned baseline, what trains them, and moments of the past signals."""

    params: PyTree
    opt_state: optax.OptState
    moments: MovingAverageState


@dataclasses.dataclass(frozen=True)
class LearnedBaseline(Baseline):
    r"""A baseline trained beside the guide to predict the learning signal from the data.

    .. math::
      b(x) = m + v\, C_\psi(x), \qquad
      \psi \text{ minimises } \frac1{2S} \sum_s \Big\| \frac{f_s - m}{v} - C_\psi(x) \Big\|^2

    by one step of its own optimizer per step of the fit. C is a network of the data, as in NVIL, or
    without one a constant for each independent block of the site. The running mean m and standard
    deviation v (at least 1) of the site's signals let one learning rate serve signals of any size.
    A step uses the m, v and :math:`\psi` of before it, so that no draw sees itself: unbiased.

    Args:
      network: any hashable object with ``init(key, x) -> params`` and ``apply(params, x)``, such as
        a ``flax.linen`` module, whose output broadcasts to the shape of the site's blocks: ``[N]``
        (or a scalar) for ``bbvi.Bernoulli((N,))``. It gets the data whole. None: constants.
      optimizer: an optax optimizer for :math:`\psi`.
      seed: of the network's initial parameters.

    Raises:
      TypeError: ``network`` is not one, or not hashable; ``optimizer`` is not an optax optimizer.
      ValueError: the network's output does not broadcast to the site's blocks; a ``seed`` below 0.

    Example:
      >>> import bbvi, flax.linen as nn
      >>> class Network(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(1)(nn.tanh(nn.Dense(8)(x)))[:, 0]
      >>> estimator = bbvi.ScoreFunction(1, bbvi.LearnedBaseline(Network()))
      >>> estimator == bbvi.ScoreFunction(1, bbvi.LearnedBaseline(Network()))
      True

    References:
      Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks.
    """

    network: Any = None
    optimizer: optax.GradientTransformation = dataclasses.field(
        default_factory=lambda: optax.adam(1e-2), repr=False, compare=False
    )
    seed: int = 0
    by_value: Optimizer = dataclasses.field(init=False, repr=False)  # two equal ones are equal

    def __post_init__(self) -> None:
        if self.network is not None:
            check_network(self.network)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"LearnedBaseline seed must be an int >= 0, got {self.seed!r}.")
        object.__setattr__(self, "by_value", Optimizer.of(self.optimizer))

    def init(self, shape: tuple[int, ...], x: Data) -> LearnedState:
        params = jnp.zeros(shape)
        if self.network is not None:
            params = self.network.init(jax.random.key(self.seed), x)
            check_variables(params, "LearnedBaseline")
            _check_output(jax.eval_shape(self.network.apply, params, x), shape)
        opt_state = self.by_value.transformation.init(params)
        return LearnedState(params, opt_state, _MOMENTS.init((2,), x))

    def __call__(self, state: LearnedState, signal: Array, x: Data) -> tuple[Array, LearnedState]:
        now = jnp.stack([jnp.mean(signal), jnp.var(signal)])
        _, moments = _MOMENTS(state.moments, now[None], x)
        # The target may see this step: what is learned from it serves the next one.
        mean, scale = _units(moments)
        target = (signal - mean) / scale

        def half_squared_error(params: PyTree) -> tuple[Array, Array]:
            output = params if self.network is None else self.network.apply(params, x)
            predicted = jnp.broadcast_to(output, signal.shape).astype(signal.dtype)
            return 0.5 * jnp.sum((target - predicted) ** 2) / signal.shape[0], predicted

        grads, predicted = jax.grad(half_squared_error, has_aux=True)(state.params)
        updates, opt_state = self.by_value.transformation.update(
            grads, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        past_mean, past_scale = _units(state.moments)
        return past_mean + past_scale * predicted, LearnedState(params, opt_state, moments)


def _units(moments: MovingAverageState) -> tuple[Array, Array]:
    """Mean and standard deviation of signals; at least 1, for a single draw has none."""
    mean, variance = moments.value()
    return mean, jnp.sqrt(jnp.maximum(variance, 1))


def check_network(network: Any) -> None:
    """Raise unless it has ``init`` and ``apply``, as a ``flax.linen`` module has, and a hash."""
    if isinstance(network, type) or not all(
        callable(getattr(network, name, None)) for name in ("init", "apply")
    ):
        raise TypeError(
            "network must have init(key, x) -> params and apply(params, x) -> array, as an "
            f"instance of a flax.linen module has, got {network!r}."
        )
    try:
        hash(network)
    except TypeError as error:
        raise TypeError(
            f"network must be hashable, so that a second fit need not compile again ({error}); "
            f"give it fields such as tuples instead of lists, got {network!r}."
        ) from error


def check_variables(params: PyTree, owner: str) -> None:
    """Raise where a network of Flax has variables that are not parameters."""
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = sorted(set(params) - {"params"})
        raise ValueError(
            f"the network of {owner} has variables besides its parameters, {others}: they would be "
            "trained as parameters instead of updated. Leave out what needs them, such as batch "
            "normalisation (layer normalisation needs none)."
        )


def _check_output(output: Any, shape: tuple[int, ...]) -> None:
    leaves = jax.tree.leaves(output)
    got = [leaf.shape for leaf in leaves]
    if len(leaves) == 1 and jnp.issubdtype(leaves[0].dtype, jnp.floating):
        try:
            if jnp.broadcast_shapes(got[0], shape) == shape:
                return
        except ValueError:
            pass
    raise ValueError(
        f"the network of LearnedBaseline must return one floating-point array that broadcasts to "
        f"the site's blocks {shape}, got shapes {got}; a site needs one of its own where shapes "
        "differ: estimator={'site': bbvi.ScoreFunction(S, bbvi.LearnedBaseline(network)), ...}."
    )
