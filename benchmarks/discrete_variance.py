"""Variance and bias of gradients for binary latents, against the exact gradient.

``python -m benchmarks.discrete_variance [--quick] [--only NAME] [--out results.json]``

On the digits autoencoder of ``models/digits_vae.py``, whose ELBO is a sum over 2^10 values for
each image. All estimators are measured at the same three points of its reference run, which
follows exact gradients: the start, step 50 and step 1000. The gradient is that of one image's
ELBO in the ten logits that the encoder gives it; its variance is the trace of the covariance,
averaged over 50 images. They form one batch, of which each image is a component, so that learned
coefficients are common to all, as in training; they come from preceding steps at the point, and
are frozen while the variance is measured.
"""

import argparse
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bbvi
from benchmarks import measure, report, store
from models import digits_vae

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
NUM_IMAGES = 50
LEARNING_STEPS = 1000
REPLICATES = 4000
BATCHES = 20


@dataclasses.dataclass(frozen=True)
class Row:
    """An estimator to measure.

    Attributes:
      name: how the command line and the table call it.
      estimator: at about four evaluations a step, where it is one for that.
      independent: its variances at the three points as found once before, by another
        implementation of estimator and model, on another run of about the same ELBO.
      values: evaluations per step, where they depend on the model.
    """

    name: str
    estimator: bbvi.Estimator
    independent: tuple[float, float, float] | None = None
    values: int | None = None


score = functools.partial(bbvi.ScoreFunction, signal="component")

ROWS = (
    Row("REINFORCE", score(4, bbvi.NoBaseline()), (434, 220, 17.4)),
    Row("leave-one-out", score(4), (0.320, 0.232, 0.0753)),
    Row("leave-one-out, adaptive", bbvi.ScoreFunction(4)),
    Row("VarGrad", bbvi.VarGrad(4), (0.320, 0.232, 0.0753)),
    Row("ARM", bbvi.Arm(4, signal="component"), (0.550, 0.270, 0.267)),
    Row("DisARM", bbvi.DisArm(4, signal="component"), (0.445, 0.199, 0.0771)),
    Row("DisARM, adaptive", bbvi.DisArm(4)),
    Row("ARMS", bbvi.Arms(4, signal="component"), (0.303, 0.180, 0.0671)),
    Row("ARMS, adaptive", bbvi.Arms(4)),
    Row("Double CV", bbvi.DoubleCv(4)),
    Row("RODEO", bbvi.Rodeo(4)),
    Row("MuProp", bbvi.MuProp(4), (0.0094, 1.05, 2.08)),
    Row("REBAR, one draw", bbvi.Rebar(1), (0.240, 0.978, 1.83)),
    Row("REBAR", bbvi.Rebar(4)),
    Row("RELAX, one draw", bbvi.Relax(1)),
    Row("RELAX", bbvi.Relax(4)),
    # Both values of each of ten latents that share terms, and the draw itself.
    Row("local expectation, one draw", bbvi.LocalExpectation(1), (0.00022, 0.114, 0.0194), 21),
    Row("leave-one-out, 21 draws", score(21)),
    Row("enumeration", bbvi.Enumeration(1), (0.0, 0.0, 0.0), 1024),
    Row("straight-through", bbvi.StraightThrough(4), (0.0003, 0.050, 0.248)),
    Row("Gumbel-softmax 0.5", bbvi.GumbelSoftmax(4), (0.0135, 0.041, 0.161)),
    Row("ReinMax", bbvi.ReinMax(4)),
)


def problem() -> bbvi.Problem:
    """The images of a batch, with free logits."""
    return bbvi.Problem(digits_vae.log_joint, digits_vae.mean_field(NUM_IMAGES))


def points() -> tuple[Any, dict[int, bbvi.Params]]:
    """The images, and the parameters by step: the encoder's logits and theta."""
    everything, run = digits_vae.data(), digits_vae.reference_run()
    x = everything[:NUM_IMAGES]

    def at(params: bbvi.Params) -> bbvi.Params:
        logits = digits_vae.encoder().apply(params.guide, x)
        own = problem().init(jax.random.key(0), x, params.model)
        return own._replace(guide=own.guide._replace(families={"z": {"logits": logits}}))

    return x, {step: at(params) for step, params in run.items()}


