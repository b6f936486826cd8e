"""Accuracy on reference posteriors: how far means and deviations are, and at what cost.

``python -m benchmarks.accuracy [--models M ...] [--methods M ...] [--seed S] [--quick] [--out F]``

Every method fits every posterior of ``models.posteriors`` once, in double precision and in one
process; fresh draws of its answer are compared with the reference. ``bbvi.fit`` is called with
nothing but log joint, guide, data and key, its peers as their users run them (Adam at 0.01 for
20,000 steps where they ask for a number). "best" is a yardstick and no method: the Gaussian of
either family that is found from a start at the answer itself. What a method lacks to it is due to
the optimiser, and what that lacks is due to the family. Results that are in the file already,
measured in the same way, are not measured again.
"""

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from bbvi.diagnostics import monte_carlo_mean, psis_khat
from benchmarks import measure, report, store
from benchmarks.accuracy_methods import METHODS, Approximation, Posterior
from models import posteriors

PACKAGES = ("jax", "jaxlib", "optax", "distrax", "numpyro", "blackjax", "numpy")
NUM_DRAWS = 4000  # for the ELBO and k-hat
NUM_MOMENT_DRAWS = 20_000  # for means and deviations: an error of 0.007 deviations
QUICK_MODELS = ("eight_schools_noncentered", "gp_regr")
QUICK_METHODS = ("bbvi_mean_field", "best_mean_field", "bbvi_full_rank", "best_full_rank")
QUICK_STEPS = 500

# Key of a case, and what its table is called.
TABLES = {
    "max_mean_error": "Largest error of a mean: |mean - reference| / sd of the reference",
    "mean_mean_error": "Average error of the means",
    "max_sd_error": "Largest error of a deviation: |log(sd / sd of the reference)|",
    "mean_sd_error": "Average error of the deviations",
    "khat": "k-hat of the importance weights",
    "elbo": "ELBO in nats, with its standard error",
    "gap": "ELBO below the best of the same family, in nats",
    "seconds": "Seconds, compilation included",
    "cpu_seconds": "Processor seconds, compilation included",
    "gradients": "Evaluations of the gradient of log_joint",
}


def errors(posterior: Posterior, approximation: Approximation, key: jax.Array) -> dict[str, float]:
    """Largest and average error of means and log deviations over all scalars."""
    reference = posterior.target.reference()
    draws = approximation.sample(key, NUM_MOMENT_DRAWS)
    mean_errors, sd_errors = [], []
    for latent, rows in draws.items():
        mean, sd = (np.asarray(moments[latent]) for moments in (reference.mean, reference.sd))
        values = np.asarray(rows, np.float64)
        with np.errstate(all="ignore"):  # of a run that diverged
            mean_errors.append(np.ravel(np.abs(values.mean(axis=0) - mean) / sd))
            sd_errors.append(np.ravel(np.abs(np.log(values.std(axis=0) / sd))))
    by_name = {"mean": np.concatenate(mean_errors), "sd": np.concatenate(sd_errors)}
    return {
        f"{summary}_{name}_error": float(getattr(values, summary)())
        for name, values in by_name.items()
        for summary in ("max", "mean")
    }


