"""ELBO after equal budgets over a grid of Adam's step sizes, and as a run goes on at the best one.

``python -m benchmarks.step_sizes [--quick] [--only MODEL ...] [--out results.json]``

Logistic regression of the breast-cancer data (score function, pathwise, Taylor control variate) and
the autoencoder of digits with ten binary latents an image, whose model is learned too (score
function, DisARM, local expectations). A budget counts evaluations of ``log_joint``, a gradient as
three; steps of an estimator that needs more of them are fewer. All estimators start from the same
parameters and ELBOs are exact, by quadrature and by enumeration: what differs from seed to seed is
the noise of the run. An estimator's curves are those at its best rate for the whole budget.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbvi
from bbvi.comparison.result import VALUES_PER_GRADIENT
from benchmarks import measure, report, store
from models import breast_cancer, digits_vae

PACKAGES = ("jax", "jaxlib", "optax", "distrax", "numpy")
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
SHARES = (1 / 16, 1 / 4, 1.0)  # of the whole budget
NUM_LOOKS = 24
NUM_SEEDS = 3
NUM_IMAGES = 100
NODES = 20  # of quadrature
ROUNDS, TIMED_STEPS = 5, 50


class Suite(NamedTuple):
    """A model, its exact ELBO, and what is compared on it.

    Attributes:
      log_joint: the model.
      guide: the family.
      x: data.
      theta: learned parameters to start from, if there are any.
      elbo: exact, ``(params, x) -> []``.
      budget: evaluations of a whole run.
      estimators: by name.
    """

    log_joint: Callable[..., Any]
    guide: bbvi.Guide
    x: Any
    theta: Any
    elbo: Callable[[bbvi.Params, Any], jax.Array]
    budget: int
    estimators: dict[str, bbvi.Estimator]


def logistic_elbo(params: bbvi.Params, x: Any) -> jax.Array:
    """ELBO of independent normal weights: the linear predictor of each datum is normal too."""
    loc, log_scale = jnp.asarray(params.guide.normal)
    variance = jnp.exp(2 * log_scale)
    signs = 2 * x["labels"] - 1
    mean = signs * (x["features"] @ loc)
    spread = jnp.sqrt(x["features"] ** 2 @ variance)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = jnp.asarray(weights / weights.sum(), mean.dtype)
    at = mean[:, None] + spread[:, None] * jnp.asarray(nodes, mean.dtype)[None, :]
    divergence = 0.5 * (variance + loc**2 - 1).sum() - log_scale.sum()
    return (jax.nn.log_sigmoid(at) @ weights).sum() - divergence


def breast_cancer_suite() -> Suite:
    return Suite(
        *(breast_cancer.log_joint, breast_cancer.mean_field(), breast_cancer.data(), None),
        elbo=logistic_elbo,
        budget=48_000,
        estimators={
            "ScoreFunction": bbvi.ScoreFunction(8),
            "Reparameterization": bbvi.Reparameterization(8),
            "TaylorControlVariate": bbvi.TaylorControlVariate(8),
        },
    )


def digits_suite() -> Suite:
    return Suite(
        digits_vae.log_joint,
        digits_vae.amortized(NUM_IMAGES),
        digits_vae.data(NUM_IMAGES),
        theta=digits_vae.model_params(),
        elbo=digits_vae.mean_elbo,
        budget=8_000,
        estimators={
            "ScoreFunction": bbvi.ScoreFunction(4),
            "DisArm": bbvi.DisArm(4),
            "LocalExpectation": bbvi.LocalExpectation(1),
        },
    )


SUITES = {"breast_cancer": breast_cancer_suite, "digits": digits_suite}


def run(suite: Suite, estimator: bbvi.Estimator, rates: tuple[float, ...], num_seeds: int) -> Any:
    """ELBOs ``[rates, seeds, looks]``, their steps, the evaluations of a step, and its clock."""
    problem = bbvi.Problem(suite.log_joint, suite.guide)
    start = problem.init(jax.random.key(0), suite.x, suite.theta)
    values, gradients = estimator.cost_for(problem, start, suite.x)
    cost = values + VALUES_PER_GRADIENT * gradients
    num_steps = suite.budget // cost
    shares = [round(share * num_steps) for share in SHARES]
    steps = np.unique([*np.geomspace(1, num_steps, NUM_LOOKS).round().astype(int), *shares])
    # The rate is a part of the state, so that one program runs all of them at once.
    init, step = bbvi.make_step(
        suite.log_joint,
        suite.guide,
        estimator=estimator,
        optimizer=optax.inject_hyperparams(optax.adam)(learning_rate=0.0),
    )

    def begin(rate: jax.Array, key: jax.Array) -> bbvi.FitState:
        state = init(key, suite.x, start.guide, start.model)
        hyperparams = {**state.opt_state.hyperparams, "learning_rate": rate}
        return state._replace(opt_state=state.opt_state._replace(hyperparams=hyperparams))

    def advance(state: bbvi.FitState, count: Any) -> bbvi.FitState:
        return jax.lax.fori_loop(0, count, lambda _, s: step(s, suite.x)[0], state)

    def one(rate: jax.Array, key: jax.Array) -> jax.Array:
        def look(state: bbvi.FitState, count: Any) -> tuple[bbvi.FitState, jax.Array]:
            state = advance(state, count)
            return state, suite.elbo(state.params, suite.x)

        return jax.lax.scan(look, begin(rate, key), jnp.asarray(np.diff(steps, prepend=0)))[1]

    keys = jax.random.split(jax.random.key(1), num_seeds)
    elbos = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.asarray(rates), keys)
    begun = jax.jit(begin)(jnp.asarray(rates[0]), jax.random.key(2))
    timed = jax.jit(advance)
    jax.block_until_ready(timed(begun, TIMED_STEPS))

    def seconds() -> float:
        _, cpu_s, _ = measure.clock(lambda: jax.block_until_ready(timed(begun, TIMED_STEPS)))
        return cpu_s / TIMED_STEPS

    return np.asarray(elbos, np.float64), steps, cost, seconds


def run_case(name: str, rates: tuple[float, ...], num_seeds: int, budget: int | None) -> Any:
    """All that is measured on one model."""
    suite = SUITES[name]()
    suite = suite if budget is None else suite._replace(budget=budget)
    found = {
        e: run(suite, estimator, rates, num_seeds) for e, estimator in suite.estimators.items()
    }
    clocks: dict[str, list[float]] = {estimator: [] for estimator in found}
    for _ in range(ROUNDS):  # in turns, so that all see the same load
        for estimator, (*_, seconds) in found.items():
            clocks[estimator].append(seconds())
    rows = []
    for estimator, (elbos, steps, cost, _) in found.items():
        best = int(np.argmax(np.where(np.isfinite(elbos), elbos, -np.inf)[:, :, -1].mean(axis=1)))
        at = [int(np.flatnonzero(steps == round(s * steps[-1]))[0]) for s in SHARES]
        rows.append(
            {
                "estimator": estimator,
                "repr": repr(suite.estimators[estimator]),
                "evaluations": cost,
                "seconds": float(np.median(clocks[estimator])),
                "grid": elbos[:, :, at].tolist(),
                "best_rate": rates[best],
                "steps": steps.tolist(),
                "curves": elbos[best].tolist(),
            }
        )
    return {
        "case": name,
        "environment": measure.environment(*PACKAGES),
        "budget": suite.budget,
        "rates": rates,
        "rows": rows,
    }


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds, the second axis from the right or the last but one of a grid's."""
    count = values.shape[-2]
    spread = values.std(axis=-2, ddof=1) if count > 1 else np.zeros_like(values.mean(axis=-2))
    return values.mean(axis=-2), spread / np.sqrt(count)


