"""Score-function (REINFORCE) gradients, Rao-Blackwellized from the plain log joint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Latents, Params, PyTree
from bbvi.baselines import Baseline, LeaveOneOut, minus_others
from bbvi.dependence.components import component_sums, local_sums
from bbvi.estimators.base import Estimate, Estimator, check_elbo
from bbvi.estimators.coefficient import Coefficient
from bbvi.problem import Problem, over_draws

Signal = Literal["adaptive", "blanket", "component", "full"]


class SiteState(NamedTuple):
    """What the score-function estimator carries from step to step, for one site."""

    baseline: PyTree
    coefficient: Coefficient


@dataclasses.dataclass(frozen=True)
class ScoreFunction(Estimator):
    r"""Score-function gradient of the ELBO, for any latents and any log joint.

    With f = log p - log q and the independent blocks i of the guide (the entries of a mean-field
    site, the rows of a Dirichlet),

    .. math::
      g = -\frac1S \sum_s \sum_i \big(a_{si} - b_{si}\big) \nabla_\phi \log q_i(z_{si}; \phi),
      \qquad a_{si} = R_{si} - \log q_i(z_{si}) + \alpha \big(f_s - R_{si} + \log q_i(z_{si})\big)

    :math:`R_i` is the sum of the additive terms of ``log_joint`` that read block i, found by
    analysing the function (see ``bbvi.explain``): its Rao-Blackwellized learning signal. The rest
    does not depend on :math:`z_i`, so it is a control variate of mean zero: :math:`\alpha = 0` is
    the Markov blanket alone, :math:`\alpha = 1` the full signal. Neither is best everywhere: near
    the optimum f is almost constant, and dropping terms destroys that. Hence one coefficient per
    site, learned from past steps only. f counts the terms and densities of the block's connected
    component only: in a batch of data with a latent each, those of its own datum.

    Unbiased for every :math:`\alpha` that does not see the step's draws, and every baseline
    :math:`b_s` that does not see :math:`z_s`. ``log_joint`` need not be differentiable in z.
    Cost: ``num_samples`` values of ``log_joint``.

    Args:
      num_samples: S, draws per step.
      baseline: subtracted from the learning signal of each block: ``LeaveOneOut()`` (default,
        S >= 2), ``MovingAverage(decay)`` or ``NoBaseline()``.
      signal: ``"adaptive"`` (default), ``"blanket"`` for :math:`\alpha = 0`, ``"component"`` for
        :math:`\alpha = 1`, or ``"full"`` for log p - log q of the whole model, without an
        analysis. With one draw, ``"adaptive"`` is ``"blanket"``.

    Raises:
      ValueError: fewer draws than the baseline needs; an objective other than the ELBO; an
        unknown signal.
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
      Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning; Richter,
      Boustati, Nuesken, Ruiz and Akyildiz (2020), VarGrad: A Low-Variance Gradient Estimator for
      Variational Inference.
    """

    num_samples: int = 32
    baseline: Baseline = dataclasses.field(default_factory=LeaveOneOut)
    signal: Signal = "adaptive"

    is_pathwise: ClassVar[bool] = False
    takes_site_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.baseline, Baseline):
            raise TypeError(f"baseline must be a bbvi.Baseline, got {self.baseline!r}.")
        if self.num_samples < self.baseline.min_samples:
            raise ValueError(
                f"{type(self.baseline).__name__} needs num_samples >= "
                f"{self.baseline.min_samples}, got {self.num_samples}; draw more, or use "
                "MovingAverage or NoBaseline."
            )
        if self.signal not in get_args(Signal):
            raise ValueError(f"signal must be one of {get_args(Signal)}, got {self.signal!r}.")

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)

    def init(self, problem: Problem, params: Params, x: Data) -> dict[str, SiteState]:
        return score_init(self._at_every_site(problem), problem, params, x)

    def _at_every_site(self, problem: Problem) -> dict[str, ScoreFunction]:
        return {site.name: self for site in problem.guide.sites()}

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        estimators = self._at_every_site(problem)
        z = problem.sample(noise, stop_gradient(params), x)

        # The draws are held fixed, so log_joint is differentiated in the model parameters only.
        def mean_log_p(model: PyTree) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            log_p, blankets = evaluate(estimators, problem, params._replace(model=model), x, z)
            return -jnp.mean(per_draw(log_p)), (log_p, blankets)

        model_grads, (log_p, blankets) = jax.grad(mean_log_p, has_aux=True)(params.model)
        score = score_gradient(estimators, problem, params, x, z, log_p, blankets, state)
        loss = problem.objective(score.log_weights)
        return Estimate(loss, Params(score.grads, model_grads), score.log_weights), score.state


def score_init(
    estimators: Mapping[str, ScoreFunction], problem: Problem, params: Params, x: Data
) -> dict[str, SiteState]:
    """State of the score-function sites before the first step."""
    shapes = problem.block_shapes(params, x)
    return {
        name: SiteState(estimator.baseline.init(shapes[name], x), Coefficient.init())
        for name, estimator in estimators.items()
    }


def evaluate(
    estimators: Mapping[str, ScoreFunction], problem: Problem, params: Params, x: Data, z: Latents
) -> tuple[Array, dict[str, Array]]:
    """Log joint by component ``[S, C]``, and sums over Markov blankets ``[S, *blocks]``.

    Each where it is needed; else one component, and no sums.
    """
    num_blocks = sum(math.prod(s) for s in problem.block_shapes(params, x).values())
    signals = {estimator.signal for estimator in estimators.values()}
    if num_blocks == 1 or signals == {"full"}:
        return problem.log_p(params, x, z)[:, None], {}
    sites, args = problem.guide.sites(), problem.model_args(params)
    if signals <= {"full", "component"}:
        return over_draws(
            lambda draw: component_sums(problem.log_joint, sites, x, draw, *args), z
        ), {}
    return over_draws(lambda draw: local_sums(problem.log_joint, sites, x, draw, *args), z)


class ScoreGradient(NamedTuple):
    """Gradient of the loss in the guide's parameters, log weights ``[S]`` and next states."""

    grads: PyTree
    log_weights: Array
    state: dict[str, SiteState]


