"""Estimators side by side on a model of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from bbvi._checks import check_count
from bbvi._types import Data, Key, LogJoint, Params, PyTree, check_key
from bbvi.comparison.gate import Exact, Gradient, Judge, check_mean, is_valid, joined_truth
from bbvi.comparison.replicates import (
    Replicates,
    Run,
    joined,
    replicate,
    resolution,
    rounds,
    settle,
)
from bbvi.comparison.result import ALL, VALUES_PER_GRADIENT, Comparison, ComparisonRow
from bbvi.estimators import Estimator, Mixed, PerSite, default_estimator
from bbvi.estimators.catalogue import CATALOGUE
from bbvi.guides.base import Guide
from bbvi.infer.fit import fit
from bbvi.infer.step import as_estimator, initial_params, make_step
from bbvi.objectives import Elbo, Objective
from bbvi.problem import Problem, check_problem
from bbvi.refinement import free_point, free_problem

SHARES = {"start": 0.0, "1 %": 0.01, "10 %": 0.1, "100 %": 1.0}
SETTLING_STEPS = 300
COMPOSED = (PerSite, Mixed)  # are made of other estimators
TIMED_STEPS = 100
ROUNDS = 7


# All estimators get the same keys, so that ratios of their variances are paired.
@jax.debug_key_reuse(False)  # noqa: FBT003
def compare_estimators(
    log_joint: LogJoint,
    guide: Guide,
    x: Data = None,
    *,
    estimators: Sequence[Estimator] | Mapping[str, Estimator] | None = None,
    key: Key | None = None,
    objective: Objective | None = None,
    num_samples: int = 8,
    points: Mapping[str, Params] | None = None,
    num_steps: int = 2000,
    num_replicates: int = 2000,
    truth: Estimator | Gradient | None = None,
    init_params: PyTree = None,
    model_params: PyTree = None,
    progress: bool = True,
) -> Comparison:
    r"""Variance, bias, cost and efficiency of gradient estimators on a model of one's own.

    All estimators are run at the same points: the start, 1, 10 and 100 % of a run of ``num_steps``
    with the default estimator, and the optimum that ``fit`` then finds. Rankings differ from point
    to point, and variances along runs of their own could not be compared. At each point learned
    coefficients and baselines settle for 300 gradients of their own, and are held fixed while R
    gradients :math:`g_r` are drawn. For each block of parameters

    .. math::
      \operatorname{tr} \widehat{\operatorname{Cov}}(g)
        = \frac1R \sum_r \lVert g_r - \bar g \rVert^2, \qquad
      \mathrm{SNR} = \frac{\lVert \operatorname{E} g \rVert}{\sqrt{\operatorname{tr Cov}(g)}},
      \qquad \mathrm{efficiency} = \frac{1}{\operatorname{tr Cov}(g) \times \mathrm{cost}}

    with standard errors, and of ratios intervals from common keys. An estimator whose mean is not
    the exact gradient, by Bonferroni's or Hotelling's test at :math:`10^{-4}`, does not pass: its
    variance is not shown in the table, since it is that of something else.

    Variances depend on how the guide is parameterized, and are those of bbvi's: log scales, logits.

    Args:
      log_joint: ``(x, z) -> []`` or ``(x, z, theta) -> []``.
      guide: the variational family.
      x: data, all of which are used at each gradient.
      estimators: a list, or a dict with names of your own; by default every unbiased one of the
        catalogue that is valid here.
      key: typed key; by default ``jax.random.key(0)``.
      objective: what is minimised; by default ``Elbo()``.
      num_samples: draws of each, where ``estimators`` is not given.
      points: parameters to compare at, instead of those of a run.
      num_steps: length of the run that the points are on.
      num_replicates: R; below 2000 errors of the errors are large.
      truth: what gives the exact gradient: a function of ``Params``, or an estimator without
        variance or with little. By default ``Enumeration()`` where it is possible, else for each
        estimator a long independent run of the other unbiased one with the least variance.
      init_params: parameters of the guide that the run starts from.
      model_params: learned parameters that it starts from.
      progress: show a bar.

    Returns:
      Table, picture, data frame and recommendation in a ``Comparison``.

    Raises:
      ValueError: no estimators, two of one name, or one that is not valid here; fewer than 100
        replicates; or as ``fit`` does, for a model, guide or data in error.
      TypeError: something that is no estimator; points that are not ``Params`` by name.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return -((jnp.sum(x * z["b"]) - 1.0) ** 2)
      >>> guide = bbvi.MeanField({"b": bbvi.Bernoulli((3,))})
      >>> comparison = bbvi.compare_estimators(
      ...     log_joint,
      ...     guide,
      ...     jnp.array([1.0, 0.5, -1.0]),
      ...     estimators=[bbvi.ScoreFunction(4), bbvi.DisArm(4), bbvi.StraightThrough(4)],
      ...     num_steps=200,
      ...     num_replicates=500,
      ...     progress=False,
      ... )
      >>> comparison.truth, {row.estimator for row in comparison.rows if row.passes is False}
      ('Enumeration(num_samples=1, sites=None)', {'StraightThrough'})

    References:
      Mohamed, Rosca, Figurnov and Mnih (2020), Monte Carlo Gradient Estimation in Machine Learning;
      Geffner and Domke (2020), A Rule for Gradient Estimator Selection.
    """
    check_count("num_replicates", num_replicates, 100)
    check_count("num_steps", num_steps)
    if not (truth is None or isinstance(truth, Estimator) or callable(truth)):
        raise TypeError(
            "truth must be an unbiased bbvi.Estimator, or a function that gives the exact "
            f"gradient, got {truth!r}."
        )
    key = jax.random.key(0) if key is None else check_key(key)
    start_key, settle_key, draw_key, truth_key = jax.random.split(key, 4)
    problem = Problem(log_joint, guide, objective or Elbo())
    start = initial_params(problem, start_key, x, init_params, model_params)
    point = free_point(problem, start, x)
    free = free_problem(problem)
    check_problem(free, point, x)
    chosen = _named(estimators, free, point, x, num_samples)
    if points is None:
        points = reference_points(problem, start_key, x, start, num_steps)
    if not points or not all(isinstance(params, Params) for params in points.values()):
        raise TypeError(
            "points must hold bbvi.Params by name, such as {'here': result.params}, got "
            f"{points!r}."
        )
    runs = {name: Run(problem, estimator) for name, estimator in chosen.items()}
    judge = Judge(problem, truth, truth_key, start, x, num_replicates, SETTLING_STEPS)
    measured: dict[str, dict[tuple[str, str], dict[str, Any]]] = {name: {} for name in runs}
    distances, states = {}, {}
    seconds: dict[str, list[float]] = {}
    with tqdm(total=len(points) * len(runs), disable=not progress, leave=False) as bar:
        for place, params in points.items():
            found = {}
            for name, run in runs.items():
                bar.set_postfix_str(f"{name}, {place}")
                states[name] = settle(run, settle_key, params, x, SETTLING_STEPS)
                found[name] = replicate(run, draw_key, states[name], x, num_replicates)
                bar.update()
            if not seconds:
                timed = {name: (run, states[name]) for name, run in runs.items()}
                seconds = rounds(timed, x, TIMED_STEPS, ROUNDS)
            bar.set_postfix_str(f"reference, {place}")
            truths = judge.truths(runs, states, found, params, seconds)
            name, run = next(iter(runs.items()))
            rounding = float(resolution(run, draw_key, states[name], x))
            for name, parts in found.items():
                exact = truths[name]
                whole = joined(parts)
                distances[place, name] = whole.distances
                for block, part in (parts | {ALL: whole}).items():
                    known = None
                    if exact is not None:
                        known = joined_truth(exact) if block == ALL else exact[block]
                    measured[name][place, block] = _measure(part, known, rounding)

    rows = []
    for name, estimator in chosen.items():
        values, gradients = estimator.cost_for(free, point, x)
        learns = bool(jax.tree.leaves(states[name].estimator_state))
        cost: dict[str, Any] = {
            "draws": estimator.num_samples,
            "values": values,
            "gradients": gradients,
            "seconds": float(np.median(seconds[name])),
            "seconds_error": 1.2533 * float(np.std(seconds[name], ddof=1)) / math.sqrt(ROUNDS),
            "tuning": learns * SETTLING_STEPS * (values + VALUES_PER_GRADIENT * gradients),
        }
        for (place, block), row in measured[name].items():
            rows.append(ComparisonRow(place, block, name, estimator.is_biased, **row, **cost))
    return Comparison(
        tuple(rows), chosen, dict(points), judge.description, num_replicates, distances
    )


def reference_points(
    problem: Problem, key: Key, x: Data, start: Params, num_steps: int
) -> dict[str, Params]:
    """Points of one run: at its start, after shares of its steps, and the optimum after it."""
    init, step = make_step(problem.log_joint, problem.guide, objective=problem.objective)
    state = init(key, x, start.guide, start.model)

    @jax.jit
    def advance(state: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, s: step(s, x)[0], state)

    points, done = {}, 0
    for name, share in SHARES.items():
        target = round(share * num_steps)
        state, done = advance(state, target - done), target
        points[name] = state.params
    fitted = fit(
        *(problem.log_joint, problem.guide, x),
        key=key,
        objective=problem.objective,
        init_params=state.params.guide,
        model_params=state.params.model,
        progress=False,
    )
    return points | {"optimum": fitted.params}


def _named(
    estimators: Sequence[Estimator] | Mapping[str, Estimator] | None,
    problem: Problem,
    params: Params,
    x: Data,
    num_samples: int,
) -> dict[str, Estimator]:
    """The estimators by name, all of them valid here."""
    if estimators is None:
        return valid_estimators(problem, params, x, num_samples)
    if isinstance(estimators, Estimator):
        raise TypeError(f"estimators must be a list or a dict of them, got {estimators!r}.")
    if isinstance(estimators, Mapping):
        named = {name: _checked(estimator) for name, estimator in estimators.items()}
    else:
        every = [_checked(estimator) for estimator in estimators]
        kinds = [type(estimator).__name__ for estimator in every]
        names = [
            kind if kinds.count(kind) == 1 else repr(estimator)
            for kind, estimator in zip(kinds, every, strict=True)
        ]
        named = dict(zip(names, every, strict=True))
        if len(named) < len(every):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"estimators has {twice} twice.")
    if not named:
        raise ValueError("estimators is empty; leave it out for all that are valid here.")
    for estimator in named.values():
        estimator.validate(problem, params, x)
    return named


def _checked(estimator: Any) -> Estimator:
    checked = as_estimator(estimator)
    if checked is None:
        raise TypeError("estimators must hold estimators such as bbvi.ScoreFunction(8), got None.")
    return checked


def valid_estimators(
    problem: Problem, params: Params, x: Data, num_samples: int
) -> dict[str, Estimator]:
    """What ``fit`` would take, and every unbiased estimator of the catalogue that is valid."""
    valid: dict[str, Estimator] = {}
    for entry in CATALOGUE:
        kind = entry.estimator
        if kind.is_biased is True or kind in COMPOSED:
            continue
        estimator = kind(num_samples)
        if is_valid(estimator, problem, params, x):
            valid[kind.__name__] = estimator
    default = default_estimator(problem, params, x)
    if type(default).__name__ not in valid:
        valid[type(default).__name__] = default
    return valid


def _measure(found: Replicates, truth: Exact | None, rounding: float) -> dict[str, Any]:
    """The columns of a row that do not depend on cost."""
    order = np.argsort(found.variance)
    middle, worst = order[len(order) // 2], order[-1]
    trace, error = found.trace, found.trace_error
    columns = {
        "trace": trace,
        "trace_error": error,
        "median": float(found.variance[middle]),
        "median_error": float(found.variance_error[middle]),
        "max": float(found.variance[worst]),
        "max_error": float(found.variance_error[worst]),
        "kurtosis": found.kurtosis,
    }
    nothing = ("snr", "snr_error", "bias", "bias_error", "bias_share", "z")
    if truth is None:
        return columns | dict.fromkeys(nothing, math.nan) | {"passes": None}
    gate = check_mean(found, truth, rounding)
    noise = trace / len(found.distances) + float(truth.variance.sum())
    # Squares of noisy vectors are too large by the noise.
    norm = math.sqrt(max(float(truth.value @ truth.value - truth.variance.sum()), 0.0))
    off = found.mean - truth.value
    squared_bias = max(float(off @ off) - noise, 0.0)
    snr = norm / math.sqrt(trace) if trace else math.inf
    return columns | {
        "snr": snr,
        "snr_error": snr * error / (2 * trace) if trace else 0.0,
        "bias": math.sqrt(squared_bias) / norm if norm else math.nan,
        "bias_error": math.sqrt(noise) / norm if norm else math.nan,
        "bias_share": squared_bias / (squared_bias + trace) if squared_bias + trace else 0.0,
        "z": gate.z,
        "passes": gate.passes,
    }
