"""Time per step of estimators for discrete latents against the same ones written by hand.

One model, the binary autoencoder of digits with free logits and learned decoder, and the same
optimizer, number of draws and loop for both. Rounds alternate; a step is timed as the difference of
a long and a short run, so that starting a run does not count. It is time by the clock, of both
cores: the machine must have nothing else to do. Compile times are those of a first run.

    python -m benchmarks.estimator_speed --out benchmarks/results/estimator-speed.json
"""

import argparse
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import bbvi
from benchmarks import by_hand, by_hand_bounds, by_hand_trained, measure
from models import digits_vae

NUM_DATA = 400
NUM_SAMPLES = 4
LEARNING_RATE = 0.01
STEPS = 100  # of the short run; the long one takes five times as many
# A step that goes through 1024 states of each image takes as long as up to hundreds of the others.
STEPS_OF = {"enumeration": 2, "enumeration_shared": 2, "unordered_set": 10}
# Noise is drawn for many steps at once: one large call is far cheaper than many small ones.
BLOCK_ENTRIES = 1 << 17
PACKAGES = ("jax", "jaxlib", "optax", "distrax")

# The ELBO for all others.
OBJECTIVES: dict[type[bbvi.Estimator], bbvi.Objective] = {
    bbvi.Vimco: bbvi.Iwae(NUM_SAMPLES),
    bbvi.Ovis: bbvi.Iwae(NUM_SAMPLES),
    bbvi.ReweightedWakeSleep: bbvi.ForwardKl(NUM_SAMPLES),
}

CASES: dict[str, tuple[bbvi.Estimator, by_hand.Method]] = {
    "leave_one_out": (
        bbvi.ScoreFunction(NUM_SAMPLES, signal="component"),
        by_hand.leave_one_out(NUM_SAMPLES),
    ),
    # Half the variance of the signals has the same gradient, draw for draw.
    "var_grad": (bbvi.VarGrad(NUM_SAMPLES), by_hand.leave_one_out(NUM_SAMPLES)),
    "adaptive": (bbvi.ScoreFunction(NUM_SAMPLES), by_hand.adaptive(NUM_SAMPLES)),
    "arm": (
        bbvi.Arm(NUM_SAMPLES, signal="component"),
        by_hand.pairs(NUM_SAMPLES, is_arm=True),
    ),
    "disarm": (
        bbvi.DisArm(NUM_SAMPLES, signal="component"),
        by_hand.pairs(NUM_SAMPLES, is_arm=False),
    ),
    "stick_breaking": (
        bbvi.StickBreaking(NUM_SAMPLES, signal="component"),
        by_hand.pairs(NUM_SAMPLES, is_arm=False),  # what it is for two values
    ),
    "arms": (bbvi.Arms(NUM_SAMPLES, signal="component"), by_hand.arms(NUM_SAMPLES)),
    "double_cv": (bbvi.DoubleCv(NUM_SAMPLES), by_hand.double_cv(NUM_SAMPLES)),
    "mu_prop": (bbvi.MuProp(NUM_SAMPLES), by_hand.mu_prop(NUM_SAMPLES)),
    "rodeo": (bbvi.Rodeo(NUM_SAMPLES), by_hand_trained.rodeo(NUM_SAMPLES)),
    "rebar": (bbvi.Rebar(NUM_SAMPLES), by_hand_trained.rebar(NUM_SAMPLES)),
    "relax": (bbvi.Relax(NUM_SAMPLES), by_hand_trained.relax(NUM_SAMPLES)),
    "straight_through": (
        bbvi.StraightThrough(NUM_SAMPLES),
        by_hand.straight_through(NUM_SAMPLES),
    ),
    "gumbel_softmax": (bbvi.GumbelSoftmax(NUM_SAMPLES), by_hand.gumbel_softmax(NUM_SAMPLES)),
    "rein_max": (bbvi.ReinMax(NUM_SAMPLES), by_hand.rein_max(NUM_SAMPLES)),
    "vimco": (bbvi.Vimco(NUM_SAMPLES), by_hand_bounds.vimco(NUM_SAMPLES)),
    "ovis": (bbvi.Ovis(NUM_SAMPLES), by_hand_bounds.ovis(NUM_SAMPLES)),
    "reweighted_wake_sleep": (
        bbvi.ReweightedWakeSleep(NUM_SAMPLES),
        by_hand_bounds.reweighted_wake_sleep(NUM_SAMPLES),
    ),
    "unordered_set": (bbvi.UnorderedSet(NUM_SAMPLES), by_hand.unordered_set(NUM_SAMPLES)),
    "enumeration": (bbvi.Enumeration(), by_hand.enumeration(NUM_SAMPLES)),
    "enumeration_shared": (
        bbvi.Enumeration(),
        by_hand.enumeration(NUM_SAMPLES, is_shared=True),
    ),
}


def objective_of(estimator: bbvi.Estimator) -> bbvi.Objective:
    return OBJECTIVES.get(type(estimator), bbvi.Elbo())