def logits_of(params: bbvi.Params) -> jax.Array:
    return params.guide.families["z"]["logits"]


def exact_gradient(params: bbvi.Params, x: Any) -> np.ndarray:
    """Gradient of minus each image's ELBO in its logits ``[N, 10]``, by enumeration in float64."""
    with jax.enable_x64(True):  # noqa: FBT003
        x, logits, theta = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf), float), (x, logits_of(params), params.model)
        )
        loss = lambda logits, *rest: -digits_vae.elbos(rest[0], logits, rest[1]).sum()  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(logits, x, theta))


@functools.partial(jax.jit, static_argnames=("estimator", "steps", "batches", "size"))
def replicated(
    estimator: bbvi.Estimator,
    params: bbvi.Params,
    x: Any,
    *,
    steps: int,
    batches: int,
    size: int,
) -> tuple[jax.Array, jax.Array]:
    """By batch of replicates, variances and means of the gradient ``[B, N, 10]``."""
    model = problem()

    def learn(state: Any, key: jax.Array) -> tuple[Any, None]:
        noise = estimator.draw(key, model)
        return estimator.estimate(noise, model, params, x, state)[1], None

    start = estimator.init(model, params, x)
    state, _ = jax.lax.scan(learn, start, jax.random.split(jax.random.key(1), steps))

    def gradient(key: jax.Array) -> jax.Array:
        noise = estimator.draw(key, model)
        return logits_of(estimator.estimate(noise, model, params, x, state)[0].grads)

    def batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradients = jax.lax.map(gradient, jax.random.split(key, size), batch_size=20)
        return jnp.var(gradients, axis=0, ddof=1), jnp.mean(gradients, axis=0)

    return jax.lax.map(batch, jax.random.split(jax.random.key(2), batches))


def summary(variances: np.ndarray, means: np.ndarray, size: int, exact: np.ndarray) -> dict:
    """Variance with its standard error, and bias, from batches ``[B, N, 10]`` of ``size`` each.

    The bias is the norm of the mean error, less what noise adds to it, over the norm of the exact
    gradient; beside it that of the noise, below which a bias cannot be seen.
    """
    batches = len(means)
    traces = variances.sum(axis=2).mean(axis=1)
    difference = means.mean(axis=0) - exact
    squared_error = variances.mean(axis=0) / (batches * size)
    squared_bias = np.sum(difference**2) - np.sum(squared_error)
    return {
        "variance": float(traces.mean()),
        "variance_se": float(traces.std(ddof=1) / np.sqrt(batches)),
        "relative_bias": float(np.sqrt(max(squared_bias, 0.0) / np.sum(exact**2))),
        "relative_noise": float(np.sqrt(np.sum(squared_error) / np.sum(exact**2))),
    }


def run_row(row: Row, *, quick: bool) -> dict[str, Any]:
    """Variance and bias of one estimator at every point."""
    x, at = points()
    steps, batches, size = (
        (10, 4, 25) if quick else (LEARNING_STEPS, BATCHES, REPLICATES // BATCHES)
    )
    found = {}
    for step, params in at.items():
        row.estimator.validate(problem(), params, x)
        variances, means = replicated(
            row.estimator, params, x, steps=steps, batches=batches, size=size
        )
        found[str(step)] = summary(
            *(np.asarray(leaf, np.float64) for leaf in (variances, means)),
            size,
            exact_gradient(params, x),
        )
    values, gradients = row.estimator.cost
    return {
        "case": row.name,
        "environment": measure.environment(*PACKAGES),
        "estimator": repr(row.estimator),
        "is_biased": row.estimator.is_biased,
        "values": row.values or values,
        "gradients": gradients,
        "images": NUM_IMAGES,
        "replicates": batches * size,
        "learning_steps": steps,
        "independent": row.independent,
        "points": found,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 replicates")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", action="append", choices=names, help="repeatable")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; rows not run stay in it")
    options = parser.parse_args(arguments)
    cases = []
    for row in ROWS:
        if row.name in (options.only or names):
            cases.append(run_row(row, quick=options.quick))
            store.merge(options.out, "discrete_variance", cases[-1])
            print(row.name, cases[-1]["points"], flush=True)
    print(report.markdown({"suite": "discrete_variance", "cases": cases}), flush=True)


if __name__ == "__main__":
    main()
