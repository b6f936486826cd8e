"""Time of a step as devices are added, and what passes between them.

``python -m benchmarks.devices [--quick] [--devices D ...] [--rounds R] [--out results.json]``

Rows of a logistic regression, the draws of a neural network's weights, and the latents of each row
of a hierarchical model, spread over 1, 2, 4 and 8 devices of the
machine. On CPU these are virtual ones, with a processor each as far as there are any, so that
efficiency is against as many processors as are in use. Every number of devices has processes of
its own, in turns; messages are read from the compiled program of a step.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm
from jax.sharding import Mesh

import bbvi
from bbvi._optimizers import Optimizer
from bbvi.infer.chunk import run_chunk, start
from bbvi.infer.placement import place
from bbvi.infer.step import Algorithm
from benchmarks import measure, report

PACKAGES = ("jax", "jaxlib", "optax", "numpy")
DEVICES = (1, 2, 4, 8)
CASES = {"rows": 64_000, "draws": 4000, "latents": 64_000}
ROUNDS = 5
STEPS = (10, 60)
COLLECTIVE = r"= (\(.*?\)|\S+) (?:all-\w+|collective-\w+|reduce-scatter)\(.*while/body"
OPTIMIZER = optax.adam(0.01)


def regression(x: Any, z: Any) -> jax.Array:
    logits = x["features"] @ z["w"]
    data = jax.nn.log_sigmoid(jnp.where(x["label"] == 1, logits, -logits))
    return norm.logpdf(z["w"]).sum() + data.sum()


def network(x: Any, z: Any) -> jax.Array:
    """The weights of a network with a hidden layer: each draw pays for products of matrices."""
    logits = jnp.tanh(x["features"] @ z["hidden"]) @ z["w"]
    data = jax.nn.log_sigmoid(jnp.where(x["label"] == 1, logits, -logits))
    return norm.logpdf(z["hidden"]).sum() + norm.logpdf(z["w"]).sum() + data.sum()


def hierarchy(x: Any, z: Any) -> jax.Array:
    prior = norm.logpdf(z["mean"]).sum() + norm.logpdf(z["effect"] - z["mean"][None]).sum()
    return prior + norm.logpdf(x["features"], z["effect"], 0.5).sum()


def problem(case: str, size: int) -> tuple[Any, bbvi.Guide, Any, str]:
    """Model, guide, data and the axis that is spread."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((size, 10 if case == "latents" else 100), np.float32)
    if case == "latents":
        local = bbvi.Local({"effect": bbvi.Normal((size, 10))})
        guide = bbvi.Product(bbvi.MeanField({"mean": bbvi.Normal((10,))}), local)
        return hierarchy, guide, {"features": features}, "data"
    x = {"features": features, "label": (rng.random(size) < 0.5).astype(np.int8)}
    sites = {"w": bbvi.Normal((100,))}
    if case == "draws":
        sites["hidden"] = bbvi.Normal((100, 100))
        return network, bbvi.MeanField(sites), x, "samples"
    return regression, bbvi.MeanField(sites), x, "data"


def child(case: str, size: int, num_devices: int) -> dict[str, Any]:
    """Microseconds of a step, and what one passes on, in a process made for it."""
    log_joint, guide, x, axis = problem(case, size)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (axis,))
    whole, estimator = bbvi.Problem(log_joint, guide), bbvi.Reparameterization(8)
    placement, x = place(mesh, whole, x, None)
    chosen = Optimizer.of(OPTIMIZER)
    algorithm = Algorithm(whole, estimator, chosen, placement=placement)
    params = whole.init(jax.random.key(0), x)
    state = start(algorithm, jax.random.key(1), x, params, is_batched=False)
    options = {"is_batched": False, "is_guarded": False}
    program = run_chunk.lower(algorithm, state, x, 1, **options).compile()

    def run(num_steps: int) -> None:
        bbvi.fit(
            *(log_joint, guide, x),
            mesh=mesh,
            estimator=estimator,
            optimizer=OPTIMIZER,
            num_steps=num_steps,
            progress=False,
        )

    for num_steps in STEPS:
        run(num_steps)
    (short, short_cpu, _), (long, long_cpu, _) = (measure.clock(lambda: run(n)) for n in STEPS)  # noqa: B023
    scale = 1e6 / (STEPS[1] - STEPS[0])
    return {
        "wall_us": scale * (long - short),
        "cpu_us": scale * (long_cpu - short_cpu),
        "kind": jax.devices()[0].platform,
        "messages": messages(program.as_text()),
        "device_mb": program.memory_analysis().argument_size_in_bytes / 2**20,
    }


