"""Time and memory of training epochs of the VAE: ``fit``, a loop by hand, and NumPyro's SVI.

The same networks, optimizer, bound (closed-form entropy, one draw) and reshuffled batches for all
three. The loop by hand is one compiled ``lax.scan`` over an epoch of Flax and optax calls; NumPyro
runs ``SVI.update`` in one too, its networks declared by ``flax_module``. Rounds alternate; an epoch
is timed as half the difference of three and one, so that starting a run does not count. It is time
by the clock, of all cores: the machine must have nothing else to do. Peak memory is of a process
that does nothing else.

    python -m benchmarks.vae_speed --out benchmarks/results/vae-speed.json
"""

import argparse
import functools
import json
import multiprocessing
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

import bbvi
from benchmarks import measure
from models import vae

PACKAGES = ("jax", "jaxlib", "flax", "optax", "distrax", "numpyro")
BATCH_SIZES = (128, 1024)
LEARNING_RATE = 1e-3
EPOCHS = 3  # of the long run; the short one takes one

# Trains for so many epochs from a seed and returns the losses, of all data, on the host.
Run = Callable[[int, int], Any]


def ours(network: vae.Autoencoder, x: jax.Array, batch_size: int) -> Run:
    guide, optimizer = network.guide(len(x)), optax.adam(LEARNING_RATE)

    def run(num_epochs: int, seed: int) -> Any:
        result = bbvi.fit(
            network.log_joint,
            guide,
            x,
            key=jax.random.key(seed),
            estimator=bbvi.Reparameterization(1),
            optimizer=optimizer,
            model_params=network.model_params(),
            batch_size=batch_size,
            num_epochs=num_epochs,
            progress=False,
        )
        return result.history.loss

    return run


