"""Classical algorithms of the subject beside bbvi, each at what it is made for.

``python -m benchmarks.classics [--quick] [--only CASE ...] [--out results.json]``

- ``mixture``: a Gaussian mixture with known scale and unknown means; coordinate ascent with exact
  updates against ``bbvi.fit``, which knows nothing of the model, on the same mean-field family.
- ``em``: a Gaussian mixture of wines with learned parameters; exact EM against variational EM by
  ``bbvi.alternating``, with exact gradients.
- ``ising``: spins of a 6 x 7 grid; the mean-field fixed point and Bethe's approximation by loopy
  belief propagation against ``bbvi.fit`` of independent spins, and log Z by transfer matrices.

ELBOs and likelihoods are closed forms. A pass is one value of ``log_joint``, all data once; a
gradient counts as three, and an iteration of coordinate ascent or EM as 2 K: the probabilities of K
components for every point, and K weighted sums. Runs of bbvi stop by themselves where they can.
"""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbvi
from bbvi.comparison.result import VALUES_PER_GRADIENT
from benchmarks import ising_theory, measure, mixture, store
from benchmarks.classics_report import plot, tables  # noqa: F401 - tables is read by the report
from models import gaussian_mixture_em, ising, wine_mixture

PACKAGES = ("jax", "jaxlib", "optax", "distrax", "numpy")
NUM_POINTS = 300
NUM_LOOKS = 60  # at a curve
NUM_SEEDS = 3
GRID = (6, 7)
FIELD = 0.1
COUPLINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
EM_ITERATIONS = 12
E_STEPS, M_STEPS = 400, 200  # of phases long enough to be those of exact EM


def looks(num_steps: int) -> np.ndarray:
    """Steps to look at: evenly in their logarithm, the last among them."""
    return np.unique(np.geomspace(1, num_steps, NUM_LOOKS).round().astype(int))


def run_mixture(num_seeds: int, num_steps: int | None) -> dict[str, Any]:
    """ELBO against passes and seconds: coordinate ascent, and the plain call with two estimators.

    Args:
      num_seeds: runs of each estimator; the curve is that of the first.
      num_steps: of a run; None: it stops by itself.
    """
    x = mixture.data(NUM_POINTS)
    start = mixture.start(x)
    cavi = mixture.Contestant("coordinate ascent", mixture.coordinate_ascent, None)
    trace = mixture.follow(cavi, x, start, None, 1e9)["trace"]
    sweep = 2 * mixture.NUM_COMPONENTS
    methods = [
        {
            "method": "coordinate ascent",
            "passes": [sweep * point["step"] for point in trace[1:]],
            "seconds": [point["cpu_s"] for point in trace[1:]],
            "elbo": [point["elbo"] for point in trace[1:]],
            "finals": [trace[-1]["elbo"]],
        }
    ]
    guide, phi = mixture.family(x, start)
    problem = bbvi.Problem(wine_mixture.log_joint_gather, guide)
    paths = bbvi.Reparameterization(mixture.NUM_SAMPLES)
    chosen = {
        "local expectations (default)": bbvi.LocalExpectation(mixture.NUM_SAMPLES),
        "score function, adaptive": bbvi.ScoreFunction(mixture.NUM_SAMPLES),
    }
    for name, of_assignments in chosen.items():
        estimator = bbvi.PerSite({"mu": paths, "c": of_assignments})
        values, gradients = estimator.cost_for(problem, problem.init(jax.random.key(0), x), x)
        cost = values + VALUES_PER_GRADIENT * gradients

        def fit(seed: int, estimator: Any = estimator, **options: Any) -> bbvi.FitResult:
            return bbvi.fit(
                *(wine_mixture.log_joint_gather, guide, x),
                key=jax.random.key(seed),
                estimator=estimator,
                init_params=phi,
                num_steps=num_steps,
                progress=False,
                **options,
            )

        runs = [fit(seed) for seed in range(1, num_seeds)]
        # Clocked where it is compiled and nothing is recorded; the recorded run has the same steps.
        _, cpu_s, plain = measure.clock(lambda: fit(0))
        runs.insert(0, plain)
        recorded = fit(0, trace_fn=lambda info: info.params.guide).history.trace
        steps = looks(len(recorded.normal) - 1)
        found = [jax.tree.map(lambda leaf, at=step: leaf[at], recorded) for step in steps]
        methods.append(
            {
                "method": name,
                "passes": (cost * steps).tolist(),
                "seconds": (cpu_s / int(plain.state.step) * steps).tolist(),
                "elbo": [mixture.exact_elbo(x, mixture.factors_of(params)) for params in found],
                "finals": [
                    mixture.exact_elbo(x, mixture.factors_of(run.params.guide)) for run in runs
                ],
            }
        )
    about = f"{NUM_POINTS} points, {mixture.NUM_COMPONENTS} components"
    return {"case": "mixture", "about": about, "methods": methods}


def log_likelihoods(thetas: Any) -> list[float]:
    """Exact log p(y; theta) of parameters with a leading axis."""
    count = len(thetas["logits"])
    rows = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), thetas) for i in range(count)]
    return [float(gaussian_mixture_em.e_step(theta)[1]) for theta in rows]


