"""``Auto``: richer and richer guides, each started from the last, while there is much to gain."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from bbvi._tree import as_arrays
from bbvi._types import Data, Key, LogJoint, PyTree
from bbvi.diagnostics import MonteCarlo, monte_carlo_mean, psis_khat
from bbvi.estimators import default_estimator
from bbvi.guides import (
    FullRank,
    Guide,
    LowRank,
    MeanField,
    Mixture,
    Normal,
    NormalizingFlow,
    Product,
)
from bbvi.infer.automatic import MAX_FULL, MAX_NATURAL, MAX_NOVELTY, can_scout, scout
from bbvi.infer.result import FitResult
from bbvi.problem import Problem, check_problem

RANK = 16  # where there are too many dimensions for a full covariance
NUM_MODES = 4  # looked for
FAR = 3.0  # deviations, beyond a typical draw's own, that tell two modes from one
NUM_DRAWS = 4096  # that a rung is judged by
GAP = 0.1  # nats that are not worth another rung where the weights can be relied on
NO_GAP = 0.02  # nats at which weights hardly vary, so that k-hat is noise

Start = Callable[[dict[type, FitResult]], PyTree]


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Auto:
    """Leaves the guide to ``fit``: mean field, covariances, mixtures and flows are tried in turn.

    ``fit`` starts with ``MeanField``. As long as importance weights say that there is something to
    gain, it goes on, each time from where an earlier guide or a short run ended: to ``FullRank``
    (``LowRank`` beyond 256 dimensions), to a ``Mixture`` where short runs from different starts end
    at different modes, and to a ``NormalizingFlow``. The fit with the best bound is returned, and
    all that were tried are its ``ladder``. Sites that are not normal stay independent of the rest;
    where there are any the last rung is ``FullRank`` for those that are.

    Args:
      sites: pytree of sites by latent, as for ``MeanField``: shapes and supports.

    Raises:
      TypeError: a leaf is not a site.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):  # correlated
      ...     a, b = z["w"]
      ...     return -0.5 * (a**2 + (b - a) ** 2 / 0.01)
      >>> result = bbvi.fit(log_joint, bbvi.Auto({"w": bbvi.Normal((2,))}), progress=False)
      >>> [type(rung.guide).__name__ for rung in result.ladder]
      ['MeanField', 'FullRank']
      >>> type(result.problem.guide).__name__
      'FullRank'

    References:
      Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational
      Inference, for telling by importance weights whether a guide will do.
    """

    mean_field: MeanField

    def __init__(self, sites: PyTree):
        object.__setattr__(self, "mean_field", MeanField(sites))

    @property
    def sites(self) -> PyTree:
        """The sites as they were given."""
        return jax.tree.unflatten(self.mean_field.treedef, self.mean_field.families)

    def __repr__(self) -> str:
        return f"Auto({self.sites!r})"


class Rung(NamedTuple):
    """One guide that ``Auto`` tried.

    Attributes:
      guide: the guide.
      status: of its fit.
      elbo: its bound at fresh draws, in nats.
      khat: shape of the tail of its importance weights.
      gap: log mean weight minus mean log weight: what a perfect guide could gain, in nats.
      seconds: wall-clock time, compilation included.
    """

    guide: Guide
    status: str
    elbo: MonteCarlo
    khat: float
    gap: float
    seconds: float


class Modes(NamedTuple):
    """Where short runs from different starts ended, each mode once, the best first.

    Attributes:
      guide: the Gaussian that was run.
      params: its parameters at each of them.
      weights: roughly their shares of the mass.
    """

    guide: FullRank | MeanField
    params: list[PyTree]
    weights: np.ndarray


def climb(
    fit: Callable[..., FitResult],
    log_joint: LogJoint,
    auto: Auto,
    x: Data,
    key: Key,
    model_params: PyTree,
    *,
    throw: bool,
) -> FitResult:
    """Fits guide after guide and returns the best fit, with its ``ladder``.

    Args:
      fit: ``fit`` with all other options.
      log_joint: the model.
      auto: the sites.
      x: data.
      key: typed key.
      model_params: theta to start from, or None; a rung starts from the theta of the best so far.
      throw: whether errors of the first rung are raised; a later one that fails is passed over.
    """
    key, mode_key = jax.random.split(key)
    modes = _find_modes(log_joint, auto, x, mode_key, model_params)
    fits: dict[type, FitResult] = {}
    rungs: list[Rung] = []
    best = 0
    for guide, start in _plan(auto, modes):
        if rungs and _is_enough(rungs[best]) and not isinstance(guide, Mixture):
            continue
        key, run_key, look_key = jax.random.split(key, 3)
        result = fit(
            *(log_joint, guide, x),
            key=run_key,
            init_params=start(fits),
            model_params=fits[type(rungs[best].guide)].params.model if rungs else model_params,
            throw=throw and not rungs,
        )
        fits[type(guide)] = result
        rungs.append(_look(result, look_key))
        if _is_better(rungs[-1], rungs[best]):
            best = len(rungs) - 1
        if result.status in ("stopped", "interrupted", "failed"):
            break
    return dataclasses.replace(fits[type(rungs[best].guide)], ladder=tuple(rungs))


def _look(result: FitResult, key: Key) -> Rung:
    """How good a fit is, by its importance weights."""
    guide, weights = result.problem.guide, result.log_weights(key, NUM_DRAWS)
    if not bool(jnp.isfinite(weights).all()):
        nothing = MonteCarlo(-math.inf, math.inf)
        return Rung(guide, result.status, nothing, math.inf, math.inf, result.seconds)
    elbo = monte_carlo_mean(weights)
    gap = float(logsumexp(weights)) - math.log(NUM_DRAWS) - elbo.value
    return Rung(guide, result.status, elbo, psis_khat(weights), gap, result.seconds)


def _is_enough(rung: Rung) -> bool:
    """Whether a richer guide has little to gain."""
    return rung.gap < NO_GAP or (rung.gap < GAP and rung.khat < 0.7)


def _is_better(rung: Rung, best: Rung) -> bool:
    error = math.hypot(rung.elbo.standard_error, best.elbo.standard_error)
    gain = rung.elbo.value - best.elbo.value
    return math.isfinite(rung.elbo.value) and not gain <= 2 * error


def _plan(auto: Auto, modes: Modes | None) -> Iterator[tuple[Guide, Start]]:
    """The rungs in order, and where each starts, from the fits of those before it."""
    mean_field, sites = auto.mean_field, auto.sites
    size, is_normal = mean_field.layout.size, not mean_field.others
    if modes is None:
        yield mean_field, lambda fits: None
    else:
        location = modes.guide.mean_field(modes.params[0])
        yield mean_field, lambda fits: mean_field.from_mean_field(*location)
    if modes is None or not is_normal:
        yield from _joint_normals(mean_field, sites)
        return

    def gaussian(fits: dict[type, FitResult]) -> tuple[Array, Array]:
        return mean_field.mean_field(fits[MeanField].params.guide)

    full: FullRank | LowRank = FullRank(sites) if size <= MAX_NATURAL else LowRank(sites, RANK)
    if size > 1:
        yield (
            full,
            lambda fits: (
                modes.params[0] if modes.guide == full else full.from_mean_field(*gaussian(fits))
            ),
        )
    if len(modes.params) > 1:
        mixture = Mixture(modes.guide, len(modes.params))
        yield mixture, lambda fits: mixture.from_components(modes.params, list(modes.weights))
    if size <= MAX_NATURAL:
        flow = NormalizingFlow(sites)
        yield (
            flow,
            lambda fits: (
                flow.from_full_rank(fits[FullRank].params.guide)
                if size > 1
                else flow.from_mean_field(*gaussian(fits))
            ),
        )


def _joint_normals(mean_field: MeanField, sites: PyTree) -> Iterator[tuple[Guide, Start]]:
    """A full covariance for the normal sites of a dict of several kinds."""
    if not isinstance(sites, dict):
        return

    def is_normal(part: PyTree) -> bool:
        families = jax.tree.leaves(part, is_leaf=lambda site: site in mean_field.families)
        return all(isinstance(family, Normal) for family in families)

    normal = {name: part for name, part in sites.items() if is_normal(part)}
    rest = {name: part for name, part in sites.items() if name not in normal}
    if not normal or not rest:
        return
    full, others = FullRank(normal), MeanField(rest)
    if not 1 < full.layout.size <= MAX_NATURAL:
        return

    def start(fits: dict[type, FitResult]) -> PyTree:
        by_site = mean_field.site_params(fits[MeanField].params.guide)
        loc, log_scale = (
            full.layout.join({name: by_site[name][part] for name in full.named_families})
            for part in ("loc", "log_scale")
        )
        of_others = {name: by_site[name] for name in others.named_families}
        return full.from_mean_field(loc, log_scale), others.from_site_params(of_others)

    yield Product(full, others), start


def _find_modes(
    log_joint: LogJoint, auto: Auto, x: Data, key: Key, model_params: PyTree
) -> Modes | None:
    """The modes that short runs from different starts find, where there can be such runs."""
    init_key, mixture_key, key = jax.random.split(key, 3)
    x = as_arrays(x)
    problem = Problem(log_joint, auto.mean_field)
    params = problem.init(init_key, x, model_params)
    check_problem(problem, params, x)
    if not can_scout(problem, default_estimator(problem, params, x)):
        return None
    family = FullRank if auto.mean_field.layout.size <= MAX_FULL else MeanField
    guide: Any = family(auto.sites)
    mixture = dataclasses.replace(problem, guide=Mixture(guide, NUM_MODES))
    found = scout(mixture, key, mixture.init(mixture_key, x, model_params), x).params.guide
    logits = np.asarray(found["logits"], np.float64)
    params_of = [
        jax.tree.map(lambda leaf: leaf[k], found["components"])  # noqa: B023
        for k in range(NUM_MODES)
    ]
    kept: list[int] = []
    for k in np.argsort(-logits):
        is_new = all(_are_apart(guide, params_of[k], params_of[j]) for j in kept)
        if is_new and logits[k] > logits.max() - MAX_NOVELTY:
            kept.append(int(k))
    weights = np.exp(logits[kept] - logits.max())
    return Modes(guide, [params_of[k] for k in kept], weights / weights.sum())


def _are_apart(guide: FullRank | MeanField, one: PyTree, other: PyTree) -> bool:
    """Whether each of two Gaussians hardly ever draws a value as far out as the other's mean."""
    distances = []
    for params, mean in ((one, guide.mean_field(other)[0]), (other, guide.mean_field(one)[0])):
        if isinstance(guide, FullRank):
            noise = guide.noise_at(params, mean)
        else:
            loc, log_scale = guide.mean_field(params)
            noise = (mean - loc) * jnp.exp(-log_scale)
        distances.append(float(jnp.linalg.norm(noise)))
    return min(distances) > FAR + math.sqrt(guide.layout.size)
