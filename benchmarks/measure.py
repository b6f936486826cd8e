"""Clocks and counters: interleaved times per step, compilations, cold starts, import times."""

import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compilations: list[float] = []


def _listen(event: str, seconds: float, **_: Any) -> None:
    if event == COMPILE_EVENT:
        _compilations.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_listen)


def environment(*packages: str) -> dict[str, Any]:
    """What a reader needs to judge the numbers: versions, machine, load and the command."""
    cpu_info = pathlib.Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": models[0] if models else platform.processor(),
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "dtype": str(jnp.zeros(()).dtype),
        "command": _command(getattr(module, "name", "?"), sys.argv[1:]),
    }


def _command(module: str, arguments: Sequence[str]) -> str:
    """The line that repeats a run; which folders of a machine it used is no part of it."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        option, *value = argument.split("=", 1)
        if option not in ("--out", "--folder"):
            kept.append(argument)
        elif not value:
            next(rest, None)
    return shlex.join(["python", "-m", module, *kept])


def compilations() -> int:
    """Programs that XLA has compiled so far in this process."""
    return len(_compilations)


def clock(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, processor seconds of the whole process, and what the call returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    return time.perf_counter() - wall, time.process_time() - cpu, value


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, quartiles and minimum, or None of nothing."""
    if not values:
        return None
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "q1": quartiles[0],
        "q3": quartiles[2],
        "min": min(values),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float] | None:
    """Spread of the ratios round by round: rounds are interleaved, so noise of the machine that
    lasts longer than a round cancels."""
    pairs = zip(ours, theirs, strict=False)
    return spread([a / b for a, b in pairs if a > 0 and b > 0])


def cold_start(problem: str, contestant: str) -> dict[str, float]:
    """Import, first and second result and peak memory of one contestant in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.cold", problem, contestant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def import_times(repetitions: int = 7) -> dict[str, dict[str, float] | None]:
    """Seconds to import the package and what it stands on, alternating, in fresh processes."""
    statements = {
        "import jax, distrax": "import jax, distrax",
        "import bbvi": "import bbvi",
        "import numpyro": "import numpyro",
    }
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(repetitions):
        for name, statement in statements.items():
            code = f"from time import time; t = time(); {statement}; print(time() - t)"
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            seconds[name].append(float(done.stdout.split()[-1]))
    return {name: spread(values) for name, values in seconds.items()}
