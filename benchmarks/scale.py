"""Cost of the dependence analysis, and of a Rao-Blackwellized step, at up to millions of latents.

``python -m benchmarks.scale [--quick] [--only CASE] [--out results.json]``

Every figure is taken in a fresh process, which imports, makes data and starts JAX before the
clock. The analysis is measured twice: at known data (``factor_graph``, as ``bbvi.explain`` uses
it) and at traced data, as ``fit`` uses it, with all that reads the graph: the trace of
``blanket_sums``. Steps of the adaptive and of the full signal alternate in one process.
"""

import argparse
import dataclasses
import gc
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bbvi
from bbvi.dependence.blankets import blanket_sums, factor_graph
from benchmarks import measure, report, store, targets
from benchmarks.cold import peak_mb

PACKAGES = ("jax", "jaxlib", "optax", "distrax", "numpy")
NUM_SAMPLES = 2
ROUNDS = 7


@dataclasses.dataclass(frozen=True)
class Case:
    """A model that grows.

    Attributes:
      name: how the command line and the tables call it.
      unit: what is counted.
      build: the model at a size.
      size: size at which the analysis is measured.
      step_sizes: sizes at which steps are timed.
    """

    name: str
    unit: str
    build: Callable[[int], targets.Model]
    size: int
    step_sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)


CASES = {
    case.name: case
    for case in (
        Case("mixture", "assignments", lambda n: targets.mixture(n, 5), 1_000_000),
        Case("hidden_markov", "states", targets.hidden_markov_chain, 1_000_000),
        Case("ising", "spins", lambda n: targets.ising_grid(*[math.isqrt(n)] * 2), 1_000_000),
        Case("radon", "rows", lambda n: targets.radon(n, max(1, n // 100)), 1_000_000),
        Case(
            "sigmoid_belief",
            "images",
            lambda n: targets.wide_belief_network(n, (200, 50), 784),
            10_000,
            (100, 1_000, 10_000),
        ),
        Case(
            "matrix_factorization",
            "ratings",
            lambda n: targets.factorization(n // 10, max(10, n // 50), 10, 10),
            1_000_000,
        ),
    )
}


def analysis(case: Case, size: int, *, known: bool) -> dict[str, float]:
    """Seconds and growth of the peak memory of one analysis in this process."""
    log_joint, guide, x = jax.block_until_ready(case.build(size))
    problem = bbvi.Problem(log_joint, guide)
    phi = jax.eval_shape(guide.init, jax.random.key(0), x)
    shapes = problem.draw_shapes(bbvi.Params(phi), x)
    z = jax.block_until_ready(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    sites = guide.sites()

    def known_data() -> Any:
        return factor_graph(log_joint, x, z, sites=sites)[0]

    def traced_data() -> Any:
        return jax.make_jaxpr(lambda x, z: blanket_sums(log_joint, sites, x, z))(x, z)

    gc.collect()
    before = _reset_peak()
    wall, cpu, found = measure.clock(known_data if known else traced_data)
    row = {"wall_s": wall, "cpu_s": cpu, "peak_growth_mb": peak_mb() - before}
    row["latents"] = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(z))
    if known:
        row["factor_entries"] = sum(math.prod(t.shape) for t in found.terms if t.reads)
    return row


def _reset_peak() -> float:
    """Start the peak afresh where Linux allows it; what the peak is now, in MB."""
    reset = pathlib.Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return peak_mb()


def steps(case: Case, size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per step of the adaptive and of the full signal, interleaved."""
    log_joint, guide, x = case.build(size)
    runs, state = {}, {}
    for signal in ("full", "adaptive"):
        estimator = bbvi.ScoreFunction(NUM_SAMPLES, signal=signal)
        init, step = bbvi.make_step(log_joint, guide, estimator=estimator)
        state[signal] = init(jax.random.key(0), x)
        runs[signal] = jax.jit(lambda state, x, step=step: step(state, x)[0])
        wall, _, _ = measure.clock(lambda: jax.block_until_ready(runs[signal](state[signal], x)))  # noqa: B023
        state[f"first_{signal}"] = wall
    once, _, _ = measure.clock(lambda: jax.block_until_ready(runs["full"](state["full"], x)))
    repeats = int(np.clip(0.5 / once, 1, 200))

    def repeat(signal: str) -> Any:
        current = state[signal]
        for _ in range(repeats):
            current = runs[signal](current, x)
        return jax.block_until_ready(current)

    times: dict[str, list[float]] = {f"{s}_{c}": [] for s in runs for c in ("wall", "cpu")}
    for _ in range(rounds):
        for signal in runs:
            wall, cpu, _ = measure.clock(lambda: repeat(signal))  # noqa: B023
            times[f"{signal}_wall"].append(1e3 * wall / repeats)
            times[f"{signal}_cpu"].append(1e3 * cpu / repeats)
    row = {f"{name}_ms": measure.spread(values) for name, values in times.items()}
    for clock in ("wall", "cpu"):
        over = measure.ratio(times[f"adaptive_{clock}"], times[f"full_{clock}"])
        row[f"{clock}_overhead"] = over
    first = {f"first_{signal}_s": state[f"first_{signal}"] for signal in runs}
    return {"size": size, "repeats": repeats} | first | row


def run_case(case: Case, *, quick: bool) -> dict[str, Any]:
    """All figures of a case, a process each."""
    sizes = [size // 100 for size in case.step_sizes[:2]] if quick else case.step_sizes
    size = case.size // 1000 if quick else case.size
    return {
        "case": case.name,
        "environment": measure.environment(*PACKAGES),
        "unit": case.unit,
        "size": size,
        "known_data": _fresh(case.name, "known", size),
        "traced_data": _fresh(case.name, "traced", size),
        "num_samples": NUM_SAMPLES,
        "steps": [_fresh(case.name, "steps", n, 3 if quick else ROUNDS) for n in sizes],
    }


def _fresh(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, what: str, size: str, rounds: str = "0") -> dict[str, Any]:
    """One figure, in the process made for it."""
    jax.block_until_ready(jnp.zeros(()) + 1.0)  # starts the backend before any clock
    if what == "steps":
        return steps(CASES[name], int(size), int(rounds))
    return analysis(CASES[name], int(size), known=what == "known")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="repeatable")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; cases not run stay in it")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    for name in options.only or CASES:
        print(f"{name} ...", flush=True)
        row = run_case(CASES[name], quick=options.quick)
        store.merge(options.out, "scale", row)
        print(report.markdown({"suite": "scale", "cases": [row]}), flush=True)


if __name__ == "__main__":
    main()
