"""Discrete and continuous latents together: any discrete estimator, given pathwise draws."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._tree import named_leaves
from bbvi._types import Data, Key, LogJoint, Params, PyTree, Site
from bbvi.estimators.base import Cost, Estimate, Estimator, check_elbo, check_pathwise
from bbvi.estimators.discrete import DiscreteEstimator, DiscreteModel, check_discrete
from bbvi.estimators.enumeration import Enumeration
from bbvi.estimators.per_site import entropy_terms, site_sums
from bbvi.estimators.reparameterization import Reparameterization, check_entropy
from bbvi.problem import Problem, over_draws


@dataclasses.dataclass(frozen=True)
class GivenContinuous:
    """A log joint of the discrete latents, with the continuous ones among its parameters."""

    log_joint: LogJoint
    names: tuple[str, ...]
    treedef: Any

    def __call__(self, x: Data, z: dict[str, Array], given: tuple[Any, dict[str, Array]]) -> Array:
        model_args, continuous = given
        leaves = continuous | z
        full = jax.tree.unflatten(self.treedef, [leaves[name] for name in self.names])
        return self.log_joint(x, full, *model_args)


@dataclasses.dataclass(frozen=True, init=False)
class Mixed(Estimator):
    r"""Pathwise gradients for the continuous sites, a discrete estimator for the others.

    With z = (r, b), r reparameterized and drawn G times, and b discrete,

    .. math::
      g = \frac1G \sum_g \Big[ \hat g\big(b \mid r_g\big)
          + \nabla_\phi\, r_g(\phi)^\top \nabla_r\, \overline{\log p(x, r_g, b)} \Big]
          + \nabla_\phi H(q(r; \phi))

    where the discrete estimator :math:`\hat g` treats :math:`r_g` as it does learned parameters,
    and the bar is its mean over draws of b given :math:`r_g`. Given r, more of the model falls
    apart: with global weights drawn, the local latents of each datum are a component of their own,
    with their own learning signal or their own enumeration. Unbiased if both estimators are.

    Cost: G times that of the discrete estimator, whose values come with a gradient in r.

    Args:
      continuous: ``Reparameterization(G, ...)``, for every continuous site.
      discrete: a discrete estimator, such as ``DisArm``, ``Enumeration`` or ``Relax``, for every
        discrete site.

    Raises:
      TypeError: an estimator of the wrong kind.
      ValueError: a continuous site that is not reparameterizable or a ``log_joint`` that is not
        differentiable in it; a discrete site the estimator is not for; a guide without both.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):
      ...     mean = jnp.where(z["c"] == 1, z["mu"], 0.0)
      ...     return norm.logpdf(z["mu"], 0.0, 5.0) + norm.logpdf(x, mean).sum()
      >>> x = jnp.array([0.1, 3.8, -0.2, 4.1, 4.3])
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     bbvi.MeanField({"mu": bbvi.Normal(), "c": bbvi.Bernoulli((5,))}),
      ...     x,
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.Mixed(bbvi.Reparameterization(4), bbvi.Enumeration()),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [int(p > 0.5) for p in result.sample(jax.random.key(1), 500)["c"].mean(axis=0)]
      [0, 1, 0, 1, 1]

    References:
      Schulman, Heess, Weber and Abbeel (2015), Gradient Estimation Using Stochastic Computation
      Graphs.
    """

    continuous: Reparameterization = dataclasses.field(default_factory=Reparameterization)
    discrete: DiscreteEstimator = dataclasses.field(default_factory=Enumeration)

    is_pathwise: ClassVar[bool] = False  # sites are checked by kind

    def __init__(self, continuous: Reparameterization, discrete: DiscreteEstimator):
        if not isinstance(continuous, Reparameterization):
            raise TypeError(
                f"Mixed takes a bbvi.Reparameterization for continuous sites, got {continuous!r}."
            )
        if not isinstance(discrete, DiscreteEstimator):
            raise TypeError(
                "Mixed takes an estimator made for discrete sites, such as bbvi.DisArm or "
                f"bbvi.Enumeration, got {discrete!r}; the score function goes in a dict by site: "
                "estimator={'w': bbvi.Reparameterization(8), 'c': bbvi.ScoreFunction(8)}."
            )
        object.__setattr__(self, "continuous", continuous)
        object.__setattr__(self, "discrete", discrete)
        object.__setattr__(self, "num_samples", continuous.num_samples * discrete.num_samples)

    def __repr__(self) -> str:
        return f"Mixed({self.continuous!r}, {self.discrete!r})"

    @property
    def is_biased(self) -> bool:  # type: ignore[override]
        return self.discrete.is_biased

    @property
    def cost(self) -> Cost:
        return self._repeated(self.discrete.cost)

    def cost_for(self, problem: Problem, params: Params, x: Data) -> Cost:
        continuous = self._continuous_leaves(problem, problem.draw_shapes(params, x))
        model = self._model(problem, params, x, continuous)
        return self._repeated(self.discrete.cost_of(model))

    def _repeated(self, cost: Cost) -> Cost:
        """That of the discrete estimator for each continuous draw, whose gradient adds to it."""
        values, gradients = cost
        is_sum = isinstance(self.discrete, Enumeration)  # every value counts, not only draws
        hard = values if is_sum else min(values, self.discrete.num_samples)
        groups = self.continuous.num_samples
        return Cost(groups * (values - hard), groups * (gradients + hard))

    def _split(self, problem: Problem) -> tuple[list[str], tuple[Site, ...]]:
        """Names of the continuous sites, and the discrete sites."""
        sites = problem.guide.sites()
        return [s.name for s in sites if not s.num_values], tuple(s for s in sites if s.num_values)

    def _model(
        self, problem: Problem, params: Params, x: Data, continuous: dict[str, Array]
    ) -> DiscreteModel:
        shapes, (_, sites) = problem.draw_shapes(params, x), self._split(problem)
        by_name = named_leaves(shapes, "latents")
        given = GivenContinuous(problem.log_joint, tuple(by_name), jax.tree.structure(shapes))
        discrete = {site.leaves[0]: by_name[site.leaves[0]] for site in sites}
        args = ((problem.model_args(params), continuous),)
        is_relaxed = type(self.discrete).is_relaxed
        return DiscreteModel(given, sites, discrete, x, args, is_relaxed)

    def _continuous_leaves(self, problem: Problem, z: PyTree) -> dict[str, Array]:
        discrete = {site.leaves[0] for site in self._split(problem)[1]}
        return {n: leaf for n, leaf in named_leaves(z, "latents").items() if n not in discrete}

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)
        names, sites = self._split(problem)
        if not names or not sites:
            kind, only = ("discrete", self.continuous) if names else ("continuous", self.discrete)
            raise ValueError(f"the guide has no {kind} site: use {only!r} by itself.")
        check_pathwise(problem, params, x, names)
        check_entropy(self.continuous, problem)
        self.continuous.sampling.validate(problem.guide, problem.objective)
        check_discrete(self.discrete, problem, params, x, sites)
        continuous = self._continuous_leaves(problem, problem.draw_shapes(params, x))
        self.discrete.check_model(self._model(problem, params, x, continuous))

    def init(self, problem: Problem, params: Params, x: Data) -> PyTree:
        logits = jax.eval_shape(problem.guide.logits, params.guide, x)
        continuous = self._continuous_leaves(problem, problem.draw_shapes(params, x))
        return self.discrete.init_logits(self._model(problem, params, x, continuous), logits)

    def draw(self, key: Key, problem: Problem) -> PyTree:
        outer, inner = jax.random.split(key)
        keys = jax.random.split(inner, self.continuous.num_samples)
        _, sites = self._split(problem)
        noise = jax.vmap(lambda key: self.discrete.draw_sites(key, sites))(keys)
        return self.continuous.draw(outer, problem), noise

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        guide, (names, _) = problem.guide, self._split(problem)
        outer_noise, inner_noise = noise
        num_groups = self.continuous.num_samples
        at_sites = dict.fromkeys(names, self.continuous)

        def outer(
            phi: PyTree,
        ) -> tuple[dict[str, Array], Array, dict[str, Array], dict[str, Array]]:
            z = problem.sample(outer_noise, params._replace(guide=phi), x)
            log_q = over_draws(lambda draw: site_sums(guide.site_log_probs(phi, x, draw)), z)
            entropies = entropy_terms(at_sites, problem, phi, x, z)
            return self._continuous_leaves(problem, z), entropies, guide.logits(phi, x), log_q

        (continuous, entropies, logits, log_q), pullback = jax.vjp(outer, params.guide)

        def group(inputs: tuple[dict[str, Array], PyTree]) -> tuple[Any, PyTree]:
            given, noise = inputs
            model = self._model(problem, params, x, given)
            return self.discrete.logit_gradient(noise, model, logits, state)

        inner, states = over_draws(group, (continuous, inner_noise))
        by_args, by_continuous = inner.model_grads
        cotangents = (
            jax.tree.map(lambda leaf: leaf / num_groups, by_continuous),
            jnp.full_like(entropies, -1 / num_groups),
            jax.tree.map(lambda leaf: -jnp.mean(leaf, axis=0), inner.ascent),
            jax.tree.map(jnp.zeros_like, log_q),
        )
        (grads,) = pullback(cotangents)
        model_grads = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), by_args)
        outer_log_q = sum((log_q[name] for name in names), jnp.zeros(()))  # [G]
        log_weights = jnp.sum(inner.log_weights, axis=2) - stop_gradient(outer_log_q)[:, None]
        log_weights = log_weights.reshape(-1)
        # What groups learned is averaged; counters are the same in all.
        state = jax.tree.map(
            lambda leaf: (
                jnp.mean(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf[0]
            ),
            states,
        )
        loss = problem.objective(log_weights)
        model = model_grads[0] if model_grads else None
        return Estimate(loss, Params(grads, model), log_weights), state