def score_gradient(
    estimators: Mapping[str, ScoreFunction],
    problem: Problem,
    params: Params,
    x: Data,
    z: Latents,
    log_p: Array,
    blankets: Mapping[str, Array],
    state: Mapping[str, SiteState],
) -> ScoreGradient:
    """The score-function part of the gradient, at the sites ``estimators`` names.

    Args:
      estimators: by site.
      problem: model, guide and objective.
      params: point of evaluation.
      x: data.
      z: draws ``[S, ...]``.
      log_p: log joint by component ``[S, C]`` at the draws.
      blankets: by site, sums ``[S, *blocks]`` of the terms that read each block; empty for the
        full signal.
      state: by site.
    """
    guide, z = problem.guide, stop_gradient(z)

    def log_probs(phi: PyTree) -> dict[str, Array]:
        return over_draws(lambda draw: guide.site_log_probs(phi, x, draw), z)

    scores, pullback = jax.vjp(log_probs, params.guide)
    log_q = problem.weighted(scores)
    log_p, blankets = stop_gradient((log_p, blankets))
    by_component: dict[str, Array] = {}
    if log_p.shape[1] == 1:
        log_weights = log_p[:, 0] - sum(per_draw(leaf) for leaf in log_q.values())
    else:
        components = problem.components(params, x)
        weights = log_p - over_draws(components.total, log_q)
        by_component = over_draws(components.spread, weights)
        log_weights = jnp.sum(weights, axis=1)

    signals = {name: jnp.zeros_like(leaf) for name, leaf in log_q.items()}
    rests, next_state, adaptive = dict(signals), {}, []
    for name, estimator in estimators.items():
        full = jnp.broadcast_to(_expand(log_weights, log_q[name]), log_q[name].shape)
        whole = full if estimator.signal == "full" else by_component.get(name, full)
        is_local = name in blankets and estimator.signal in ("adaptive", "blanket")
        local = blankets[name] - log_q[name] if is_local else whole
        baseline, baseline_state = estimator.baseline(state[name].baseline, local, x)
        signals[name] = local - baseline
        next_state[name] = state[name]._replace(baseline=baseline_state)
        if is_local and estimator.signal == "adaptive" and estimator.num_samples > 1:
            adaptive.append(name)
            rests[name] = minus_others(whole - local)
            signals[name] += state[name].coefficient.value() * rests[name]

    def gradient(signal: dict[str, Array]) -> PyTree:
        return pullback(jax.tree.map(lambda leaf: -leaf / leaf.shape[0], signal))[0]

    grads = gradient(signals)
    if adaptive:
        total, rest = guide.site_params(grads), guide.site_params(gradient(rests))
        for name in adaptive:
            coefficient = state[name].coefficient
            alpha = coefficient.value()
            local_part = jax.tree.map(lambda g, r: g - alpha * r, total[name], rest[name])  # noqa: B023
            next_state[name] = next_state[name]._replace(
                coefficient=coefficient.update(local_part, rest[name])
            )
    return ScoreGradient(grads, log_weights, next_state)


def per_draw(leaf: Array) -> Array:
    """Sum ``[S]`` over the blocks of ``[S, *blocks]``."""
    return jnp.sum(leaf, axis=range(1, leaf.ndim))


def _expand(values: Array, like: Array) -> Array:
    """``[S]`` as ``[S, 1, ...]``, to go with ``[S, *blocks]``."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))
