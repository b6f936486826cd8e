"""Variance, bias, cost and efficiency of estimators on many models, at common points.

``python -m benchmarks.variance [--models M ...] [--estimators E ...] [--budget B ...] [--quick]``

For each model every unbiased estimator that is valid there goes through ``compare_estimators``: at
the start, 1, 10 and 100 % of one run with the default estimator, and at the optimum, with a test of
its mean before its variance counts. At the budget "samples" all draw eight times a step; at
"evaluations" each as often as a common number of evaluations of ``log_joint`` allows, a gradient
counted as three, since variances of estimators that couple their draws cannot be scaled from one
number of draws to another. The third budget, time, is in both. Models that are in the results
already, measured in the same way, are not run again.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

import bbvi
from bbvi.comparison.compare import valid_estimators
from bbvi.comparison.result import ALL, VALUES_PER_GRADIENT
from bbvi.estimators import unordered_set
from benchmarks import measure, report, store, targets

PACKAGES = ("jax", "jaxlib", "optax", "distrax", "numpy")
BUDGETS = ("samples", "evaluations")  # in which all are equal
NUM_SAMPLES = 8
EVALUATIONS = 48
BASELINE = "VarGrad"  # leave-one-out with the full signal: valid everywhere, and known to all
DRAWS = (64, 48, 32, 24, 16, 12, 8, 6, 4, 2)
FEWEST = 4  # models that a curve is drawn for
ROUNDING = 1e6  # gains beyond it are over a variance of rounding alone
MOST_DRAWS = {bbvi.UnorderedSet: unordered_set.MAX_SAMPLES}

MODELS = {
    "beta_bernoulli": lambda: targets.registered("beta_bernoulli", "logit_normal"),
    "eight_schools": lambda: targets.registered("eight_schools_noncentered"),
    "breast_cancer": lambda: targets.registered("breast_cancer"),
    "radon": lambda: targets.radon(80, 10),
    "sir_influenza": lambda: targets.registered("sir_influenza"),
    "state_space": lambda: targets.random_walk(30),
    "factorization": lambda: targets.factorization(20, 15, 2, 5),
    "gaussian_mixture": lambda: targets.registered("gaussian_mixture_small"),
    "wine_mixture": lambda: targets.mixture(60),
    "hidden_markov": lambda: targets.hidden_markov_chain(30),
    "ising": lambda: targets.ising_grid(4, 4),
    "karate_club": lambda: targets.registered("karate_club"),
    "crowdsourcing": lambda: targets.crowd(40, 10),
    "topics": lambda: targets.document_topics(5, 15, 3, 12),
    "sigmoid_belief": lambda: targets.belief_network(10, (4, 3)),
}
QUICK = ("beta_bernoulli", "gaussian_mixture")


def chosen_estimators(
    model: targets.Model, budget: str, kinds: Sequence[str]
) -> dict[str, bbvi.Estimator]:
    """The valid estimators, of the kinds named, with as many draws as the budget gives them."""
    problem = bbvi.Problem(model.log_joint, model.guide)
    params = problem.init(jax.random.key(0), model.x)
    valid = valid_estimators(problem, params, model.x, NUM_SAMPLES)
    named = {name: e for name, e in valid.items() if name in {*kinds, BASELINE} or not kinds}
    if budget == "samples":
        return named

    def within(estimator: bbvi.Estimator) -> bbvi.Estimator:
        """The most draws whose evaluations are within the budget, or the fewest there are."""
        if isinstance(estimator, bbvi.PerSite):
            sizes = [
                bbvi.PerSite({site: type(e)(n) for site, e in estimator.estimators}) for n in DRAWS
            ]
        elif isinstance(estimator, bbvi.Enumeration):
            return estimator
        else:
            most = MOST_DRAWS.get(type(estimator), DRAWS[0])
            sizes = [type(estimator)(n) for n in DRAWS if n <= most]
        for sized in sizes:
            values, gradients = sized.cost_for(problem, params, model.x)
            if values + VALUES_PER_GRADIENT * gradients <= EVALUATIONS:
                return sized
        return sizes[-1]

    return {name: within(estimator) for name, estimator in named.items()}


def run_case(
    name: str, budget: str, kinds: Sequence[str], settings: dict[str, Any]
) -> tuple[dict[str, Any], bbvi.Comparison]:
    """All that is measured of one model."""
    model = MODELS[name]()
    comparison = bbvi.compare_estimators(
        *model,
        estimators=chosen_estimators(model, budget, kinds),
        key=jax.random.key(settings["seed"]),
        num_steps=settings["num_steps"],
        num_replicates=settings["num_replicates"],
        progress=False,
    )
    points = list(comparison.points)
    ratios = {
        point: {
            other: comparison.ratio(BASELINE, other, point)
            for other in comparison.estimators
            if other != BASELINE
        }
        for point in points
    }
    case = {
        "case": f"{name}, {budget}",
        "model": name,
        "budget": budget,
        "settings": settings | {"estimators": sorted(kinds)},
        "environment": measure.environment(*PACKAGES),
        "truth": comparison.truth,
        "points": points,
        "estimators": {key: repr(value) for key, value in comparison.estimators.items()},
        "gains": ratios,
        "rows": [row._asdict() for row in comparison.rows],
    }
    return case, comparison


def plot_gains(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the distribution over models of the gain over leave-one-out, by estimator.

    At 100 % of the run, of the trace over all parameters at equal evaluations; those with no
    variance but rounding are at the right edge. Estimators for few of the models are left to the
    tables.
    """
    from matplotlib.figure import Figure

    from bbvi.plotting.comparison import COLOURS

    gains: dict[str, list[float]] = {}
    for case in results["cases"]:
        if case["budget"] == "evaluations":
            for name, (value, _, _) in case["gains"][case["points"][-2]].items():
                gains.setdefault(name, []).append(value)
    most = max(map(len, gains.values()), default=0)
    gains = {name: values for name, values in gains.items() if len(values) >= min(FEWEST, most)}
    if not gains:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    finite = [g for values in gains.values() for g in values if 0 < g < ROUNDING]
    edge = 3 * max(finite, default=1.0)
    order = sorted(gains, key=lambda name: -float(np.median(gains[name])))
    for number, name in enumerate(order):
        values = np.sort(np.minimum(np.nan_to_num(gains[name], nan=1.0, posinf=edge), edge))
        heights = np.arange(1, len(values) + 1) / len(values)
        axis.step(
            *(np.concatenate([values[:1], values]), np.concatenate([[0], heights])),
            where="post",
            color=COLOURS[number % len(COLOURS)],
            linestyle=("-", "--", "-.", ":")[number // len(COLOURS) % 4],
            label=f"{name} ({len(values)})",
        )
    axis.axvline(1.0, color="0.5", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xlabel(f"variance of leave-one-out / variance, at {EVALUATIONS} evaluations a step")
    axis.set_ylabel("share of models with at most this gain")
    axis.grid(visible=True, alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, title="(models)", title_fontsize=8)
    figure.savefig(path, dpi=150)


def tables(results: dict[str, Any]) -> list[str]:
    """The report: a table for each model and budget at 100 % of the run, with all three budgets."""
    parts = [
        "# Variance",
        f"{report.machine(results['cases'][0]['environment'])}. Trace of the covariance of the "
        "gradient over all parameters at 100 % of a run, with its standard error; the same times "
        "evaluations of log_joint (a gradient counts as three) and times microseconds; gain: "
        "leave-one-out's variance over this one, with a 95 % interval from common keys; z: largest "
        "deviation of an entry of the mean from the truth, in standard errors. Variances of "
        "estimators whose mean is wrong are not shown. Other points and single blocks of "
        "parameters are in the JSON file.",
    ]
    head = ("estimator", "draws", "evaluations", "µs", "variance", "x evaluations", "x µs")
    head += ("gain", "SNR", "z", "learned from")
    for case in results["cases"]:
        point = case["points"][-2]
        rows = [row for row in case["rows"] if (row["point"], row["block"]) == (point, ALL)]
        rows.sort(key=lambda row: row["trace"] * row["seconds"])
        lines = []
        for row in rows:
            evaluations = row["values"] + VALUES_PER_GRADIENT * row["gradients"]
            micros, error = 1e6 * row["seconds"], report.number(row["trace_error"])
            gain = case["gains"][point].get(row["estimator"])
            shown = [
                f"{report.number(row['trace'])} ± {error}",
                report.number(row["trace"] * evaluations),
                report.number(row["trace"] * micros),
                "1" if gain is None else report.interval(*gain),
                report.number(row["snr"]),
            ]
            if row["passes"] is False:
                shown = ["mean is wrong", *["-"] * 4]
            tails = "" if row["passes"] is not None else " (heavy tails)"
            name = row["estimator"]
            cells = [name, str(row["draws"]), str(evaluations), report.number(micros)]
            lines.append([*cells, *shown, f"{row['z']:.1f}{tails}", str(row["tuning"])])
        settings = case["settings"]
        parts += [
            f"## {case['model']}, equal {case['budget']}",
            f"Truth: {case['truth']}; {settings['num_replicates']} replicates; run of "
            f"{settings['num_steps']} steps.",
            report.table(head, lines),
        ]
    return parts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--estimators", nargs="+", default=[], help="names of classes")
    parser.add_argument("--budget", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--quick", action="store_true", help="two models, 400 replicates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; tables and figures beside it")
    options = parser.parse_args(arguments)
    budgets = options.budget[:1] if options.quick else options.budget
    settings = {
        "seed": options.seed,
        "num_steps": 200 if options.quick else 2000,
        "num_replicates": 400 if options.quick else 2000,
    }
    names = options.models or (QUICK if options.quick else list(MODELS))
    wanted = settings | {"estimators": sorted(options.estimators)}
    done = {case["case"]: case for case in store.load(options.out)}
    bar = tqdm([(name, budget) for name in names for budget in budgets], unit="model")
    results: dict[str, Any] = {"suite": "variance", "cases": list(done.values())}
    for name, budget in bar:
        bar.set_postfix_str(f"{name}, {budget}")
        if done.get(f"{name}, {budget}", {}).get("settings") == wanted:
            continue
        jax.clear_caches()  # programs of thirty cases are more than one process may map
        case, comparison = run_case(name, budget, options.estimators, settings)
        if options.out is None:
            results["cases"].append(case)
            continue
        results = store.merge(options.out, "variance", case)
        folder = options.out.with_suffix("")
        folder.mkdir(exist_ok=True)
        comparison.plot(str(folder / f"{name}-{budget}.png"))
    print("\n\n".join(tables(results)))
    if options.out is not None:
        plot_gains(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
