"""One gradient from a different estimator at each site, and the choice made by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Params, PyTree
from bbvi.estimators.base import Estimator, SurrogateEstimator, check_elbo, check_pathwise
from bbvi.estimators.reparameterization import Reparameterization, check_entropy
from bbvi.estimators.score_function import ScoreFunction
from bbvi.problem import Problem, over_draws


@dataclasses.dataclass(frozen=True, init=False)
class PerSite(SurrogateEstimator):
    r"""Pathwise gradients for some sites and score-function gradients for the others, at once.

    With z = (r, c), r reparameterized and c drawn with its gradient stopped,

    .. math::
      g = -\nabla_\phi \frac1S \sum_s \big[\log p(x, r_s(\phi), c_s) - \log q(r_s(\phi); \phi)
          + (f_s - b_s)\, \log q(c_s; \phi)\big]

    where the learning signal :math:`f_s - b_s` is held fixed. Unbiased. Every site uses the same
    draws; each score-function site has its own baseline.

    Args:
      estimators: ``{site name: Reparameterization(...) or ScoreFunction(...)}``, one for every
        site of the guide, all with the same ``num_samples``.

    Raises:
      ValueError: unequal ``num_samples``; sites that are missing or unknown; a pathwise
        estimator where none is valid.
      TypeError: an estimator that cannot be used for one site.

    Example:
      >>> import bbvi
      >>> bbvi.PerSite({"w": bbvi.Reparameterization(8), "c": bbvi.ScoreFunction(8)}).num_samples
      8

    References:
      Schulman, Heess, Weber and Abbeel (2015), Gradient Estimation Using Stochastic Computation
      Graphs.
    """

    estimators: tuple[tuple[str, Reparameterization | ScoreFunction], ...] = ()

    def __init__(self, estimators: Mapping[str, Reparameterization | ScoreFunction]):
        if not estimators:
            raise ValueError("PerSite needs an estimator for every site, got none.")
        for name, estimator in estimators.items():
            if not isinstance(estimator, Reparameterization | ScoreFunction):
                raise TypeError(
                    f"site '{name}': PerSite combines Reparameterization and ScoreFunction, got "
                    f"{estimator!r}."
                )
        counts = {name: estimator.num_samples for name, estimator in estimators.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"all sites share the draws, so num_samples must agree: got {counts}.")
        object.__setattr__(self, "num_samples", next(iter(counts.values())))
        object.__setattr__(self, "estimators", tuple(estimators.items()))

    def __repr__(self) -> str:
        return f"PerSite({dict(self.estimators)!r})"

    @property
    def _pathwise(self) -> dict[str, Reparameterization]:
        return {name: e for name, e in self.estimators if isinstance(e, Reparameterization)}

    @property
    def _score(self) -> dict[str, ScoreFunction]:
        return {name: e for name, e in self.estimators if isinstance(e, ScoreFunction)}

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)
        expected, got = [s.name for s in problem.guide.sites()], [n for n, _ in self.estimators]
        if sorted(expected) != sorted(got):
            raise ValueError(f"estimator names sites {sorted(got)}, the guide's are {expected}.")
        for estimator in self._pathwise.values():
            check_entropy(estimator, problem)
        check_pathwise(problem, params, x, list(self._pathwise))

    def init(self, problem: Problem, params: Params, x: Data) -> PyTree:
        return {name: e.baseline.init() for name, e in self._score.items()}

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        guide, phi = problem.guide, params.guide
        z = guide.stop_gradient(problem.sample(noise, params, x), self._score)
        log_p = problem.log_p(params, x, z)
        fixed = stop_gradient(phi)
        log_q = over_draws(lambda draw: guide.site_log_probs(phi, x, draw), z)
        frozen = over_draws(lambda draw: guide.site_log_probs(fixed, x, draw), z)
        entropies = over_draws(lambda draw: guide.site_entropies(phi, x, draw), z)
        log_weights = stop_gradient(log_p - sum(log_q.values()))

        scalar, next_state = log_p, {}
        for name, estimator in self.estimators:
            if isinstance(estimator, ScoreFunction):
                baseline, next_state[name] = estimator.baseline(state[name], log_weights)
                scalar += (log_weights - baseline) * log_q[name]
            elif estimator.entropy == "stick_the_landing":
                scalar -= frozen[name]
            elif estimator.entropy == "monte_carlo":
                scalar -= log_q[name]
            else:
                scalar += entropies[name]
        return -jnp.mean(scalar), (log_weights, next_state)


def default_estimator(problem: Problem, params: Params, x: Data) -> Estimator:
    """A valid, low-variance estimator for every site: what ``fit`` uses when none is named.

    Pathwise where the site is reparameterized and ``log_joint`` is differentiable in it, else
    the score function with a leave-one-out baseline.

    Args:
      problem: model, guide and objective.
      params: parameters, or their shapes.
      x: data, or its shapes.

    Returns:
      ``Reparameterization``, ``ScoreFunction``, or ``PerSite`` of the two.
    """
    usable = problem.pathwise_leaves(params, x)
    pathwise = {
        site.name: site.reparameterized and all(usable.get(leaf, True) for leaf in site.leaves)
        for site in problem.guide.sites()
    }
    if all(pathwise.values()):
        return Reparameterization(num_samples=max(8, problem.objective.group_size))
    if not any(pathwise.values()):
        return ScoreFunction()
    num_samples = ScoreFunction.num_samples
    return PerSite(
        {
            name: Reparameterization(num_samples) if ok else ScoreFunction(num_samples)
            for name, ok in pathwise.items()
        }
    )