def tables(results: dict[str, Any]) -> list[str]:
    parts = [
        "# Step sizes",
        f"{report.machine(results['cases'][0]['environment'])}. Exact ELBO, mean over seeds ± "
        "standard error, after shares of a budget of evaluations of log_joint (a gradient counts "
        "as three) with Adam at constant rates.",
    ]
    for case in results["cases"]:
        lines = []
        for row in case["rows"]:
            mean, error = mean_and_error(np.array(row["grid"]))  # [rates, budgets]
            for number, share in enumerate(SHARES):
                cells = [row["estimator"], f"{share * case['budget']:.0f}"]
                cells += [
                    f"{m:.2f} ± {e:.2f}"
                    for m, e in zip(mean[:, number], error[:, number], strict=True)
                ]
                best = float(case["rates"][int(np.nanargmax(mean[:, number]))])
                micros = report.number(1e6 * row["seconds"])
                lines.append([*cells, f"{best:g}", str(row["evaluations"]), micros])
        head = ("estimator", "evaluations", *(f"{rate:g}" for rate in case["rates"]))
        head += ("best", "evaluations a step", "cpu µs a step")
        parts += [f"## {case['case']}", report.table(head, lines)]
    return parts


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Distance to the best ELBO found: over the rate, and as evaluations and seconds go by."""
    from matplotlib.figure import Figure

    from bbvi.plotting.comparison import COLOURS, MARKERS

    cases = results["cases"]
    figure = Figure(figsize=(12, 3.9 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), 3, squeeze=False)
    for line, case in zip(axes, cases, strict=True):
        grids = {row["estimator"]: np.array(row["grid"]) for row in case["rows"]}
        top = max(np.nanmax(grid) for grid in grids.values())
        top = max(top, *(np.nanmax(row["curves"]) for row in case["rows"]))
        for number, row in enumerate(case["rows"]):
            style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4}
            mean, _ = mean_and_error(np.array(row["grid"]))
            for budget, dashes in ((0, ":"), (len(SHARES) - 1, "-")):
                label = row["estimator"] if dashes == "-" else None
                line[0].plot(
                    case["rates"], top - mean[:, budget], linestyle=dashes, label=label, **style
                )
            gap, error = mean_and_error(np.array(row["curves"]))
            gap, steps = top - gap, np.array(row["steps"])
            name = f"{row['estimator']}, rate {row['best_rate']:g}"
            for axis, each in ((line[1], row["evaluations"]), (line[2], row["seconds"])):
                axis.errorbar(each * steps, gap, 2 * error, linewidth=1, label=name, **style)
        for axis in line:
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.grid(visible=True, alpha=0.25)
            axis.set_title(case["case"], fontsize=10)
            axis.legend(fontsize=8)
        low, high = (share * case["budget"] for share in (SHARES[0], SHARES[-1]))
        line[0].set_xlabel(f"Adam's rate; after {high:.0f} (dotted {low:.0f}) evaluations")
        line[1].set_xlabel("evaluations of log_joint, a gradient counts as three")
        line[2].set_xlabel("processor seconds, without compiling")
        line[0].set_ylabel("best ELBO found - ELBO (nats)")
        line[1].set_ylabel("the same at the best rate, ± 2 s.e.")
    figure.savefig(path, dpi=140)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rates, two seeds, short runs")
    parser.add_argument("--only", nargs="+", choices=tuple(SUITES))
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; table and figure beside it")
    options = parser.parse_args(arguments)
    rates, num_seeds, budget = RATES, NUM_SEEDS, None
    if options.quick:
        rates, num_seeds, budget = RATES[1:4], 2, 1600
    cases = {case["case"]: case for case in store.load(options.out)}
    for name in options.only or SUITES:
        cases[name] = run_case(name, rates, num_seeds, budget)
    store.finish(options.out, {"suite": "step_sizes", "cases": list(cases.values())}, plot)


if __name__ == "__main__":
    main()
