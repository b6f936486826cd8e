"""The choice of an estimator by measurement: variance times cost, site by site."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from bbvi._checks import check_count
from bbvi._types import Data, Key, LogJoint, Params, PyTree, check_key
from bbvi.comparison.gate import is_valid
from bbvi.comparison.replicates import Run, replicate, rounds, settle
from bbvi.estimators import (
    Estimator,
    LocalExpectation,
    PerSite,
    Reparameterization,
    ScoreFunction,
)
from bbvi.estimators.per_site import SiteEstimator
from bbvi.guides.base import Guide
from bbvi.infer.step import make_step
from bbvi.problem import Problem

# Steps in which coefficients and baselines settle before a gradient's variance is measured.
WARM_UP = 200
ROUNDS = 5  # of which the quickest counts


class Measurement(NamedTuple):
    """What one estimator does at one site.

    Attributes:
      site: name of the site.
      estimator: what was measured there.
      variance: trace of the covariance of the gradient in the site's parameters.
      seconds: time of one gradient, of all sites together, in the quickest of some rounds.
    """

    site: str
    estimator: Any
    variance: float
    seconds: float

    @property
    def inefficiency(self) -> float:
        """Variance times cost: the time it takes to reach unit variance by averaging."""
        return self.variance * self.seconds


@dataclasses.dataclass(frozen=True, repr=False)
class Choice:
    """What ``choose_estimator`` found.

    Attributes:
      estimator: the best valid estimator of each site, to pass to ``fit``.
      measurements: all that was measured.

    Example:
      >>> import bbvi
      >>> bbvi.Choice(bbvi.ScoreFunction(4), ()).estimator.num_samples
      4
    """

    estimator: Estimator
    measurements: tuple[Measurement, ...]

    def __repr__(self) -> str:
        lines = [f"{'site':<16} {'variance':>10} {'µs':>9} {'product':>10}  estimator"]
        for site in dict.fromkeys(m.site for m in self.measurements):
            rows = sorted(
                (m for m in self.measurements if m.site == site), key=lambda m: m.inefficiency
            )
            for m in rows:
                lines.append(
                    f"{site:<16} {m.variance:>10.3g} {1e6 * m.seconds:>9.3g} "
                    f"{m.inefficiency:>10.3g}  {m.estimator!r}"
                )
                site = ""
        return "\n".join(lines)


def choose_estimator(
    log_joint: LogJoint,
    guide: Guide,
    x: Data = None,
    *,
    key: Key,
    num_samples: int = 16,
    num_steps: int = 300,
    num_replicates: int = 1000,
    init_params: PyTree = None,
    model_params: PyTree = None,
) -> Choice:
    r"""Pick for each site the valid estimator of least variance times cost, by a short pilot run.

    After ``num_steps`` steps of the default fit (rankings at the start say little of those near
    the optimum) every valid estimator is run at that point, after steps that settle its
    coefficients. Candidates: ``Reparameterization``, ``LocalExpectation`` and
    ``ScoreFunction`` with its three signals. At each site the one with the least
    :math:`\operatorname{tr}\operatorname{Var}(g_{site}) \times \mathrm{seconds}` is taken.

    Args:
      log_joint: ``(x, z) -> []`` or ``(x, z, theta) -> []``.
      guide: the variational family.
      x: data.
      key: typed key.
      num_samples: S of every candidate, at least 2.
      num_steps: steps before the measurement; 0 to measure at ``init_params``.
      num_replicates: gradients per candidate, from which the variance is known within some percent.
      init_params: parameters of the guide to start from.
      model_params: learned parameters to start from.

    Returns:
      The estimator, to pass to ``fit``, and a table of all that was measured.

    Raises:
      ValueError: fewer than two samples; or as ``fit`` does, for a model, guide or data in error.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return -0.5 * jnp.sum((x - z["mu"][z["c"]]) ** 2) - 0.5 * jnp.sum(z["mu"] ** 2)
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal((2,)), "c": bbvi.Categorical(2, (3,))})
      >>> x = jnp.array([-1.0, 0.5, 2.0])
      >>> choice = bbvi.choose_estimator(
      ...     log_joint, guide, x, key=jax.random.key(0), num_samples=4, num_replicates=200
      ... )
      >>> of_mu = [m for m in choice.measurements if m.site == "mu"]
      >>> min(of_mu, key=lambda m: m.variance).estimator.is_pathwise
      True

    References:
      Geffner and Domke (2020), A Rule for Gradient Estimator Selection, with an Application to
      Variational Inference.
    """
    check_count("num_samples", num_samples, 2)
    check_count("num_steps", num_steps, least=0)
    check_count("num_replicates", num_replicates, 2)
    start_key, key = jax.random.split(check_key(key))
    init, step = make_step(log_joint, guide)
    state = init(start_key, x, init_params, model_params)
    state = jax.jit(lambda s: jax.lax.fori_loop(0, num_steps, lambda _, s: step(s, x)[0], s))(state)
    problem = Problem(log_joint, guide)
    valid = _valid_estimators(problem, state.params, x, num_samples)
    measurements: list[Measurement] = []
    for kind in range(max(len(options) for options in valid.values())):
        # One program measures the candidate of this number at every site that has one.
        chosen = {name: options[min(kind, len(options) - 1)] for name, options in valid.items()}
        variances, seconds = _measure(
            jax.random.fold_in(key, kind), PerSite(chosen), problem, state.params, x, num_replicates
        )
        for name, options in valid.items():
            if kind < len(options):
                measurements.append(Measurement(name, options[kind], variances[name], seconds))
    best = {
        name: min((m for m in measurements if m.site == name), key=lambda m: m.inefficiency)
        for name in valid
    }
    return Choice(PerSite({name: m.estimator for name, m in best.items()}), tuple(measurements))


def _valid_estimators(
    problem: Problem, params: Params, x: Data, num_samples: int
) -> dict[str, list[Any]]:
    """By site the estimators that may be used there."""
    candidates: list[SiteEstimator] = [
        *(ScoreFunction(num_samples, signal=s) for s in ("adaptive", "blanket", "full")),
        Reparameterization(num_samples),
        LocalExpectation(num_samples),
    ]
    sites = [site.name for site in problem.guide.sites()]
    fallback: dict[str, SiteEstimator] = dict.fromkeys(sites, ScoreFunction(num_samples))

    def may_serve(name: str, candidate: SiteEstimator) -> bool:
        return is_valid(PerSite({**fallback, name: candidate}), problem, params, x)

    return {name: [c for c in candidates if may_serve(name, c)] for name in sites}


def _measure(
    key: Key, estimator: PerSite, problem: Problem, params: Params, x: Data, num_replicates: int
) -> tuple[dict[str, float], float]:
    """Variance of the gradient by site, and seconds per gradient."""
    settle_key, key = jax.random.split(key)
    run = Run(problem, estimator)
    state = settle(run, settle_key, params, x, WARM_UP)
    parts = replicate(run, key, state, x, num_replicates)
    variances = {}
    for site, _ in estimator.estimators:
        own = [part.trace for name, part in parts.items() if f"{name}.".startswith(f"{site}.")]
        # Of a network that serves all sites, all.
        variances[site] = sum(own or (part.trace for part in parts.values()))
    # What else a machine does makes a round slower, never quicker.
    return variances, min(rounds({"": (run, state)}, x, WARM_UP, ROUNDS)[""])
