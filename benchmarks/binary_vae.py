"""Training of binary autoencoders on static binarized MNIST, one estimator against another.

``python -m benchmarks.binary_vae --estimator NAME --network NAME --seconds N --out DIR``

Runs of the same network, seed, batch and rate start from the same parameters and see the same
batches. A run stops after so many seconds of training (or ``--steps``) and goes on from its
checkpoint when started again. Curves are JSON files in DIR, with one figure for each network:
ELBO of a fixed part of the training images against evaluations of ``log_joint`` and against
time. An evaluation at one draw of the latents of the batch counts one, with or without the
gradient in the latents: every step takes the gradient in the decoder's weights anyway.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbvi
from benchmarks import measure
from models import binary_vae

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
NUM_EVALUATED, NUM_EVALUATION_DRAWS = 1000, 20

# At four evaluations a step, or three where each draw needs three.
ESTIMATORS: dict[str, bbvi.Estimator] = {
    "leave-one-out": bbvi.ScoreFunction(4, signal="component"),
    "DisARM": bbvi.DisArm(4, signal="component"),
    "ARMS": bbvi.Arms(4, signal="component"),
    "Double CV": bbvi.DoubleCv(4),
    "RODEO": bbvi.Rodeo(4),
    "REBAR": bbvi.Rebar(1),
    "RELAX": bbvi.Relax(1),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained, and how.

    Attributes:
      name: of the estimator.
      estimator: what is trained with.
      network: name in ``binary_vae.NETWORKS``.
      batch_size: images a step.
      learning_rate: of Adam.
      seed: of parameters, batches and draws.
      num_images: training images used, from the first.
    """

    name: str
    estimator: bbvi.Estimator
    network: str
    batch_size: int = 100
    learning_rate: float = 1e-3
    seed: int = 0
    num_images: int = 50_000

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.batch_size

    @property
    def evaluations_per_step(self) -> int:
        return sum(self.estimator.cost)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def problem(self, batch_size: int) -> bbvi.Problem:
        network = binary_vae.NETWORKS[self.network]
        return bbvi.Problem(network.log_joint, network.guide(batch_size))


class State(NamedTuple):
    """All that the next step needs besides the images and the number of the epoch."""

    params: bbvi.Params
    opt_state: optax.OptState
    estimator_state: Any


def start(run: Run) -> State:
    """State before the first step; the estimator is checked against the model."""
    problem, x = run.problem(run.batch_size), binary_vae.data(run.batch_size)
    theta = binary_vae.NETWORKS[run.network].model_params(run.seed)
    params = problem.init(jax.random.key(run.seed), x, theta)
    run.estimator.validate(problem, params, x)
    return State(params, run.optimizer.init(params), run.estimator.init(problem, params, x))


def batches(run: Run, key: jax.Array, images: jax.Array) -> jax.Array:
    """The images of an epoch in random order, ``[steps, batch, 784]`` bytes."""
    order = jax.random.permutation(key, len(images))[: run.steps_per_epoch * run.batch_size]
    return images[order].reshape(run.steps_per_epoch, run.batch_size, -1)


@functools.partial(jax.jit, static_argnames="run")
def train(run: Run, state: State, images: jax.Array, mean: jax.Array, epoch: jax.Array) -> State:
    """One epoch of training, images and loop on the device."""
    problem, estimator = run.problem(run.batch_size), run.estimator

    def step(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, None]:
        key, pixels = inputs
        params, opt_state, estimator_state = state
        x = {"pixels": pixels.astype(mean.dtype), "mean": mean}
        noise = estimator.draw(key, problem)
        estimate, estimator_state = estimator.estimate(noise, problem, params, x, estimator_state)
        updates, opt_state = run.optimizer.update(estimate.grads, opt_state, params)
        return State(optax.apply_updates(params, updates), opt_state, estimator_state), None

    order, draws = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), epoch))
    keys = jax.random.split(draws, run.steps_per_epoch)
    return jax.lax.scan(step, state, (keys, batches(run, order, images)))[0]


@functools.partial(jax.jit, static_argnames="run")
def evaluate(
    run: Run, params: bbvi.Params, images: jax.Array, mean: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """ELBO per image of these images, and its standard error over the draws of the latents."""
    problem = run.problem(len(images))
    x = {"pixels": images.astype(mean.dtype), "mean": mean}

    def one_draw(key: jax.Array) -> jax.Array:
        z, log_q = problem.sample_and_log_q(problem.base_noise(key, 1), params, x)
        return (problem.log_p(params, x, z) - log_q)[0] / len(images)

    keys = jax.random.split(jax.random.key(run.seed), NUM_EVALUATION_DRAWS)
    elbos = jax.lax.map(one_draw, keys)
    return jnp.mean(elbos), jnp.std(elbos, ddof=1) / np.sqrt(NUM_EVALUATION_DRAWS)


class Point(NamedTuple):
    """One point of a curve; seconds are of training alone."""

    step: int
    seconds: float
    cpu_seconds: float
    elbo: float
    standard_error: float


def save(path: pathlib.Path, run: Run, state: State, curve: list[Point]) -> None:
    """Writes the checkpoint, whole or not at all, and then the curve as JSON."""
    leaves = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, curve=np.array(curve), config=json.dumps(_config(run)), **leaves)
    os.replace(temporary, path.with_suffix(".npz"))
    result = _config(run) | {
        "environment": measure.environment(*PACKAGES),
        "evaluated_images": min(NUM_EVALUATED, run.num_images),
        "evaluation_draws": NUM_EVALUATION_DRAWS,
        "curve": [p._asdict() | {"evaluations": p.step * run.evaluations_per_step} for p in curve],
    }
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