def messages(program: str) -> dict[str, int]:
    """Collective operations of a step in a compiled program, and bytes in their results."""
    found = re.findall(COLLECTIVE, program)
    arrays = [array for shapes in found for array in re.findall(r"[a-z](\d+)\[([\d,]*)\]", shapes)]
    counts = [
        int(bits) // 8 * math.prod(map(int, filter(None, s.split(",")))) for bits, s in arrays
    ]
    return {"count": len(found), "bytes": sum(counts)}


def run_case(case: str, size: int, devices: list[int], rounds: int) -> dict[str, Any]:
    measured: dict[int, list[dict[str, Any]]] = {number: [] for number in devices}
    for _ in range(rounds):
        for number in devices:
            measured[number].append(_fresh(case, size, number))
    rows = []
    for number, runs in measured.items():
        walls, first = (
            [run["wall_us"] for run in runs],
            [r["wall_us"] for r in measured[devices[0]]],
        )
        processors = os.cpu_count() or 1
        workers = min(number, processors) if runs[0]["kind"] == "cpu" else number
        base = min(devices[0], processors)
        speedup = measure.ratio(first, walls)
        rows.append(
            {
                "devices": number,
                "wall_us": measure.spread(walls),
                "cpu_us": measure.spread([run["cpu_us"] for run in runs]),
                "speedup": speedup,
                "efficiency": measure.ratio([w * base / workers for w in first], walls),
                "messages": runs[0]["messages"],
                "device_mb": runs[0]["device_mb"],
            }
        )
    return {"case": case, "size": size, "rows": rows}


def _fresh(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.devices", "--child", *map(str, arguments)]
    # Of no effect where there are accelerators.
    flags = f"--xla_force_host_platform_device_count={arguments[-1]}"
    environment = os.environ | {"XLA_FLAGS": flags}
    with _few_processors(arguments[-1]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def _few_processors(number: int) -> Iterator[None]:
    """A process that is started here has one processor for each device, if that can be told.

    One virtual device would otherwise have the threads of all processors, and spreading its work
    could gain nothing.
    """
    if jax.default_backend() != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def tables(results: dict[str, Any]) -> list[str]:
    known = results["environment"]
    parts = [
        "# Several devices",
        f"{report.machine(known)}; load {known['load_average']:.0f} at the start. Eight draws, all "
        "rows at every step, Adam. Virtual devices have a processor each: more of them than there "
        "are cannot be faster, and efficiency is the speed-up over the processors that are in "
        "use. Medians with quartiles; ratios are taken round by round. Messages are the "
        "collective operations of one step and the bytes in their results; memory is that of "
        "data and parameters on one device.",
    ]
    head = (
        *("devices", "us/step [IQR]", "cpu us/step [IQR]", "speed-up [IQR]", "efficiency [IQR]"),
        *("messages", "bytes", "MB a device"),
    )
    for case in results["cases"]:
        rows = [
            [
                str(row["devices"]),
                *(report.spread(row[n]) for n in ("wall_us", "cpu_us", "speedup", "efficiency")),
                *(str(row["messages"][name]) for name in ("count", "bytes")),
                report.number(row["device_mb"]),
            ]
            for row in case["rows"]
        ]
        title = f"## {case['case'].capitalize()} spread, {case['size']:,} rows"
        parts += [title, report.table(head, rows)]
    return parts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--devices", type=int, action="append", help="repeatable")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; the table goes beside it")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        case, *numbers = options.child
        print(json.dumps(child(case, *map(int, numbers))))
        return
    devices = options.devices or list(DEVICES)
    results: dict[str, Any] = {
        "suite": "devices",
        "environment": measure.environment(*PACKAGES),
        "cases": [],
    }
    for case, size in CASES.items():
        size = size // 10 if options.quick else size
        results["cases"].append(run_case(case, size, devices, options.rounds))
    text = report.markdown(results)
    print(text)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
