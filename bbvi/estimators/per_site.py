"""One gradient from a different estimator at each site, and the choice made by default."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, TypeAlias, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Latents, Params, PyTree
from bbvi.dependence.local_values import num_colours
from bbvi.estimators.base import Cost, Estimate, Estimator, check_elbo, check_pathwise
from bbvi.estimators.doubly_reparameterized import DoublyReparameterized
from bbvi.estimators.local_expectation import LocalExpectation, check_local, local_cost, local_term
from bbvi.estimators.reparameterization import Reparameterization, check_entropy
from bbvi.estimators.reweighted_wake_sleep import ReweightedWakeSleep
from bbvi.estimators.score_function import (
    ScoreFunction,
    evaluate,
    per_draw,
    score_gradient,
    score_init,
)
from bbvi.estimators.stratified import Stratified
from bbvi.estimators.vimco import Vimco
from bbvi.guides import Mixture, NormalizingFlow
from bbvi.objectives import ForwardKl, Objective, PowerMean
from bbvi.problem import Problem, over_draws
from bbvi.sampling import Independent

SiteEstimator: TypeAlias = Reparameterization | ScoreFunction | LocalExpectation
Kind = TypeVar("Kind", Reparameterization, ScoreFunction, LocalExpectation)
# The default sums out discrete sites of at most so many values: S = 4 draws of each value then
# cost no more than twice the draws of the score function.
MAX_VALUES = 16


@dataclasses.dataclass(frozen=True, init=False)
class PerSite(Estimator):
    r"""A different estimator at each site, with the same draws.

    With z = (r, c), r reparameterized and c drawn with its gradient stopped,

    .. math::
      g = -\nabla_\phi \frac1S \sum_s \Big[\log p(x, r_s(\phi), c_s) - \log q(r_s(\phi); \phi)
          + \sum_i (a_{si} - b_{si})\, \log q_i(c_{si}; \phi)\Big]

    where the learning signals :math:`a - b` of ``ScoreFunction`` are held fixed. Sites with
    ``LocalExpectation`` are summed out exactly. Unbiased.

    Args:
      estimators: ``{site name: Reparameterization(...), ScoreFunction(...) or
        LocalExpectation(...)}``, one for every site of the guide, all with the same
        ``num_samples``.

    Raises:
      ValueError: unequal ``num_samples``; sites that are missing or unknown; an estimator that
        is not valid at its site.
      TypeError: an estimator that cannot be used for one site.

    Example:
      >>> import bbvi
      >>> bbvi.PerSite({"w": bbvi.Reparameterization(8), "c": bbvi.ScoreFunction(8)}).num_samples
      8

    References:
      Schulman, Heess, Weber and Abbeel (2015), Gradient Estimation Using Stochastic Computation
      Graphs.
    """

    estimators: tuple[tuple[str, SiteEstimator], ...] = ()

    is_pathwise: ClassVar[bool] = False  # sites are checked one by one
    takes_site_weights: ClassVar[bool] = True

    def __init__(self, estimators: Mapping[str, SiteEstimator]):
        if not isinstance(estimators, Mapping):
            raise TypeError(
                "PerSite takes a dict of estimators by site, such as {'w': "
                f"bbvi.Reparameterization()}}, got {estimators!r}."
            )
        if not estimators:
            raise ValueError("PerSite needs an estimator for every site, got none.")
        kinds = get_args(SiteEstimator)
        for name, estimator in estimators.items():
            if not isinstance(estimator, kinds):
                names = ", ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"site '{name}': PerSite combines {names}, got {estimator!r}.")
        counts = {name: estimator.num_samples for name, estimator in estimators.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"all sites share the draws, so num_samples must agree: got {counts}.")
        object.__setattr__(self, "num_samples", next(iter(counts.values())))
        object.__setattr__(self, "estimators", tuple(estimators.items()))

    def __repr__(self) -> str:
        return f"PerSite({dict(self.estimators)!r})"

    def _of(self, kind: type[Kind]) -> dict[str, Kind]:
        return {name: e for name, e in self.estimators if isinstance(e, kind)}

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)
        sites = {site.name: site for site in problem.guide.sites()}
        if sorted(sites) != sorted(name for name, _ in self.estimators):
            got = sorted(name for name, _ in self.estimators)
            raise ValueError(
                f"estimator names sites {got}, the guide's are {sorted(sites)}: name each of them."
            )
        for estimator in self._of(Reparameterization).values():
            check_entropy(estimator, problem)
        check_pathwise(problem, params, x, list(self._of(Reparameterization)))
        for name, estimator in self._of(Reparameterization).items():
            if estimator.prior is not None:
                raise ValueError(f"site '{name}': a prior is for Reparameterization of all sites.")
            if estimator.sampling != Independent():
                raise ValueError(
                    f"site '{name}': PerSite shares its draws with the other sites, whose "
                    f"leave-one-out baselines need independent ones; got {estimator.sampling!r}."
                )
        for name in self._of(LocalExpectation):
            check_local(problem, params, x, sites[name])

    def cost_for(self, problem: Problem, params: Params, x: Data) -> Cost:
        num_values = self.num_samples * local_cost(problem, params, x, self._of(LocalExpectation))
        if self._of(Reparameterization):
            return Cost(num_values, self.num_samples)
        return Cost(num_values + self.num_samples)

    def init(self, problem: Problem, params: Params, x: Data) -> PyTree:
        return score_init(self._of(ScoreFunction), problem, params, x)

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        guide, sites = problem.guide, {site.name: site for site in problem.guide.sites()}
        score, local = self._of(ScoreFunction), self._of(LocalExpectation)

        def surrogate(params: Params) -> tuple[Array, PyTree]:
            phi = params.guide
            z = guide.stop_gradient(problem.sample(noise, params, x), {**score, **local})
            by_component, blankets = evaluate(score, problem, params, x, z)
            log_p = scalar = per_draw(by_component)
            for name in local:
                scalar += local_term(problem, params, x, z, sites[name])
            scalar += entropy_terms(self._of(Reparameterization), problem, phi, x, z)
            log_weights = stop_gradient(log_p - problem.log_q(params, x, z))
            return -jnp.mean(scalar), (z, by_component, blankets, log_weights)

        grads, (z, log_p, blankets, log_weights) = jax.grad(surrogate, has_aux=True)(params)
        if score:
            part = score_gradient(score, problem, params, x, z, log_p, blankets, state)
            grads = grads._replace(guide=jax.tree.map(jnp.add, grads.guide, part.grads))
            state = part.state
        return Estimate(problem.objective(log_weights), grads, log_weights), state


def entropy_terms(
    estimators: Mapping[str, Reparameterization],
    problem: Problem,
    phi: PyTree,
    x: Data,
    z: Latents,
) -> Array:
    """``[S]`` scalars whose gradient is that of the entropy of the named sites at pathwise z."""
    guide, total = problem.guide, jnp.zeros(())
    for name, estimator in estimators.items():
        if estimator.entropy is None or estimator.entropy == "closed_form":
            entropies = over_draws(lambda draw: guide.site_entropies(phi, x, draw), z)
            total += problem.weighted(entropies)[name]
        else:
            is_held = estimator.entropy == "stick_the_landing"
            at = stop_gradient(phi) if is_held else phi
            log_q = over_draws(lambda draw: site_sums(guide.site_log_probs(at, x, draw)), z)  # noqa: B023
            total -= problem.weighted(log_q)[name]
    return total


def site_sums(log_probs: dict[str, Array]) -> dict[str, Array]:
    """One scalar per site from the log densities of its blocks."""
    return {name: jnp.sum(log_q) for name, log_q in log_probs.items()}


def default_estimator(problem: Problem, params: Params, x: Data) -> Estimator:
    """A valid, low-variance estimator for every site: what ``fit`` uses when none is named.

    For the ELBO: pathwise where the site is reparameterized and ``log_joint`` is differentiable in
    it; for a ``Mixture``, from every component. Other sites are summed out exactly where their
    entries are independent given the rest and take few values, else get the Rao-Blackwellized score
    function. For bounds of several draws:
    doubly reparameterized if every site can be, else VIMCO. For the forward divergence:
    reweighted wake-sleep.

    Args:
      problem: model, guide and objective.
      params: parameters, or their shapes.
      x: data, or its shapes.

    Returns:
      For the ELBO ``Reparameterization``, ``Stratified``, ``LocalExpectation``, ``ScoreFunction``,
      or ``PerSite`` of them; else ``DoublyReparameterized``, ``Vimco``, ``ReweightedWakeSleep``,
      or, for an objective of one's own, ``Reparameterization``.
    """
    usable = problem.pathwise_leaves(params, x)
    sites = problem.guide.sites()
    pathwise = [
        site.name
        for site in sites
        if site.reparameterized and all(usable.get(leaf, True) for leaf in site.leaves)
    ]
    if not problem.objective.is_mean:
        return _of_several_draws(problem.objective, is_pathwise=len(pathwise) == len(sites))
    if len(pathwise) == len(sites):
        # A flow can come so close to the posterior that the noise which vanishes there is the most.
        is_flow = isinstance(problem.guide, NormalizingFlow)
        return Reparameterization(entropy="stick_the_landing" if is_flow else None)
    if isinstance(problem.guide, Mixture) and all(usable.values()):
        return Stratified()
    exact = _worth_summing_out(problem, params, x)
    is_exact = all(site.name in exact or site.name in pathwise for site in sites)
    num_samples = ScoreFunction.num_samples
    if is_exact:
        num_samples = (Reparameterization if pathwise else LocalExpectation).num_samples
    chosen: dict[str, SiteEstimator] = {
        site.name: Reparameterization(num_samples)
        if site.name in pathwise
        else LocalExpectation(num_samples)
        if site.name in exact
        else ScoreFunction(num_samples)
        for site in sites
    }
    kinds = {type(estimator) for estimator in chosen.values()}
    return next(iter(chosen.values())) if len(kinds) == 1 else PerSite(chosen)


def _of_several_draws(objective: Objective, *, is_pathwise: bool) -> Estimator:
    """The default for an objective other than the ELBO, with whole groups of draws."""
    kind: type[ReweightedWakeSleep | DoublyReparameterized | Reparameterization | Vimco] = Vimco
    if isinstance(objective, ForwardKl):
        kind = ReweightedWakeSleep
    elif is_pathwise:
        is_power = isinstance(objective, PowerMean)
        kind = DoublyReparameterized if is_power else Reparameterization
    size = objective.group_size
    return kind(num_samples=math.ceil(kind.num_samples / size) * size)


def _worth_summing_out(problem: Problem, params: Params, x: Data) -> set[str]:
    """Discrete sites of one colour and few values, where summing out beats sampling clearly."""
    discrete = [
        site
        for site in problem.guide.sites()
        if site.event_ndims == 0 and (site.num_values or math.inf) <= MAX_VALUES
    ]
    if not discrete:
        return set()
    z, args = problem.draw_shapes(params, x), problem.model_args(params)
    colours = num_colours(problem.log_joint, problem.guide.sites(), x, z, *args)
    return {site.name for site in discrete if colours[site.name] == 1}
