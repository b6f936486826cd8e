"""Variational and importance-weighted autoencoders on static binarized MNIST, trained to the end.

``python -m benchmarks.vae --network NAME --num-samples K --epochs N --out DIR``

With one sample the ELBO is maximised, with more the bound of that many (IWAE), by Adam at a
constant rate. Every few epochs the ELBO of all validation and test images is taken; at the end
their log likelihood, by importance sampling. A run goes on from its checkpoint in DIR when it is
started again, with more epochs too. Curves are JSON files there, with one figure of all; of the
convolutional network with two latents there are pictures of its losses and its manifold too.
"""

import argparse
import dataclasses
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import bbvi
from benchmarks import measure
from models import convolutional_vae, vae

NETWORKS = vae.NETWORKS | {"convolutional": convolutional_vae.NETWORK}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
ELBO_DRAWS = 10  # of each image
SPLITS = ("valid", "test")


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained, and how.

    Attributes:
      network: name in ``NETWORKS``.
      num_samples: draws in the bound of an image; 1 for the ELBO.
      batch_size: images a step.
      learning_rate: of Adam.
      seed: of parameters, batches and draws.
      num_images: training images used, from the first.
      num_evaluated: validation and test images used, from the first.
    """

    network: str
    num_samples: int = 1
    batch_size: int = 100
    learning_rate: float = 1e-3
    seed: int = 0
    num_images: int = 50_000
    num_evaluated: int = 10_000

    @property
    def name(self) -> str:
        return f"{'vae' if self.num_samples == 1 else f'iwae{self.num_samples}'}-{self.network}"

    def fit(self, num_epochs: int, folder: pathlib.Path) -> bbvi.FitResult:
        """Trains for so many epochs in all, from the checkpoint in the folder on."""
        network, x = NETWORKS[self.network], jnp.asarray(vae.images("train")[: self.num_images])
        return bbvi.fit(
            *(network.log_joint, network.guide(len(x)), x),
            key=jax.random.key(self.seed),
            objective=bbvi.Elbo() if self.num_samples == 1 else bbvi.Iwae(self.num_samples),
            estimator=bbvi.Reparameterization(self.num_samples),
            optimizer=optax.adam(self.learning_rate),
            model_params=network.model_params(self.seed),
            batch_size=self.batch_size,
            num_epochs=num_epochs,
            checkpoint=bbvi.Checkpoint(folder, keep=2),
            progress=False,
        )

    def held_out(self, result: bbvi.FitResult, split: str) -> bbvi.FitResult:
        """The fit for the images of a split."""
        return result.at(jnp.asarray(vae.images(split)[: self.num_evaluated]))


class Point(NamedTuple):
    """One point of a curve; seconds are of training, and all else is per image."""

    epoch: int
    seconds: float
    train_bound: float
    valid_elbo: float
    test_elbo: float


def look(run: Run, result: bbvi.FitResult, epoch: int, seconds: float) -> Point:
    """Bound of the last epoch's batches, and ELBOs of the images that are held out."""
    steps = run.num_images // run.batch_size
    bound = -float(result.history.loss[-steps:].mean()) / run.num_images
    elbos = [
        run.held_out(result, split).elbo(jax.random.key(run.seed), ELBO_DRAWS).value
        for split in SPLITS
    ]
    return Point(epoch, seconds, bound, *(elbo / run.num_evaluated for elbo in elbos))


def log_likelihood(run: Run, result: bbvi.FitResult, num_samples: int) -> dict[str, Any]:
    """Log likelihood of the test images, per image; a lower bound in the mean."""
    found = run.held_out(result, "test").log_evidence(jax.random.key(1), num_samples)
    return {
        "num_samples": num_samples,
        "test": found.value / run.num_evaluated,
        "test_error": found.standard_error / run.num_evaluated,
    }


