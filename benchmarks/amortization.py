"""What a network costs: one model fitted by free, amortized and semi-amortized guides.

    python -m benchmarks.amortization --out benchmarks/results/amortization.json

The model is the logistic regression with random effects of ``models/random_effects.py``, whose
log evidence is known by quadrature. Of the distance from an ELBO to it the free guide's is due to
the family (independent normal effects); what the others add is the amortization gap (Cremer, Li
and Duvenaud, 2018). All take the same steps of Adam, whose rate falls to nothing by a cosine, from
several seeds, of which the first compiles and is not timed. The figure has the distance as the
fits go on.
"""

import argparse
import functools
import json
import pathlib
import statistics
from typing import Any

import jax
import numpy as np
import optax

import bbvi
from benchmarks import measure
from models import random_effects

PACKAGES = ("jax", "jaxlib", "flax", "optax", "distrax")
GUIDES = {
    "free": random_effects.local,
    "amortized": random_effects.amortized,
    "4 steps of 8 draws": random_effects.semi_amortized,
    "4 steps of 32 draws": functools.partial(random_effects.semi_amortized, num_samples=32),
}
LEARNING_RATE = 1e-2
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
NUM_POINTS = 40  # of a curve


def run_guide(name: str, num_steps: int, num_seeds: int, num_draws: int) -> dict[str, Any]:
    """Final ELBOs with standard errors, milliseconds a step, and the mean curve of the fits."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
    elbos, seconds, losses = [], [], []
    for seed in range(num_seeds):
        result = bbvi.fit(
            *(random_effects.log_joint, GUIDES[name](), random_effects.data()),
            key=jax.random.key(seed),
            optimizer=optimizer,
            num_steps=num_steps,
            progress=False,
        )
        elbos.append(result.elbo(jax.random.key(num_seeds), num_draws)._asdict())
        seconds.append(result.seconds)
        losses.append(result.history.loss)
    ends = np.unique(np.geomspace(10, num_steps, NUM_POINTS).astype(int))
    parts = np.split(np.mean(losses, axis=0), ends)[:-1]
    return {
        "guide": name,
        "elbos": elbos,
        "ms_per_step": 1e3 * statistics.median(seconds[1:] or seconds) / num_steps,
        "steps": ends.tolist(),
        "elbo_until": [-float(part.mean()) for part in parts],
    }


def table(results: dict[str, Any]) -> str:
    """Distances to the log evidence in nats, by guide."""
    lines = [
        f"log p(x) = {results['log_evidence']:.3f} by quadrature; "
        f"{results['num_steps']} steps, {results['num_seeds']} seeds.",
        "",
        "| guide | log p(x) - ELBO, mean | least | most | amortization gap | ms per step |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    below = {
        guide["guide"]: [results["log_evidence"] - elbo["value"] for elbo in guide["elbos"]]
        for guide in results["guides"]
    }
    family = statistics.mean(below["free"])
    for guide in results["guides"]:
        values = below[guide["guide"]]
        gap = statistics.mean(values) - family
        lines.append(
            f"| {guide['guide']} | {statistics.mean(values):.3f} | {min(values):.3f} "
            f"| {max(values):.3f} | {gap:.3f} | {guide['ms_per_step']:.3f} |"
        )
    error = max(elbo["standard_error"] for guide in results["guides"] for elbo in guide["elbos"])
    lines.append("")
    lines.append(f"Standard errors of the ELBOs, under common draws, are at most {error:.3f}.")
    return "\n".join(lines)


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the distances to the log evidence as the fits go on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    styles = zip(COLOURS, ("-", "--", "-.", ":"), strict=True)
    for guide, (colour, line) in zip(results["guides"], styles, strict=True):
        steps = np.array(guide["steps"])
        distance = results["log_evidence"] - np.array(guide["elbo_until"])
        style = {"color": colour, "linestyle": line, "label": guide["guide"]}
        axes[0].plot(steps, distance, **style)
        axes[1].plot(steps * guide["ms_per_step"] / 1e3, distance, **style)
    axes[0].set_xlabel("steps")
    axes[1].set_xlabel("seconds")
    axes[0].set_ylabel("log p(x) - ELBO (nats)")
    axes[0].set_yscale("log")
    for axis in axes:
        axis.set_xscale("log")
        axis.grid(visible=True, which="both", alpha=0.2)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=20_000)
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--num-draws", type=int, default=20_000, help="for the final ELBO")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; table and figure beside it")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    results = options | {
        "environment": measure.environment(*PACKAGES),
        "log_evidence": float(random_effects.reference().log_evidence),
        "guides": [run_guide(name, **options) for name in GUIDES],
    }
    print(table(results))
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n")
        out.with_suffix(".md").write_text(table(results) + "\n")
        plot(results, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
