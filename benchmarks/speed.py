"""Speed of ``bbvi.fit`` against hand-written loops and peers.

``python -m benchmarks.speed [--quick] [--only NAME] [--cold] [--imports] [--out results.json]``

All contestants of a problem run interleaved in one process, A B C A B C ..., so that the noise of
a shared machine hits them alike. The time per step is the slope between a short and a long call;
what a call costs besides its steps shows in the second call of the same shape.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np

from benchmarks import measure, report
from benchmarks.contestants import CONTESTANTS, Run
from benchmarks.problems import LEARNING_RATE, PROBLEMS, Problem

PACKAGES = ("jax", "jaxlib", "optax", "distrax", "numpyro", "blackjax", "numpy")
COMPILED_ROUNDS = 2  # rounds for contestants that compile on every call


def run_problem(problem: Problem, rounds: int, *, cold: bool) -> dict[str, Any]:
    """Measure every contestant that can do the problem."""
    x = jax.block_until_ready(problem.data())
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, contestant in CONTESTANTS.items():
        run = contestant.prepare(problem, x)
        if run is None:
            print(f"  {name}: absent, it cannot do this problem")
            continue
        runs[name], rows[name] = run, _first_calls(problem, run)
        if cold:
            rows[name]["cold"] = measure.cold_start(problem.name, name)
    slopes = _interleave(problem, runs, rounds)
    for name, row in rows.items():
        row["is_peer"] = CONTESTANTS[name].is_peer
        row["us_per_step"] = measure.spread(slopes[name]["wall"])
        row["cpu_us_per_step"] = measure.spread(slopes[name]["cpu"])
        row["call_s"] = measure.spread(slopes[name]["call"])
    _add_ratios(rows, slopes)
    return {"problem": problem.name, "steps": problem.steps, "contestants": rows}


def _first_calls(problem: Problem, run: Run) -> dict[str, Any]:
    """Cold and warm calls of the long run, and what the warm one compiled."""
    first, _, losses = measure.clock(lambda: run(problem.steps[1], 0))
    before = measure.compilations()
    second, _, _ = measure.clock(lambda: run(problem.steps[1], 1))
    compiled = measure.compilations() - before
    run(problem.steps[0], 0)
    tail = losses[-max(1, len(losses) // 5) :]
    return {
        "first_call_s": first,
        "second_call_s": second,
        "second_call_compilations": compiled,
        "final_loss": float(np.mean(tail)),
    }


def _interleave(problem: Problem, runs: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Per contestant: microseconds per step (wall and processor) and seconds per call by round."""
    short, long = problem.steps
    scale = 1e6 / (long - short)
    slopes: dict[str, Any] = {name: {"wall": [], "cpu": [], "call": []} for name in runs}
    for seed in range(rounds):
        for name, run in runs.items():
            compiles = CONTESTANTS[name].compiles_every_call
            if compiles and seed >= COMPILED_ROUNDS:
                continue
            wall_long, cpu_long, _ = measure.clock(lambda: run(long, seed))  # noqa: B023
            slopes[name]["call"].append(wall_long)
            if compiles:
                continue
            wall_short, cpu_short, _ = measure.clock(lambda: run(short, seed))  # noqa: B023
            slopes[name]["wall"].append(scale * (wall_long - wall_short))
            slopes[name]["cpu"].append(scale * (cpu_long - cpu_short))
    return slopes


def _add_ratios(rows: dict[str, dict[str, Any]], slopes: dict[str, Any]) -> None:
    """Time per step over the floor's, and over the fastest peer's, each round by round."""
    peers = [n for n, row in rows.items() if row["is_peer"] and row["us_per_step"]]
    fastest = min(peers, key=lambda n: rows[n]["us_per_step"]["median"], default=None)
    for name, row in rows.items():
        row["fastest_peer"] = fastest
        for to, other in (("floor", "floor"), ("fastest_peer", fastest)):
            for clock in ("wall", "cpu"):
                theirs = slopes[other][clock] if other else []
                row[f"{clock}_to_{to}"] = measure.ratio(slopes[name][clock], theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 11")
    parser.add_argument("--only", action="append", choices=sorted(PROBLEMS), help="repeatable")
    parser.add_argument("--cold", action="store_true", help="cold starts and peak memory as well")
    parser.add_argument("--imports", action="store_true", help="import times as well")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; the table goes beside it")
    options = parser.parse_args()

    rounds = 3 if options.quick else 11
    settings = {"optimizer": f"adam({LEARNING_RATE})", "rounds": rounds}
    results: dict[str, Any] = {
        "suite": "speed",
        "environment": measure.environment(*PACKAGES) | settings,
        "problems": [],
    }
    jax.block_until_ready(jax.numpy.zeros(()) + 1.0)  # starts the backend before any clock
    for name in options.only or PROBLEMS:
        print(f"{name} ...", flush=True)
        results["problems"].append(run_problem(PROBLEMS[name], rounds, cold=options.cold))
        print(report.problem_table(results["problems"][-1]), flush=True)
    if options.imports:
        results["imports_s"] = measure.import_times(3 if options.quick else 7)
    text = report.markdown(results)
    print(text)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")
        options.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
