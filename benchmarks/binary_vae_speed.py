"""Time of a training step of the binary autoencoders against the same step written by hand.

``python -m benchmarks.binary_vae_speed``
"""

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax

import bbvi
from benchmarks import measure
from benchmarks.binary_vae import Run, State, batches, start, train
from models import binary_vae


@functools.partial(jax.jit, static_argnames="run")
def train_by_hand(
    run: Run, state: State, images: jax.Array, mean: jax.Array, epoch: jax.Array
) -> State:
    """The same with leave-one-out for one layer of latents, in plain JAX."""
    network = binary_vae.NETWORKS[run.network]
    (decoder,), num_samples = network.log_joint.decoders, run.estimator.num_samples

    def step(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, None]:
        key, pixels = inputs
        x = {"pixels": pixels.astype(mean.dtype), "mean": mean}
        phi, theta = state.params
        logits, pullback = jax.vjp(lambda p: network.encoder.apply(p, x)["z1"]["logits"], phi)
        # Uniforms [S, N, 200] as the library draws them, so that both take the very same steps.
        uniforms = run.problem(run.batch_size).base_noise(key, num_samples)[1]["z1"]
        b = (uniforms < jax.nn.sigmoid(logits)).astype(mean.dtype)

        def loss(theta: Any) -> tuple[jax.Array, jax.Array]:
            outputs = decoder.apply(theta["decoders"][0], b)
            log_p = jnp.sum(x["pixels"] * outputs - jax.nn.softplus(outputs), axis=-1)
            prior = theta["prior"]
            log_p += jnp.sum(b * prior - jax.nn.softplus(prior), axis=-1)
            return -jnp.sum(log_p) / num_samples, log_p

        theta_grads, log_p = jax.grad(loss, has_aux=True)(theta)
        signal = log_p - jnp.sum(b * logits - jax.nn.softplus(logits), axis=-1)
        signal = (signal - signal.mean(axis=0)) / (num_samples - 1)
        scores = b - jax.nn.sigmoid(logits)
        (phi_grads,) = pullback(-jnp.einsum("sn,snd->nd", signal, scores))
        grads = bbvi.Params(phi_grads, theta_grads)
        updates, opt_state = run.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, state.estimator_state), None

    order, draws = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), epoch))
    keys = jax.random.split(draws, run.steps_per_epoch)
    with jax.numpy_rank_promotion("allow"):
        return jax.lax.scan(step, state, (keys, batches(run, order, images)))[0]


def time_step(network: str, num_samples: int, steps: int = 50, rounds: int = 7) -> dict[str, Any]:
    """Milliseconds per leave-one-out step of both, and their ratio round by round."""
    estimator = bbvi.ScoreFunction(num_samples, signal="component")
    run = Run("leave-one-out", estimator, network, num_images=100 * steps)
    images = jnp.asarray(binary_vae.images("train")[: run.num_images])
    arguments = (images, jnp.asarray(binary_vae.train_mean()), jnp.int32(0))
    spent: dict[str, list[float]] = {"bbvi": [], "by hand": []}
    programs = {
        "bbvi": train.lower(run, start(run), *arguments).compile(),
        "by hand": train_by_hand.lower(run, start(run), *arguments).compile(),
    }
    for _ in range(rounds + 1):
        for kind, program in programs.items():
            state = start(run)
            _, cpu, _ = measure.clock(
                lambda: jax.block_until_ready(program(state, *arguments))  # noqa: B023
            )
            spent[kind].append(1e3 * cpu / steps)
    timed = {kind: values[1:] for kind, values in spent.items()}  # the first round warms up
    return {
        "network": network,
        "num_samples": num_samples,
        "cpu_ms_per_step": {k: statistics.median(values) for k, values in timed.items()},
        "ratio": measure.ratio(timed["bbvi"], timed["by hand"]),
    }


def main() -> None:
    for network in ("linear", "nonlinear"):
        for num_samples in (2, 4):
            print(time_step(network, num_samples), flush=True)


if __name__ == "__main__":
    main()
