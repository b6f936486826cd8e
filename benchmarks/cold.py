"""One contestant on one problem in a fresh process: ``python -m benchmarks.cold PROBLEM NAME``.

Prints one line of JSON: seconds to import, to the first result and to the second, and the
largest resident memory in MB.
"""

import importlib
import json
import pathlib
import resource
import sys
import time

MODULES = {
    "floor": ("jax", "optax"),
    "bbvi": ("bbvi",),
    "numpyro scan": ("numpyro.infer.autoguide", "optax"),
    "numpyro run": ("numpyro.infer.autoguide", "optax"),
    "blackjax scan": ("blackjax", "optax"),
}


def peak_mb() -> float:
    """Largest resident memory of this process since it began.

    Linux's ``ru_maxrss`` also covers the parent that forked it, so it is the second choice.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(problem_name: str, contestant_name: str) -> None:
    began = time.perf_counter()
    for module in MODULES[contestant_name]:
        importlib.import_module(module)
    imported = time.perf_counter()

    from benchmarks.contestants import CONTESTANTS
    from benchmarks.problems import PROBLEMS

    problem = PROBLEMS[problem_name]
    x = problem.data()
    times = [time.perf_counter()]
    run = CONTESTANTS[contestant_name].prepare(problem, x)
    for seed in (0, 1):
        run(problem.steps[1], seed)
        times.append(time.perf_counter())
    report = {
        "import_s": imported - began,
        "first_s": times[1] - times[0],
        "second_s": times[2] - times[1],
        "peak_mb": peak_mb(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
