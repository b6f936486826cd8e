"""Exact expectations over every value of chosen discrete sites."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._types import PyTree
from bbvi.baselines import minus_others
from bbvi.estimators.base import Cost
from bbvi.estimators.discrete import (
    BySite,
    DiscreteEstimator,
    DiscreteModel,
    LogitGradient,
    draw_indices,
    log_probs,
    scores,
)

# States of one component that are summed over; 2^16 values of log_joint take seconds a step.
MAX_STATES = 1 << 16
# So many states at a time, to bound the memory.
BATCH = 256


class JointStates(NamedTuple):
    """The joint values of the chosen sites, all components side by side.

    Attributes:
      place: by site ``[*blocks]``, how many states the earlier blocks of the component have; of
        length 1 along axes where they are all alike.
      counts: ``[C]``, how many states each component has.
    """

    place: dict[str, np.ndarray]
    counts: np.ndarray

    @property
    def num_states(self) -> int:
        """States of the largest component."""
        return int(self.counts.max())


@dataclasses.dataclass(frozen=True)
class Enumeration(DiscreteEstimator):
    r"""The exact gradient: every joint value of discrete sites, weighted by its probability.

    With :math:`z = (a, b)`, a the sites that are enumerated and b the others, drawn S times,

    .. math::
      F_s = \sum_a q(a; \phi) \big[\log p(x, a, b_s) - \log q(a; \phi)\big] - \log q(b_s; \phi),
      \qquad
      g = \frac1S \sum_s \nabla_a F_s + \frac1{S - 1} \sum_s (F_s - \bar F)
          \nabla_\phi \log q(b_s; \phi)

    Unbiased; without variance where all sites are enumerated, and then the loss is the exact ELBO.
    Parts of the model that share no term (see ``bbvi.explain``), such as the data of a batch, are
    enumerated side by side: 2^10 values of ``log_joint`` for a batch of any size with 10 binary
    latents each. With continuous latents beside, use it in ``Mixed``.

    Cost: per draw of the others as many values of ``log_joint`` as the largest component has joint
    values of the enumerated sites.

    Args:
      num_samples: S, draws of the others; at least 2 where there are others, else not used.
      sites: names of the sites to enumerate; all by default.

    Raises:
      ValueError: more than 65,536 joint values; a site that is not discrete or not in the guide;
        an objective other than the ELBO; fewer than two draws of the others.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> guide = bbvi.MeanField({"b": bbvi.Bernoulli((3,))})
      >>> result = bbvi.fit(
      ...     lambda x, z: 2.0 * jnp.prod(1.0 * z["b"]) - x * z["b"].sum(),
      ...     guide,
      ...     0.5,
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.Enumeration(),
      ...     num_steps=500,
      ...     progress=False,
      ... )
      >>> round(-float(result.history.loss[-1]), 3)  # the exact ELBO, free of noise
      1.579

    References:
      Obermeyer, Bingham, Jankowiak, Phan and Chen (2019), Functional Tensors for Probabilistic
      Programming, for enumeration in stochastic variational inference.
    """

    num_samples: int = 1
    sites: tuple[str, ...] | str | None = None

    is_binary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sites is not None:
            names = (self.sites,) if isinstance(self.sites, str) else self.sites
            if not isinstance(names, Iterable):
                raise TypeError(f"Enumeration sites must be names of sites, got {names!r}.")
            names = tuple(names)
            object.__setattr__(self, "sites", names)

    @property
    def cost(self) -> Cost:
        """Of each joint value: how many there are depends on the model."""
        return Cost(self.num_samples)

    def cost_of(self, model: DiscreteModel) -> Cost:
        chosen, others = self._divide(model)
        return Cost((self.num_samples if others else 1) * self._states(model, chosen).num_states)

    def check_model(self, model: DiscreteModel) -> None:
        chosen, others = self._divide(model)
        unknown = sorted(set(self.sites or ()) - set(chosen))
        if unknown or not chosen:
            raise ValueError(
                f"Enumeration names sites {unknown or list(self.sites or ())}, but the discrete "
                f"sites of the guide are {[site.name for site in model.sites]}."
            )
        if others and self.num_samples < 2:
            raise ValueError(
                f"Enumeration draws sites {others}, whose leave-one-out baseline needs "
                f"num_samples >= 2, got {self.num_samples}."
            )
        self._states(model, chosen)

    def _states(self, model: DiscreteModel, chosen: list[str]) -> JointStates:
        advice = "name fewer sites, or use LocalExpectation, which sums over one entry at a time,"
        return joint_states("Enumeration", model, chosen, MAX_STATES, advice)

    def _divide(self, model: DiscreteModel) -> tuple[list[str], list[str]]:
        names = [site.name for site in model.sites]
        chosen = [name for name in names if self.sites is None or name in self.sites]
        return chosen, [name for name in names if name not in chosen]

    def logit_gradient(
        self, noise: PyTree, model: DiscreteModel, logits: BySite, state: PyTree
    ) -> tuple[LogitGradient, PyTree]:
        chosen, others = self._divide(model)
        states = self._states(model, chosen)
        draws = draw_indices(logits, {name: noise[name] for name in others})
        num_draws = self.num_samples if others else 1
        num_states, batch = states.num_states, min(BATCH, states.num_states)
        # Padded to whole batches by states that have no probability.
        numbers = jnp.arange(-(-num_states // batch) * batch).reshape(-1, batch)

        def part(logits: BySite, args: tuple[PyTree, ...], number: Array) -> tuple[Array, Array]:
            """What these states add to the expectations ``[draws, C]``."""
            inner = {name: logits[name] for name in chosen}
            indices = state_indices(states, model, number, inner)
            log_q = model.total(log_probs(inner, indices))  # [batch, C]
            q = jnp.where(number[:, None] < states.counts[None], jnp.exp(log_q), 0)

            def given(draw: BySite) -> Array:
                repeated = jax.tree.map(
                    lambda leaf: jnp.broadcast_to(leaf[None], (batch, *leaf.shape)), draw
                )
                log_p = model.log_p(model.values(repeated | indices), args)
                return jnp.sum(q * (log_p - log_q), axis=0)

            values = jax.vmap(given)(draws) if others else given({})[None]
            return jnp.sum(values) / num_draws, values

        def add(sums: PyTree, number: Array) -> tuple[PyTree, None]:
            found = jax.grad(part, argnums=(0, 1), has_aux=True)(logits, model.args, number)
            return jax.tree.map(jnp.add, sums, found), None

        none = jnp.zeros((num_draws, len(states.counts)))
        zeros = jax.tree.map(jnp.zeros_like, (logits, model.args))
        ((ascent, by_args), values), _ = jax.lax.scan(add, (zeros, none), numbers)
        if others:
            outer = {name: logits[name] for name in others}
            values = values - model.total(log_probs(outer, draws))
            signals = model.spread(minus_others(values))
            for name, score in scores(outer, draws).items():
                signal = signals[name].reshape(
                    score.shape[: signals[name].ndim] + (1,) * (score.ndim - signals[name].ndim)
                )
                ascent[name] = jnp.mean(signal * score, axis=0)
        model_grads = jax.tree.map(jnp.negative, by_args)
        return LogitGradient(ascent, values, model_grads[0] if model.args else None), state


def joint_states(
    name: str, model: DiscreteModel, chosen: list[str], most: int, advice: str
) -> JointStates:
    """How the joint values of the chosen sites are numbered, component by component.

    Args:
      name: the estimator's.
      model: what falls into components.
      chosen: names of sites.
      most: joint values that a component may have.
      advice: what else to do where there are more, before ScoreFunction.

    Raises:
      ValueError: there are more.
    """
    num_components = 1 if model.components is None else model.components.num_components
    labels, log_counts = {}, np.zeros(num_components)
    num_values = {site.name: site.num_values or 1 for site in model.sites}
    for site in model.sites:
        if site.name in chosen:
            part = None if model.components is None else model.components.sites[site.name]
            mine = 0 if part is None else part.labels
            labels[site.name] = np.broadcast_to(mine, site.block_shape)
            sizes = np.bincount(labels[site.name].ravel(), minlength=num_components)
            log_counts += sizes * math.log(num_values[site.name])
    largest = log_counts.max()
    if largest > math.log(most) + 1e-6:
        count = f"{math.exp(largest):.0f}" if largest < 30 else f"10^{largest / math.log(10):.0f}"
        raise ValueError(
            f"{name} over {', '.join(map(repr, chosen))} would sum {count} joint values, more "
            f"than {most}: {advice} or ScoreFunction."
        )
    counts = np.ones(num_components, int)
    place = {}
    for site_name, of_block in labels.items():
        place[site_name] = np.empty(of_block.shape, int)
        for block in np.ndindex(of_block.shape):
            place[site_name][block] = counts[of_block[block]]
            counts[of_block[block]] *= num_values[site_name]
        # Alike along the axis of a batch: kept once, to divide by once.
        for axis in range(of_block.ndim):
            first = place[site_name].take([0], axis)
            if (place[site_name] == first).all():
                place[site_name] = first
    return JointStates(place, counts)


def state_indices(
    states: JointStates, model: DiscreteModel, number: Array, logits: BySite
) -> BySite:
    """Indices ``{site: [M, *blocks]}`` of joint values.

    Args:
      states: how they are numbered.
      model: what falls into components.
      number: numbers within each component ``[M, C]``, or ``[M]`` where all have the same ones.
      logits: of each site.
    """
    by_block, found = model.spread(number) if number.ndim == 2 else None, {}
    for name, place in states.place.items():
        num_values = 2 if logits[name].ndim == place.ndim else logits[name].shape[-1]
        mine = number.reshape(-1, *[1] * place.ndim) if by_block is None else by_block[name]
        shape = len(number), *logits[name].shape[: place.ndim]
        digits = mine // place[None] % num_values
        found[name] = jnp.broadcast_to(digits, shape).astype(jnp.int32)
    return found


def log_joint_probs(states: JointStates, model: DiscreteModel, logits: BySite) -> Array:
    """Log probabilities ``[M, C]`` of all joint values; those past a component's last have -inf.

    A product of matrices, far cheaper than to look up every block of every joint value.
    """
    every, log_q = np.arange(states.num_states)[:, None], jnp.zeros(())
    for name, place in states.place.items():
        num_values = 2 if logits[name].ndim == place.ndim else logits[name].shape[-1]
        shape = logits[name].shape[: place.ndim]
        places, which = np.unique(place, return_inverse=True)
        is_place = which.reshape(place.shape)[None] == np.arange(len(places)).reshape(
            -1, *[1] * place.ndim
        )
        k = jnp.arange(num_values).reshape(-1, *[1] * place.ndim)
        (each,) = log_probs(
            {name: logits[name]}, {name: jnp.broadcast_to(k, (num_values, *shape))}
        ).values()
        # 0 times -inf is none of a sum's business.
        each = jnp.maximum(each, -1e30)
        table = jnp.where(is_place[:, None], each[None], 0).reshape(-1, *shape)
        digits = every // places[None] % num_values
        is_digit = (digits[..., None] == np.arange(num_values)).reshape(len(every), -1)
        log_q += jnp.matmul(
            jnp.asarray(is_digit, table.dtype), model.total({name: table}), precision="highest"
        )
    return jnp.where(every < states.counts[None], log_q, -jnp.inf)