def run_case(model: str, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """All that is measured of one method on one posterior, or why it failed."""
    posterior, chosen = Posterior.of(model), METHODS[method]
    fit_key, moment_key, weight_key = jax.random.split(jax.random.key(settings["seed"]), 3)
    case: dict[str, Any] = {
        "case": f"{model}, {method}",
        "model": model,
        "method": method,
        "family": chosen.family,
        "settings": settings,
        "environment": measure.environment(*PACKAGES),
    }
    jax.clear_caches()  # or what one posterior compiled would be free for the next of its form
    try:
        run = chosen.prepare(posterior, settings["num_steps"])
        seconds, cpu_seconds, found = measure.clock(lambda: run(fit_key))
    except Exception as error:  # a method that fails is a result
        return case | {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    log_weights = np.asarray(found.log_weights(weight_key, NUM_DRAWS))
    with np.errstate(all="ignore"):
        elbo = monte_carlo_mean(jnp.asarray(log_weights))
    return case | {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "gradients": found.gradients() if callable(found.gradients) else found.gradients,
        "elbo": elbo.value,
        "elbo_error": elbo.standard_error,
        "khat": psis_khat(jnp.asarray(log_weights)),
        **errors(posterior, found, moment_key),
    }


def with_gaps(cases: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Cases by model and method, with the gap to the yardstick where that was measured."""
    by_name = {(case["model"], case["method"]): dict(case) for case in cases}
    for (model, _), case in by_name.items():
        yardstick = by_name.get((model, f"best_{case['family']}"), case)
        if yardstick is not case and "elbo" in case and "elbo" in yardstick:
            case["gap"] = yardstick["elbo"] - case["elbo"]
            case["gap_error"] = float(np.hypot(yardstick["elbo_error"], case["elbo_error"]))
    return by_name


def _cell(case: dict[str, Any] | None, key: str) -> str:
    if case is None:
        return "-"
    if "failed" in case:
        return "failed"
    if key == "elbo":
        return f"{case['elbo']:.2f} ± {report.number(case['elbo_error'])}"
    if key == "gap" and "gap" in case:
        return f"{report.number(case['gap'])} ± {report.number(case['gap_error'])}"
    return report.number(case.get(key))


def summary(cases: list[dict[str, Any]], methods: list[str]) -> str:
    """One row per method over all posteriors; a failure counts as an infinite error."""
    head = ("method", "posteriors", "failed", "mean error: median", "below 0.1", "above 1")
    head += ("sd error: median", "below 0.1", "above 1", "k-hat below 0.7", "gap: median")
    head += ("s: median", "cpu s: median")
    by_name, rows = with_gaps(cases), []
    for method in methods:
        own = [case for (_, name), case in by_name.items() if name == method]
        cells = [method, str(len(own)), str(sum("failed" in case for case in own))]
        for key in ("max_mean_error", "max_sd_error"):
            found = _values(own, key)
            cells += [_median(found), _share(found < 0.1), _share(found > 1)]
        cells.append(_share(_values(own, "khat") < 0.7))
        cells += [_median(_values(own, key)) for key in ("gap", "seconds", "cpu_seconds")]
        rows.append(cells)
    return report.table(head, rows)


def _values(cases: list[dict[str, Any]], key: str) -> np.ndarray:
    """One figure of all cases that have it; infinite where a method failed or diverged."""
    found = [case.get(key, np.inf) for case in cases if key in case or "failed" in case]
    return np.nan_to_num(np.array(found), nan=np.inf, posinf=np.inf)


def _median(found: np.ndarray) -> str:
    return report.number(float(np.median(found)) if len(found) else None)


def _share(is_so: np.ndarray) -> str:
    return f"{100 * is_so.mean():.0f}%"


def tables(results: dict[str, Any]) -> list[str]:
    """The report: a summary, a table per metric with a column per method, and what failed."""
    cases = results["cases"]
    methods = [name for name in METHODS if any(case["method"] == name for case in cases)]
    names = posteriors.NAMES + posteriors.MORE
    names = [name for name in names if any(case["model"] == name for case in cases)]
    by_name = with_gaps(cases)
    parts = [
        "# Accuracy on reference posteriors",
        f"{report.machine(cases[0]['environment'])}. Errors are the largest over the scalars of a "
        "posterior, in deviations of the reference and as logarithms of ratios; the references' "
        f"own are about 0.01. ELBO and k-hat from {NUM_DRAWS} fresh draws. best_*: a start at the "
        "reference itself, the yardstick of its family; see benchmarks/accuracy.py.",
        summary(cases, methods),
    ]
    for key, title in TABLES.items():
        rows = [[name, *(_cell(by_name.get((name, m)), key) for m in methods)] for name in names]
        parts += [f"## {title}", report.table(("posterior", *methods), rows)]
    settings = [(c["method"], c["settings"]["how"], c["settings"]["num_steps"]) for c in cases]
    rows = [[method, how, str(steps or "-")] for method, how, steps in dict.fromkeys(settings)]
    parts += ["## Settings", report.table(("method", "settings", "steps"), rows)]
    failed = [[c["model"], c["method"], c["failed"]] for c in cases if "failed" in c]
    if failed:
        parts += ["## Failures", report.table(("posterior", "method", "why"), failed)]
    return parts


def plot_errors(cases: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws for each method the share of posteriors with at most this error, by family."""
    from matplotlib.figure import Figure

    from bbvi.plotting.comparison import COLOURS

    errors_of = {
        "max_mean_error": "largest error of a mean, in deviations",
        "max_sd_error": "largest error of a log deviation",
    }
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, family in zip(grid, ("mean_field", "full_rank"), strict=True):
        for axis, key in zip(row, errors_of, strict=True):
            for number, method in enumerate(m for m in METHODS if METHODS[m].family == family):
                found = _values([case for case in cases if case["method"] == method], key)
                if len(found):
                    is_yardstick = method.startswith("best")
                    axis.ecdf(
                        np.minimum(found, 1e3),
                        color="0.3" if is_yardstick else COLOURS[number],
                        linestyle="--" if is_yardstick else "-",
                        linewidth=2.5 if method.startswith("bbvi") else 1.2,
                        label=method,
                    )
            axis.set(xscale="log", xlim=(5e-3, 1e2), ylim=(0.0, 1.02))
            axis.grid(visible=True, alpha=0.25)
        row[0].set_ylabel(f"{family}: share of posteriors")
        if row[1].lines:
            row[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=8)
    for axis, label in zip(grid[1], errors_of.values(), strict=True):
        axis.set_xlabel(label)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=posteriors.NAMES + posteriors.MORE)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="two models, bbvi and best, few steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; tables and figure beside it")
    options = parser.parse_args(arguments)
    names = options.models or (QUICK_MODELS if options.quick else posteriors.NAMES)
    methods = options.methods or (QUICK_METHODS if options.quick else list(METHODS))
    results: dict[str, Any] = {"suite": "accuracy", "cases": store.load(options.out)}
    done = {case["case"]: case["settings"] for case in results["cases"]}
    bar = tqdm([(model, method) for model in names for method in methods], unit="fit")
    for model, method in bar:
        bar.set_postfix_str(f"{model}, {method}")
        settings = {
            "seed": options.seed,
            "how": METHODS[method].how,
            "num_steps": QUICK_STEPS if options.quick else METHODS[method].num_steps,
        }
        if done.get(f"{model}, {method}") == settings:
            continue
        with jax.enable_x64(True):  # noqa: FBT003 - JAX's own form
            case = run_case(model, method, settings)
        if options.out is None:
            results["cases"].append(case)
        else:
            results = store.merge(options.out, "accuracy", case)
    print("\n\n".join(tables(results)))
    if options.out is not None:
        plot_errors(results["cases"], options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