def ours(estimator: bbvi.Estimator, x: jax.Array) -> Callable[[int, int], Any]:
    """``run(num_steps, seed)`` through ``bbvi.fit``, as a user calls it; returns the losses."""
    guide, optimizer = digits_vae.mean_field(len(x)), optax.adam(LEARNING_RATE)
    zeros = jnp.zeros((len(x), digits_vae.NUM_LATENTS))
    start = guide.init(jax.random.key(0), x)._replace(families={"z": {"logits": zeros}})

    def run(num_steps: int, seed: int) -> Any:
        result = bbvi.fit(
            digits_vae.log_joint,
            guide,
            x,
            key=jax.random.key(seed),
            estimator=estimator,
            objective=objective_of(estimator),
            optimizer=optimizer,
            model_params=digits_vae.model_params(),
            init_params=start,
            num_steps=num_steps,
            progress=False,
        )
        return result.history.loss

    return run


def theirs(method: by_hand.Method, x: jax.Array, steps: int) -> Callable[[int, int], Any]:
    """The same with everything written by hand, in one compiled loop."""
    optimizer = optax.adam(LEARNING_RATE)
    n = len(x)

    entries = jax.eval_shape(lambda key: method.draw(key, n), jax.random.key(0))
    num_entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(entries))
    block = max(1, min(steps, BLOCK_ENTRIES // max(1, num_entries)))

    @jax.jit
    def loop(key: jax.Array, x: jax.Array, theta: Any, num_steps: jax.Array) -> jax.Array:
        params = jnp.zeros((n, digits_vae.NUM_LATENTS)), theta

        def take(carry: Any, noise: Any) -> tuple[Any, jax.Array]:
            (eta, theta), opt_state, state = carry
            elbo, by_eta, by_theta, state = method.gradient(eta, theta, noise, x, state)
            grads = jax.tree.map(jnp.negative, (by_eta, by_theta))
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates((eta, theta), updates), opt_state, state), -elbo

        def step(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
            index, noise = inputs
            return jax.lax.cond(
                index < num_steps,
                take,
                lambda carry, noise: (carry, jnp.zeros(())),
                carry,
                noise,
            )

        def run_block(carry: Any, start: jax.Array) -> tuple[Any, jax.Array]:
            steps = start + jnp.arange(block)
            keys = jax.vmap(lambda step: jax.random.fold_in(key, step))(steps)
            noise = jax.vmap(lambda key: method.draw(key, n))(keys)
            return jax.lax.scan(step, carry, (steps, noise))

        def some(carry: Any, start: jax.Array) -> tuple[Any, jax.Array]:
            return jax.lax.cond(
                start < num_steps,
                run_block,
                lambda carry, start: (carry, jnp.zeros(block)),
                carry,
                start,
            )

        carry = params, optimizer.init(params), method.init()
        starts = block * jnp.arange(-(-5 * steps // block))
        return jax.lax.scan(some, carry, starts)[1].reshape(-1)

    def run(num_steps: int, seed: int) -> Any:
        losses = loop(jax.random.key(seed), x, digits_vae.model_params(), num_steps)
        return jax.device_get(losses)[:num_steps]

    return run


def run_case(name: str, rounds: int) -> dict[str, Any]:
    """Microseconds a step of both, their ratio round by round, and compile times."""
    estimator, method = CASES[name]
    steps = STEPS_OF.get(name, STEPS)
    x = digits_vae.data(NUM_DATA)
    runs = {"bbvi": ours(estimator, x), "by hand": theirs(method, x, steps)}
    first, bounds = {}, {}
    for who, run in runs.items():
        first[who], _, _ = measure.clock(lambda: run(5 * steps, 0))  # noqa: B023
        bounds[who] = float(run(5 * steps, 1)[-steps // 2 :].mean())
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    for index in range(rounds):
        for who, run in runs.items():
            short = measure.clock(lambda: run(steps, index))[0]  # noqa: B023
            long = measure.clock(lambda: run(5 * steps, index))[0]  # noqa: B023
            seconds[who].append((long - short) / (4 * steps))
    return {
        "estimator": repr(estimator),
        "case": name,
        "us_per_step": {
            who: measure.spread([1e6 * s for s in values]) for who, values in seconds.items()
        },
        "ratio": measure.ratio(seconds["bbvi"], seconds["by hand"]),
        "first_run_s": first,
        "final_loss": bounds,
    }


def table(results: dict[str, Any]) -> str:
    """A row per case: an estimator may be in several."""
    lines = [
        "| case | estimator | bbvi, µs per step [quartiles] | x by hand [quartiles] | first run, s "
        "| first run by hand, s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for case in results["cases"]:
        time, ratio = case["us_per_step"]["bbvi"], case["ratio"]
        lines.append(
            f"| {case['case']} | `{case['estimator']}` "
            f"| {time['median']:.0f} [{time['q1']:.0f}, {time['q3']:.0f}] "
            f"| {ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}] "
            f"| {case['first_run_s']['bbvi']:.1f} | {case['first_run_s']['by hand']:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 11")
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="repeatable")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; the table goes beside it")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {
        "suite": "estimator speed",
        "environment": measure.environment(*PACKAGES),
        "num_data": NUM_DATA,
        "num_samples": NUM_SAMPLES,
        "cases": [],
    }
    for name in options.only or CASES:
        print(f"{name} ...", flush=True)
        results["cases"].append(run_case(name, 3 if options.quick else 11))
        print(table(results).splitlines()[-1], flush=True)
        if options.out:  # what was measured is kept if the rest is not waited for
            options.out.write_text(json.dumps(results, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