def run_em(num_iterations: int) -> dict[str, Any]:
    """log p(y; theta) against iterations and passes: exact EM, long phases, short ones, jointly."""
    with jax.enable_x64(True):  # noqa: FBT003
        k = gaussian_mixture_em.NUM_COMPONENTS
        x, guide = gaussian_mixture_em.data(), gaussian_mixture_em.mean_field()
        start = gaussian_mixture_em.model_params()
        cost = VALUES_PER_GRADIENT * k  # the values of all components, differentiated in theta
        theta, exact = jax.tree.map(np.asarray, start), []
        for _ in range(num_iterations):
            theta = gaussian_mixture_em.m_step(gaussian_mixture_em.e_step(theta)[0])
            exact.append(theta)
        exact = jax.tree.map(lambda *leaves: np.stack(leaves), *exact)
        iterations = np.arange(1, num_iterations + 1)
        methods = [("exact EM", 2 * k * iterations, log_likelihoods(exact))]

        def anew(rate: float, num_steps: int) -> optax.GradientTransformation:
            """Falls in every phase from the same rate; exact gradients need a short memory."""
            return optax.adam(
                lambda count: rate * 1e-3 ** ((count % num_steps) / num_steps), b2=0.9
            )

        period = E_STEPS + M_STEPS
        total = period * num_iterations
        chosen = {
            "alternating, long phases": bbvi.alternating(
                anew(0.3, E_STEPS),
                anew(0.1, M_STEPS),
                num_guide_steps=E_STEPS,
                num_model_steps=M_STEPS,
            ),
            "alternating, 10 + 1 steps": bbvi.alternating(
                optax.adam(0.1), optax.adam(0.05), num_guide_steps=10, num_model_steps=1
            ),
            "joint": optax.adam(0.05),
        }
        for name, optimizer in chosen.items():
            found = bbvi.fit(
                *(gaussian_mixture_em.log_joint, guide, x),
                estimator=bbvi.Enumeration(),
                model_params=start,
                optimizer=optimizer,
                num_steps=total + 1,
                trace_fn=lambda info: info.params.model,
                progress=False,
            ).history.trace
            steps = period * iterations if "long" in name else looks(total)
            thetas = jax.tree.map(lambda leaf, at=steps: leaf[at], found)
            methods.append((name, cost * steps, log_likelihoods(thetas)))
        return {
            "case": "em",
            "about": f"{len(x['measurements'])} wines, {k} components, float64. Long phases are of "
            f"{E_STEPS} and {M_STEPS} steps, a pair of them an iteration",
            "maximum": gaussian_mixture_em.reference().log_evidence,
            "methods": [
                {"method": name, "passes": passes.tolist(), "log_likelihood": found}
                for name, passes, found in methods
            ],
        }


def run_ising(couplings: tuple[float, ...], num_seeds: int) -> dict[str, Any]:
    """Errors of log Z over the coupling, and bbvi's bound less that of the fixed point."""
    guide, rows = ising.mean_field(GRID), []
    for coupling in couplings:
        grid = (GRID, coupling, FIELD)
        exact = ising_theory.exact_log_partition(*grid)
        _, mean_field_s, (mean, sweeps) = measure.clock(lambda g=grid: ising_theory.mean_field(*g))
        _, bethe_s, (bethe, bethe_sweeps) = measure.clock(
            lambda g=grid: ising_theory.bethe_log_partition(*g)
        )
        x = {"coupling": jnp.asarray(coupling), "field": jnp.asarray(FIELD)}

        def fit(seed: int, x: Any = x) -> bbvi.FitResult:
            return bbvi.fit(ising.log_joint, guide, x, key=jax.random.key(seed), progress=False)

        if not rows:
            fit(0)  # compiles
        found, seconds, steps = [], [], []
        for seed in range(num_seeds):
            _, cpu_s, result = measure.clock(lambda s=seed: fit(s))
            logits = np.asarray(guide.logits(result.params.guide, None)["s"], np.float64)
            found.append(ising_theory.mean_field_bound(np.tanh(logits / 2), coupling, FIELD))
            seconds.append(cpu_s)
            steps.append(int(result.state.step))
        rows.append(
            {
                "coupling": coupling,
                "exact": exact,
                "mean_field": ising_theory.mean_field_bound(mean, coupling, FIELD),
                "mean_field_sweeps": sweeps,
                "mean_field_s": mean_field_s,
                "bethe": bethe,
                "bethe_sweeps": bethe_sweeps,
                "bethe_s": bethe_s,
                "bbvi": found,
                "bbvi_steps": float(np.median(steps)),
                "bbvi_s": float(np.median(seconds)),
            }
        )
    return {
        "case": "ising",
        "about": f"{GRID[0]} x {GRID[1]} spins, field {FIELD}",
        "num_spins": GRID[0] * GRID[1],
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, short runs")
    parser.add_argument("--only", nargs="+", choices=("mixture", "em", "ising"))
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; tables and figure beside it")
    options = parser.parse_args(arguments)
    quick = options.quick
    seeds = 1 if quick else NUM_SEEDS
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "mixture": lambda: run_mixture(seeds, 200 if quick else None),
        "em": lambda: run_em(2 if quick else EM_ITERATIONS),
        "ising": lambda: run_ising(COUPLINGS[2:5:2] if quick else COUPLINGS, seeds),
    }
    cases = {case["case"]: case for case in store.load(options.out)}
    for name in options.only or runs:
        cases[name] = runs[name]() | {"environment": measure.environment(*PACKAGES)}
    store.finish(options.out, {"suite": "classics", "cases": list(cases.values())}, plot)


if __name__ == "__main__":
    main()