def follow(
    run: Run, out: pathlib.Path, *, epochs: int, every: int, weights: int, seconds: float = math.inf
) -> dict[str, Any]:
    """Trains up to so many epochs, or for so many seconds more, and returns all that is known.

    Args:
      run: what to train.
      out: folder of the curve and of the checkpoint.
      epochs: at the end.
      every: how many between two points of the curve.
      weights: draws of each image for the log likelihood; none is taken if 0.
      seconds: of training, after which no more epochs are begun.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{run.name}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"curve": []}
    curve = [Point(**point) for point in stored["curve"]]
    began = curve[-1].seconds if curve else 0.0
    while not curve or (curve[-1].epoch < epochs and curve[-1].seconds < began + seconds):
        epoch, spent = (curve[-1].epoch, curve[-1].seconds) if curve else (0, 0.0)
        epoch = min(epoch + every, epochs)
        result = run.fit(epoch, out / run.name)
        curve.append(look(run, result, epoch, spent + result.seconds))
        print(f"{run.name}: {curve[-1]}", flush=True)
        stored |= {
            "run": dataclasses.asdict(run),
            "environment": measure.environment(*PACKAGES),
            "elbo_draws": ELBO_DRAWS,
            "curve": [point._asdict() for point in curve],
        }
        path.write_text(json.dumps(stored, indent=1) + "\n")
    result = run.fit(curve[-1].epoch, out / run.name)  # takes no more steps
    if run.network == "convolutional":
        losses = result.history.loss / run.num_images
        convolutional_vae.plot_loss(losses, out / f"{run.name}-loss.png")
        convolutional_vae.plot_manifold(result.params.model, out / f"{run.name}-manifold.png")
    if weights:
        found = log_likelihood(run, result, weights) | {"epoch": curve[-1].epoch}
        print(f"{run.name}: {found}", flush=True)
        stored["log_likelihood"] = found
        path.write_text(json.dumps(stored, indent=1) + "\n")
    return stored


def plot(out: pathlib.Path) -> pathlib.Path:
    """Draws the ELBOs of all runs in the folder."""
    from matplotlib.figure import Figure

    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for number, path in enumerate(sorted(out.glob("*.json"))):
        curve, colour = json.loads(path.read_text())["curve"], colours[number % len(colours)]
        epochs = [point["epoch"] for point in curve]
        style = {"color": colour, "marker": "osD^vPX"[number % 7], "markersize": 4}
        axis.plot(epochs, [p["test_elbo"] for p in curve], label=f"{path.stem}, test", **style)
        bounds = [point["train_bound"] for point in curve]
        axis.plot(epochs, bounds, "--", color=colour, label=f"{path.stem}, bound in training")
    axis.set_xlabel("epochs")
    axis.set_ylabel("nats per image")
    axis.set_xscale("log")
    axis.legend(frameon=False)
    path = out / "curves.png"
    figure.savefig(path, dpi=150)
    return path


def table(out: pathlib.Path) -> str:
    """What all runs in the folder have come to."""
    lines = [
        "| run | epochs | s per epoch | bound in training | test ELBO | log p(x) of test images |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for path in sorted(out.glob("*.json")):
        stored = json.loads(path.read_text())
        last, likelihood = stored["curve"][-1], stored.get("log_likelihood")
        found = "" if likelihood is None else f"{likelihood['test']:.2f}"
        lines.append(
            f"| {path.stem} | {last['epoch']} | {last['seconds'] / last['epoch']:.1f} "
            f"| {last['train_bound']:.2f} | {last['test_elbo']:.2f} | {found} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=list(NETWORKS), default="200")
    parser.add_argument("--num-samples", type=int, default=1, help="draws in the bound")
    parser.add_argument("--epochs", type=int, default=100, help="in all")
    parser.add_argument("--every", type=int, default=5, help="epochs between evaluations")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of training, in addition")
    parser.add_argument("--weights", type=int, default=5000, help="draws for log p(x); 0 for none")
    parser.add_argument("--num-images", type=int, default=50_000, help="for training")
    parser.add_argument("--num-evaluated", type=int, default=10_000, help="of each other split")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("output/vae"))
    options = vars(parser.parse_args(arguments))
    how = {name: options.pop(name) for name in ("out", "epochs", "every", "weights", "seconds")}
    follow(Run(**options), **how)
    plot(how["out"])
    how["out"].joinpath("results.md").write_text(table(how["out"]) + "\n")
    print(table(how["out"]))


if __name__ == "__main__":
    main()
