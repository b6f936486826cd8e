"""Data on disk: time of an epoch against that of reading alone, and memory as the data grow.

``python -m benchmarks.streaming [--quick] [--batch-size B ...] [--folder F] [--out results.json]``

A logistic regression with ten features, in two files written for it. Reading alone is what ``fit``
reads, with its reader and up to the device, without steps. In memory: the same fit of arrays on the
device, which picks its batches there. Each figure is taken in a fresh process, after a first run
that compiles.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from bbvi.infer.batching import Source
from bbvi.infer.streams import source_of
from benchmarks import measure, report, store
from benchmarks.cold import peak_mb

PACKAGES = ("jax", "jaxlib", "optax", "numpy")
NUM_FEATURES = 10
SIZES = (1_000_000, 10_000_000)
BATCH_SIZES = (1024, 8192)
ROUNDS = 5
ROWS_AT_A_TIME = 1 << 18
GUIDE = bbvi.MeanField({"w": bbvi.Normal((NUM_FEATURES,))})


def log_joint(x: Any, z: Any) -> jax.Array:
    logits = x["features"] @ z["w"]
    data = jax.nn.log_sigmoid(jnp.where(x["label"] == 1, logits, -logits))
    return norm.logpdf(z["w"]).sum() + data.sum()


def write(folder: pathlib.Path, size: int) -> None:
    """Features, float32, and labels, int8."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=NUM_FEATURES)
    with open(folder / "features", "wb") as features, open(folder / "label", "wb") as label:
        for first in range(0, size, ROWS_AT_A_TIME):
            rows = rng.standard_normal(
                (min(ROWS_AT_A_TIME, size - first), NUM_FEATURES), np.float32
            )
            uniform = rng.random(len(rows))
            rows.tofile(features)
            (uniform < 1 / (1 + np.exp(-rows @ weights))).astype(np.int8).tofile(label)


def stored(folder: pathlib.Path) -> dict[str, np.ndarray]:
    features = np.memmap(folder / "features", np.float32, "r").reshape(-1, NUM_FEATURES)
    return {"features": features, "label": np.memmap(folder / "label", np.int8, "r")}


def fit(x: Any, batch_size: int) -> bbvi.FitResult:
    """An epoch."""
    return bbvi.fit(log_joint, GUIDE, x, batch_size=batch_size, num_epochs=1, progress=False)


def read(source: Source, num_steps: int) -> None:
    """The data of an epoch, without steps."""
    step = 0
    with source:
        while step < num_steps:
            feed, count = source.feed(step, num_steps - step)
            jax.block_until_ready(feed)
            step += count


def epochs(folder: pathlib.Path, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch: reading, from disk, in memory, interleaved."""
    x = stored(folder)
    problem = bbvi.Problem(log_joint, GUIDE)
    source = source_of(problem, x, batch_size, jax.random.key(0))[1]
    num_steps = source.batching.steps_per_epoch
    loaded = jax.tree.map(jnp.asarray, x)
    runs = {
        "reading": lambda: read(source, num_steps),
        "stored": lambda: fit(x, batch_size),
        "resident": lambda: fit(loaded, batch_size),
    }
    seconds: dict[str, list[float]] = {f"{name}_{c}": [] for name in runs for c in ("wall", "cpu")}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            wall, cpu, _ = measure.clock(run)
            seconds[f"{name}_wall"].append(wall)
            seconds[f"{name}_cpu"].append(cpu)
    row: dict[str, Any] = {f"{name}_s": measure.spread(values) for name, values in seconds.items()}
    row["to_reading"] = measure.ratio(seconds["stored_wall"], seconds["reading_wall"])
    row["to_resident"] = measure.ratio(seconds["stored_wall"], seconds["resident_wall"])
    return {"batch_size": batch_size, "steps": num_steps} | row


def memory(folder: pathlib.Path, batch_size: int) -> dict[str, Any]:
    """Peaks of all memory, and of that which is not pages of files, of a fit of an epoch, in MB."""
    done, anonymous = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.005):
            anonymous[0] = max(anonymous[0], _status_mb("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        fit(stored(folder), batch_size)
    finally:
        done.set()
        watcher.join()
    return {
        "peak_mb": peak_mb(),
        "peak_anonymous_mb": anonymous[0],
        "files_mb": sum(path.stat().st_size for path in folder.iterdir()) / 2**20,
    }


def _status_mb(field: str) -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(field)), 0.0)


def run_case(
    parent: pathlib.Path, size: int, batch_sizes: list[int], rounds: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        write(pathlib.Path(folder), size)
        return {
            "case": f"logistic_{size}",
            "environment": measure.environment(*PACKAGES),
            "size": size,
            "epochs": [_fresh("epochs", folder, b, rounds) for b in batch_sizes],
            "memory": _fresh("memory", folder, batch_sizes[0]),
        }


def _fresh(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.streaming", "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def child(what: str, folder: str, *numbers: str) -> dict[str, Any]:
    """One figure, in the process made for it."""
    run = epochs if what == "epochs" else memory
    return run(pathlib.Path(folder), *map(int, numbers))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows")
    parser.add_argument("--batch-size", type=int, action="append", help="repeatable")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=pathlib.Path, help="where data are written for a while")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; other sizes stay in it")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    cases = []
    for size in SIZES:
        rows = size // 100 if options.quick else size
        batch_sizes = options.batch_size or list(BATCH_SIZES)
        cases.append(run_case(options.folder, rows, batch_sizes, options.rounds))
        store.merge(options.out, "streaming", cases[-1])
    print(report.markdown({"suite": "streaming", "cases": cases}))


if __name__ == "__main__":
    main()