def by_hand(network: vae.Autoencoder, x: jax.Array, batch_size: int) -> Run:
    optimizer, steps = optax.adam(LEARNING_RATE), len(x) // batch_size
    decoder = network.log_joint.decoder

    def loss(params: Any, pixels: jax.Array, noise: jax.Array) -> jax.Array:
        phi, theta = params
        q = network.encoder.apply(phi, pixels)["z"]
        z = q["loc"] + jnp.exp(q["log_scale"]) * noise
        logits = decoder.apply(theta, z)
        log_p = jnp.sum(pixels * logits - jax.nn.softplus(logits)) + jnp.sum(norm.logpdf(z))
        entropy = jnp.sum(q["log_scale"]) + 0.5 * z.size * (1 + jnp.log(2 * jnp.pi))
        return -(log_p + entropy) * (len(x) / batch_size)

    @jax.jit
    def epoch(carry: Any, key: jax.Array, x: jax.Array) -> tuple[Any, jax.Array]:
        order_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))[: steps * batch_size]

        def step(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
            params, opt_state = carry
            rows, key = inputs
            noise = jax.random.normal(key, (batch_size, network.num_latents))
            value, grads = jax.value_and_grad(loss)(params, x[rows].astype(float), noise)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        keys = jax.random.split(noise_key, steps)
        return jax.lax.scan(step, carry, (order.reshape(steps, batch_size), keys))

    def run(num_epochs: int, seed: int) -> Any:
        init_key, run_key = jax.random.split(jax.random.key(seed))
        params = network.encoder.init(init_key, x[:batch_size]), network.model_params()
        carry, losses = (params, optimizer.init(params)), []
        for index in range(num_epochs):
            carry, found = epoch(carry, jax.random.fold_in(run_key, index), x)
            losses.append(jax.device_get(found))
        return jnp.concatenate(losses)

    return run


def numpyro_svi(network: vae.Autoencoder, x: jax.Array, batch_size: int) -> Run:
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.module import flax_module
    from numpyro.infer import SVI, TraceMeanField_ELBO

    steps, decoder = len(x) // batch_size, network.log_joint.decoder

    def model(pixels: jax.Array) -> None:
        net = flax_module("decoder", decoder, jnp.zeros((1, network.num_latents)))
        with numpyro.plate("batch", len(x), batch_size):
            prior = dist.Normal(jnp.zeros(network.num_latents), 1.0).to_event(1)
            logits = net(numpyro.sample("z", prior))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)

    def guide(pixels: jax.Array) -> None:
        net = flax_module("encoder", network.encoder, jnp.zeros((1, vae.NUM_PIXELS)))
        q = net(pixels)["z"]
        with numpyro.plate("batch", len(x), batch_size):
            scale = jnp.exp(q["log_scale"])
            numpyro.sample("z", dist.Normal(q["loc"], scale).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), TraceMeanField_ELBO())

    @jax.jit
    def epoch(state: Any, key: jax.Array, x: jax.Array) -> tuple[Any, jax.Array]:
        order = jax.random.permutation(key, len(x))[: steps * batch_size]

        def step(state: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
            return svi.update(state, x[rows].astype(float))

        return jax.lax.scan(step, state, order.reshape(steps, batch_size))

    def run(num_epochs: int, seed: int) -> Any:
        init_key, run_key = jax.random.split(jax.random.key(seed))
        state, losses = svi.init(init_key, x[:batch_size].astype(float)), []
        for index in range(num_epochs):
            state, found = epoch(state, jax.random.fold_in(run_key, index), x)
            losses.append(jax.device_get(found))
        return jnp.concatenate(losses)

    return run


CONTESTANTS = {"bbvi": ours, "by hand": by_hand, "NumPyro": numpyro_svi}


def contestant(name: str, network: str, batch_size: int, num_images: int) -> Run:
    x = jnp.asarray(vae.images("train")[:num_images])
    return CONTESTANTS[name](vae.NETWORKS[network], x, batch_size)


def _peak(name: str, network: str, batch_size: int, num_images: int) -> float:
    contestant(name, network, batch_size, num_images)(1, 0)
    # Not getrusage, whose maximum a process inherits from the one that started it.
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024


def peak_memory(*case: Any) -> float:
    """Peak resident memory of a run of one epoch in a process of its own, in MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, case)


def run_case(network: str, batch_size: int, num_images: int, rounds: int) -> dict[str, Any]:
    """Seconds an epoch of all, ratios to the loop by hand round by round, and what they cost."""
    make = functools.partial(
        contestant, network=network, batch_size=batch_size, num_images=num_images
    )
    runs = {name: make(name) for name in CONTESTANTS}
    first, losses = {}, {}
    for name, run in runs.items():
        first[name], _, found = measure.clock(lambda: run(EPOCHS, 0))  # noqa: B023
        losses[name] = float(found[-(num_images // batch_size) :].mean()) / num_images
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name, run in runs.items():
            short = measure.clock(lambda: run(1, index))[0]  # noqa: B023
            long = measure.clock(lambda: run(EPOCHS, index))[0]  # noqa: B023
            seconds[name].append((long - short) / (EPOCHS - 1))
    return {
        "network": network,
        "batch_size": batch_size,
        "num_images": num_images,
        "seconds_per_epoch": {name: measure.spread(values) for name, values in seconds.items()},
        "ratio_to_hand": {
            name: measure.ratio(values, seconds["by hand"]) for name, values in seconds.items()
        },
        "first_run_s": first,
        "peak_mib": {
            name: peak_memory(name, network, batch_size, num_images) for name in CONTESTANTS
        },
        "last_epoch_loss_per_image": losses,
    }


def table(cases: list[dict[str, Any]]) -> str:
    lines = [
        "| network | batch | | s per epoch [quartiles] | x by hand [quartiles] | peak MiB "
        "| loss per image after 3 epochs |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for case in cases:
        for name, time in case["seconds_per_epoch"].items():
            ratio = case["ratio_to_hand"][name]
            lines.append(
                f"| {case['network']} | {case['batch_size']} | {name} "
                f"| {time['median']:.2f} [{time['q1']:.2f}, {time['q3']:.2f}] "
                f"| {ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}] "
                f"| {case['peak_mib'][name]:.0f} "
                f"| {case['last_epoch_loss_per_image'][name]:.1f} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=list(vae.NETWORKS), default="200")
    parser.add_argument("--batch-size", action="append", type=int, help="repeatable")
    parser.add_argument("--num-images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; the table goes beside it")
    options = parser.parse_args(arguments)
    cases = [
        run_case(options.network, size, options.num_images, options.rounds)
        for size in options.batch_size or BATCH_SIZES
    ]
    print(table(cases))
    if options.out:
        results = {"environment": measure.environment(*PACKAGES), "cases": cases}
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(cases) + "\n")


if __name__ == "__main__":
    main()
