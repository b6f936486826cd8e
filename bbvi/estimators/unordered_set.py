"""Gradients from distinct joint values, drawn without replacement."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._random import draw_flat
from bbvi._types import Key, PyTree, Site
from bbvi.estimators.discrete import (
    BySite,
    DiscreteEstimator,
    DiscreteModel,
    LogitGradient,
    log_probs,
    scores,
)
from bbvi.estimators.enumeration import (
    JointStates,
    joint_states,
    log_joint_probs,
    state_indices,
)

MAX_STATES = 1 << 12  # of one component: the probability of each is computed at every step
MAX_SAMPLES = 8  # all their 2^S subsets are gone through


@dataclasses.dataclass(frozen=True)
class UnorderedSet(DiscreteEstimator):
    r"""Leave-one-out gradient from S distinct joint values, drawn without replacement.

    A set D of S joint values z is drawn from q one after the other, those before left out. Whatever
    their order was, z came first with probability

    .. math:: w_z = q(z) \, P(D \setminus z \mid z \text{ left out}) \, / \, P(D)

    so that :math:`\sum_{z \in D} w_z h(z)` is an unbiased estimate of :math:`E[h]`, the average of
    h(first) over the orders. With f = log p - log q,

    .. math::
      g = \sum_{z \in D} w_z \Big(f(z) - \sum_{z' \in D} w_{z' \mid z} f(z')\Big)
          \nabla \log q(z)

    where :math:`w_{z' \mid z}` is :math:`q(z)` for z itself and for the others, which make up the
    rest, :math:`1 - q(z)` times their weight in a set drawn when z is left out. P is a sum over all
    orders, computed subset by subset. Unbiased, and the exact gradient where S joint values are all
    there are; it gains over independent draws where q is so concentrated that those would repeat
    each other. ``log_joint`` need not be differentiable.

    Parts of the model that share no term (see ``bbvi.explain``), such as the data of a batch, draw
    their sets side by side, of at most 4096 joint values each. The loss and the log weights of a
    step are weighted by S w, so that their mean over draws is unbiased.

    Cost: ``num_samples`` values of ``log_joint``, and the guide's probability of all joint values.

    Args:
      num_samples: S, joint values per step, 2 to 8.

    Raises:
      ValueError: S is not within 2 and 8, or more than the joint values of every component; more
        than 4096 of them; continuous sites; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> result = bbvi.fit(
      ...     lambda x, z: x[z["c"]],
      ...     bbvi.MeanField({"c": bbvi.Categorical(3)}),
      ...     jnp.log(jnp.array([0.2, 0.5, 0.3])),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.UnorderedSet(2),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> probs = jax.nn.softmax(result.params.guide.families["c"]["logits"])
      >>> [round(float(p), 1) for p in probs]
      [0.2, 0.5, 0.3]

    References:
      Kool, van Hoof and Welling (2020), Estimating Gradients for Discrete Random Variables by
      Sampling without Replacement; Murthy (1957), Ordered and Unordered Estimators in Sampling
      without Replacement.
    """

    num_samples: int = 4

    is_binary: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.num_samples <= MAX_SAMPLES:
            raise ValueError(
                f"UnorderedSet goes through all subsets of its draws, and compares them with each "
                f"other: num_samples must be 2 to {MAX_SAMPLES}, got {self.num_samples}."
            )

    def draw_sites(self, key: Key, sites: tuple[Site, ...]) -> Key:
        """A key: how many joint values there are to draw from, the model says."""
        del sites
        return key

    def check_model(self, model: DiscreteModel) -> None:
        states = self._states(model)
        if self.num_samples > states.num_states:
            raise ValueError(
                f"UnorderedSet(num_samples={self.num_samples}) draws distinct joint values, but "
                f"there are only {states.num_states}: with num_samples={states.num_states} the "
                "gradient is exact, as with Enumeration."
            )

    def _states(self, model: DiscreteModel) -> JointStates:
        names = [site.name for site in model.sites]
        advice = "use DisArm, Arms, StickBreaking"
        return joint_states("UnorderedSet", model, names, MAX_STATES, advice)

    def rank(self, noise: PyTree, log_q: Array) -> Array:
        """Ranks ``[C, N]`` of joint values: the S largest are draws without replacement."""
        return log_q + draw_flat(jax.random.gumbel, noise, log_q.shape)

    def logit_gradient(
        self, noise: PyTree, model: DiscreteModel, logits: BySite, state: PyTree
    ) -> tuple[LogitGradient, PyTree]:
        states = self._states(model)
        log_q = log_joint_probs(states, model, logits).T
        ranks = self.rank(noise, log_q)
        top, number = (found.T for found in jax.lax.top_k(ranks, self.num_samples))
        # Not top[-1]: for a slice of the largest XLA sorts them all on CPU, at 60 times the cost.
        is_left = ranks < jnp.min(top, axis=0)[:, None]
        rest = jax.nn.logsumexp(jnp.where(is_left, log_q, -jnp.inf), axis=1)

        indices = state_indices(states, model, number, logits)
        members = model.total(log_probs(logits, indices))
        weights, others = set_weights(
            jnp.where(number < states.counts[None], members, -jnp.inf), rest
        )
        values = model.values(indices)

        def mean_log_p(args: tuple[PyTree, ...]) -> tuple[Array, Array]:
            log_p = model.log_p(values, args)
            return jnp.sum(weights * log_p), log_p

        by_args, log_p = jax.grad(mean_log_p, has_aux=True)(model.args)
        f = log_p - members
        baseline = jnp.sum(others * f[None], axis=1)
        signals, ascent = model.spread(weights * (f - baseline)), {}
        for name, score in scores(logits, indices).items():
            signal = signals[name]
            signal = signal.reshape(signal.shape + (1,) * (score.ndim - signal.ndim))
            ascent[name] = jnp.sum(signal * score, axis=0)
        model_grads = jax.tree.map(jnp.negative, by_args)
        log_weights = self.num_samples * weights * f
        return LogitGradient(ascent, log_weights, model_grads[0] if model.args else None), state


def set_weights(members: Array, rest: Array) -> tuple[Array, Array]:
    """Weights of the members of an unordered set, and of the others for each one's baseline.

    Args:
      members: ``[S, C]`` log probabilities of the members.
      rest: ``[C]`` log probability that a draw is none of them.

    Returns:
      ``[S, C]``, probabilities that each was drawn first; ``[S, S, C]``, for each (first axis) the
      weight of every member in the baseline. They sum to one over the last S.
    """
    num_samples, num_components = members.shape
    # log P(the next draws are all of D's other members | the draws so far are the subset), for
    # subsets as bits; from the whole set down.
    log_next = jnp.zeros((1 << num_samples, num_components))
    for size in reversed(range(num_samples)):
        missing = np.array(list(itertools.combinations(range(num_samples), num_samples - size)))
        subset = (1 << num_samples) - 1 - (1 << missing).sum(axis=1)
        log_one = members[missing]  # [subsets, missing, C]
        log_left = jnp.logaddexp(jax.nn.logsumexp(log_one, axis=1), rest[None])
        after = jax.nn.logsumexp(log_one + log_next[subset[:, None] | (1 << missing)], axis=1)
        # Nothing is left where only impossible joint values are missing.
        log_next = log_next.at[subset].set(jnp.where(log_left > -jnp.inf, after - log_left, 0))

    single = 1 << np.arange(num_samples)
    pair = single[:, None] | single
    first = jnp.exp(members + log_next[single] - log_next[:1])
    others = jnp.exp(members[None] + log_next[pair] - log_next[single][:, None])
    return first, jnp.where(np.eye(num_samples, dtype=bool)[..., None], jnp.exp(members), others)