def restore(path: pathlib.Path, run: Run, like: State) -> tuple[State, list[Point]]:
    """State and curve from the checkpoint, or ``like`` and no curve where there is none.

    Raises:
      ValueError: the checkpoint is of another run.
    """
    if not path.with_suffix(".npz").exists():
        return like, []
    with np.load(path.with_suffix(".npz")) as stored:
        found = json.loads(str(stored["config"]))
        if found != _config(run):
            raise ValueError(f"{path}.npz is of {found}, not of {_config(run)}; use another --out.")
        leaves = [jnp.asarray(stored[f"leaf_{i}"]) for i in range(len(jax.tree.leaves(like)))]
        curve = [Point(int(row[0]), *map(float, row[1:])) for row in stored["curve"]]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), curve


def _config(run: Run) -> dict[str, Any]:
    return {f.name: getattr(run, f.name) for f in dataclasses.fields(run)} | {
        "estimator": repr(run.estimator)
    }


def follow(run: Run, out: pathlib.Path, seconds: float, steps: int) -> list[Point]:
    """Trains for so many seconds more, or up to so many steps, and returns the whole curve."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{run.network}-{run.name.replace(' ', '-')}-{run.seed}"
    state, curve = restore(path, run, start(run))
    images = jnp.asarray(binary_vae.images("train")[: run.num_images])
    mean = jnp.asarray(binary_vae.train_mean())

    def look(step: int, wall: float, cpu: float) -> None:
        elbo, error = evaluate(run, state.params, images[:NUM_EVALUATED], mean)
        curve.append(Point(step, wall, cpu, float(elbo), float(error)))
        save(path, run, state, curve)
        print(f"{run.name}: {curve[-1]}", flush=True)

    if not curve:
        look(0, 0.0, 0.0)
    compiled = train.lower(run, state, images, mean, jnp.int32(0)).compile()
    budget = curve[-1].seconds + seconds
    while curve[-1].seconds < budget and curve[-1].step < steps:
        last = curve[-1]
        epoch = jnp.int32(last.step // run.steps_per_epoch)
        wall, cpu, state = measure.clock(
            lambda: jax.block_until_ready(compiled(state, images, mean, epoch))  # noqa: B023
        )
        look(last.step + run.steps_per_epoch, last.seconds + wall, last.cpu_seconds + cpu)
    return curve


def plot(out: pathlib.Path, network: str) -> pathlib.Path:
    """Draws all curves of a network that are in the folder."""
    from matplotlib.figure import Figure

    # Okabe and Ito's colours, told apart by the colour-blind; markers tell them apart in grey.
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    runs = [json.loads(path.read_text()) for path in sorted(out.glob(f"{network}-*.json"))]
    runs.sort(key=lambda result: list(ESTIMATORS).index(result["name"]))
    # On a busy processor its own time is what can be compared.
    clock = "cpu_seconds" if runs[0]["environment"]["device"] == "cpu" else "seconds"
    for result in runs:
        number = list(ESTIMATORS).index(result["name"])
        points = {key: [p[key] for p in result["curve"]] for key in result["curve"][0]}
        for axis, across in zip(axes, ("evaluations", clock), strict=True):
            axis.errorbar(
                points[across],
                points["elbo"],
                yerr=points["standard_error"],
                label=result["name"],
                color=colours[number % len(colours)],
                marker="osD^vPX"[number % 7],
                markersize=4,
                markevery=max(1, len(points["elbo"]) // 10),
            )
    best = [max(p["elbo"] for p in result["curve"]) for result in runs]
    early = [result["curve"][min(1, len(result["curve"]) - 1)]["elbo"] for result in runs]
    margin = 0.05 * (max(best) - min(early)) + 0.1
    axes[0].set_ylim(min(early) - margin, max(best) + margin)  # the start is far below
    axes[0].set_ylabel("ELBO of training images (nats per image)")
    axes[0].set_xlabel("evaluations of log_joint per image of the batch")
    kind = {"cpu_seconds": "processor ", "seconds": ""}[clock]
    axes[1].set_xlabel(f"{kind}time of training (seconds)")
    axes[1].legend(frameon=False)
    first = runs[0]
    figure.suptitle(
        f"Static binarized MNIST, {network} network, batches of {first['batch_size']}, "
        f"Adam at {first['learning_rate']:g}"
    )
    path = out / f"{network}.png"
    figure.savefig(path, dpi=150)
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--estimator", action="append", choices=list(ESTIMATORS), default=[])
    parser.add_argument("--network", choices=list(binary_vae.NETWORKS), default="linear")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, in addition")
    parser.add_argument("--steps", type=int, default=1_000_000, help="in all, at most")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-images", type=int, default=50_000)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("output/binary_vae"))
    options = parser.parse_args(arguments)
    for name in options.estimator or ESTIMATORS:
        run = Run(
            name,
            ESTIMATORS[name],
            options.network,
            options.batch_size,
            options.learning_rate,
            options.seed,
            options.num_images,
        )
        follow(run, options.out, options.seconds, options.steps)
        print(plot(options.out, options.network), flush=True)


if __name__ == "__main__":
    main()
