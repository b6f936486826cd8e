"""Variance as draws are added: score function with and without control variates, and pathwise.

``python -m benchmarks.sample_sizes [--quick] [--out results.json]``

The comparison of Kucukelbir et al. (2017), Automatic Differentiation Variational Inference, with
error bars and on a model whose data everyone has: logistic regression of the breast-cancer data, at
the start of a run, after a tenth and at its end. Slopes of log variance against the logarithm of
the number of draws have 95 % intervals: -1 is that of independent draws.
"""

import argparse
import math
import pathlib
from typing import Any

import numpy as np

import bbvi
from bbvi.comparison.result import ALL
from benchmarks import measure, report, store, targets

PACKAGES = ("jax", "jaxlib", "distrax", "numpy")
SIZES = (2, 4, 8, 16, 32, 64)
POINTS = ("start", "10 %", "100 %")
SOBOL = bbvi.ScrambledSobol()
CONTESTANTS = {
    "score function": lambda n: bbvi.ScoreFunction(n, baseline=bbvi.NoBaseline(), signal="full"),
    "leave-one-out": lambda n: bbvi.ScoreFunction(n, signal="full"),
    "coordinate control variate": bbvi.CoordinateControlVariate,
    "pathwise": bbvi.Reparameterization,
    "pathwise, antithetic": lambda n: bbvi.Reparameterization(n, sampling=bbvi.Antithetic()),
    "pathwise, scrambled Sobol": lambda n: bbvi.Reparameterization(
        n, sampling=bbvi.ScrambledSobol()
    ),
    "Taylor control variate": bbvi.TaylorControlVariate,
}


def slope(sizes: list[float], variances: list[float], errors: list[float]) -> dict[str, float]:
    """Weighted least squares of log variance on log evaluations, with a 95 % interval."""
    x, y = np.log(sizes), np.log(variances)
    weights = (np.array(variances) / np.array(errors)) ** 2
    x = x - np.average(x, weights=weights)
    spread = float(np.sum(weights * x**2))
    value = float(np.sum(weights * x * y)) / spread
    half = 1.96 / math.sqrt(spread)
    return {"value": value, "low": value - half, "high": value + half}


def run(model: targets.Model, sizes: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """Variances and slopes of all contestants."""
    estimators = {
        f"{name}, {size}": make(size) for name, make in CONTESTANTS.items() for size in sizes
    }
    comparison = bbvi.compare_estimators(*model, estimators=estimators, **options)
    cases = []
    for name in CONTESTANTS:
        for point in POINTS:
            rows = [
                row
                for row in comparison.rows
                for size in sizes
                if (row.estimator, row.point, row.block) == (f"{name}, {size}", point, ALL)
            ]
            columns: dict[str, list[float]] = {
                "draws": [row.draws for row in rows],
                "evaluations": [row.evaluations for row in rows],
                "seconds": [row.seconds for row in rows],
                "variance": [row.trace for row in rows],
                "error": [row.trace_error for row in rows],
                "passes": [row.passes for row in rows],
            }
            pairs = zip(columns["variance"], columns["error"], strict=True)
            usable = all(0 < error < variance for variance, error in pairs)
            arguments = (columns[key] for key in ("draws", "variance", "error"))
            fitted = slope(*arguments) if usable else None
            cases.append({"case": name, "point": point, **columns, "slope": fitted})
    return {
        "suite": "sample_sizes",
        "environment": measure.environment(*PACKAGES),
        "num_replicates": comparison.num_replicates,
        "cases": cases,
    }


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    from bbvi.plotting.comparison import COLOURS, MARKERS

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, len(POINTS))
    for axis, point in zip(axes, POINTS, strict=True):
        here = [case for case in results["cases"] if case["point"] == point]
        for number, case in enumerate(here):
            axis.errorbar(
                *(case["evaluations"], case["variance"], 2 * np.array(case["error"])),
                color=COLOURS[number],
                marker=MARKERS[number],
                markersize=4,
                linewidth=1,
                label=case["case"],
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(point, fontsize=9)
        axis.set_xlabel("evaluations a step, a gradient counts as three", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(visible=True, alpha=0.25)
    axes[0].set_ylabel("trace of the gradient's covariance, ± 2 s.e.", fontsize=8)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
    )
    figure.savefig(path, dpi=140)


def tables(results: dict[str, Any]) -> list[str]:
    rows = []
    for case in results["cases"]:
        fitted = case["slope"]
        cells = [case["case"], case["point"]]
        cells += [report.number(v) for v in case["variance"]]
        shown = "-"
        if fitted:
            shown = f"{fitted['value']:.2f} [{fitted['low']:.2f}, {fitted['high']:.2f}]"
        rows.append([*cells, shown])
    draws = results["cases"][0]["draws"]
    head = ("estimator", "point", *(f"S = {n}" for n in draws), "slope in draws [95 %]")
    return [
        "# Variance as draws are added",
        f"{report.machine(results['environment'])}. Breast-cancer logistic regression, 31 "
        f"coefficients, mean field; trace over all parameters, {results['num_replicates']} "
        "replicates.",
        report.table(head, rows),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three sizes, 400 replicates")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; table and figure beside it")
    options = parser.parse_args(arguments)
    sizes = (2, 8, 32) if options.quick else SIZES
    settings = {"num_steps": 200, "num_replicates": 400} if options.quick else {}
    results = run(targets.registered("breast_cancer"), sizes, **settings)
    store.finish(options.out, results, plot)


if __name__ == "__main__":
    main()
