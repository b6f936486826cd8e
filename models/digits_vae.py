"""A variational autoencoder of handwritten digits with ten binary latents, exact by enumeration.

Small enough that the ELBO, log p(x) and their gradients are sums over the 1024 values of the
latents of a datum, so that estimators of the gradient can be measured against the truth, along a
run that none of them has a part in (`reference_run`).
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bbvi
from models.registry import Target, register

NUM_IMAGES = 300
NUM_LATENTS = 10
NUM_PIXELS = 64
ENCODER_SCALE, DECODER_SCALE = 0.05, 0.1  # of the starting weights
LEARNING_RATE = 0.012
CHECKPOINTS = (0, 50, 1000)


def log_bernoulli(outcomes, logits):
    """Log probabilities of outcomes 0 or 1; linear in the outcomes, so defined between them."""
    return outcomes * logits - jax.nn.softplus(logits)


def log_joint(x, z, theta):
    r"""Independent binary latents and, given them, independent pixels.

    .. math:: \sum_n \log p(z_n) + \log p(x_n \mid z_n), \quad
      z_{ni} \sim \mathrm{Bernoulli}(\sigma(\pi_i)), \quad
      x_{nd} \sim \mathrm{Bernoulli}(\sigma(c_d + z_n^\top w_d))

    Args:
        x: pixels (N, 64), zero or one.
        z: `z` (N, 10), zero or one.
        theta: `prior` (10,), `weights` (10, 64), `bias` (64,).
    """
    b = z["z"].astype(x.dtype)
    logits = theta["bias"][None, :] + b @ theta["weights"]
    return log_bernoulli(b, theta["prior"][None, :]).sum() + log_bernoulli(x, logits).sum()


def data(num_images=NUM_IMAGES):
    """Returns binary digits (N, 64) in random order: pixels with half ink or more are one."""
    from sklearn import datasets

    ink = datasets.load_digits().data
    order = np.random.default_rng(0).permutation(len(ink))
    return jnp.asarray((ink[order[:num_images]] >= 8.0).astype(float))


def encoder():
    """Returns the linear network from pixels to the logits of the latents."""
    return nn.Dense(NUM_LATENTS, kernel_init=_encoder_weights)


def _encoder_weights(key, shape, dtype):
    del key  # the run is a reference: its start is always the same
    return jnp.asarray(_starting_weights()[0].reshape(shape), dtype)


def _starting_weights():
    scales = np.array([[ENCODER_SCALE], [DECODER_SCALE]])
    return scales * np.random.default_rng(0).normal(size=(2, NUM_LATENTS * NUM_PIXELS))


def amortized(num_images=NUM_IMAGES):
    """Returns the guide of the autoencoder."""
    return bbvi.Amortized({"z": bbvi.Bernoulli((num_images, NUM_LATENTS))}, encoder())


def mean_field(num_images=NUM_IMAGES):
    """Returns a guide with free logits for every image."""
    return bbvi.MeanField({"z": bbvi.Bernoulli((num_images, NUM_LATENTS))})


def model_params():
    """Returns small random weights, an even prior, and biases that fit the mean image."""
    mean = np.clip(np.asarray(data()).mean(axis=0), 0.01, 0.99)
    return {
        "prior": jnp.zeros(NUM_LATENTS),
        "weights": jnp.asarray(_starting_weights()[1].reshape(NUM_LATENTS, NUM_PIXELS)),
        "bias": jnp.asarray(np.log(mean / (1.0 - mean))),
    }


def all_values(num_latents=NUM_LATENTS):
    """Returns every value of the latents of one image (2^L, L), zero or one."""
    return np.array(list(itertools.product([0, 1], repeat=num_latents)))


def log_joints(x, theta):
    """Returns log p(x_n, z) for every image and value of its latents (N, 1024)."""
    values = jnp.asarray(all_values(len(theta["prior"])), x.dtype)
    log_prior = log_bernoulli(values, theta["prior"][None, :]).sum(axis=1)
    logits = theta["bias"][None, :] + values @ theta["weights"]
    return (log_prior - jax.nn.softplus(logits).sum(axis=1))[None, :] + x @ logits.T


def elbos(x, logits, theta):
    """Returns the exact ELBO of each image (N,), with q of these logits (N, 10)."""
    values = jnp.asarray(all_values(logits.shape[1]), x.dtype)
    log_q = logits @ values.T - jax.nn.softplus(logits).sum(axis=1, keepdims=True)
    return (jnp.exp(log_q) * (log_joints(x, theta) - log_q)).sum(axis=1)


def log_evidences(x, theta):
    """Returns the exact log p(x_n) of each image (N,)."""
    return jax.nn.logsumexp(log_joints(x, theta), axis=1)


def mean_elbo(params, x):
    """Returns the exact ELBO per image of the autoencoder."""
    return elbos(x, encoder().apply(params.guide, x), params.model).mean()


@functools.cache
def reference_run():
    """Trains the autoencoder by exact gradients, in float32.

    Adam at a constant rate on minus the ELBO per image: no noise, hence the same run for all who
    measure on it.

    Returns:
        Parameters (`bbvi.Params`) by the number of steps taken, at `CHECKPOINTS`.
    """
    with jax.enable_x64(False):  # noqa: FBT003
        x = data()
        start = bbvi.Params(amortized().init(jax.random.key(0), x), model_params())
        optimizer = optax.adam(LEARNING_RATE)

        def step(_, carry):
            params, state = carry
            grads = jax.grad(lambda params: -mean_elbo(params, x))(params)
            updates, state = optimizer.update(grads, state)
            return optax.apply_updates(params, updates), state

        @jax.jit
        def run(carry, num_steps):
            return jax.lax.fori_loop(0, num_steps, step, carry)

        carry, found, done = (start, optimizer.init(start)), {}, 0
        for checkpoint in CHECKPOINTS:
            carry = run(carry, checkpoint - done)
            found[checkpoint], done = carry[0], checkpoint
        return found


register(
    Target(
        name="digits_vae",
        log_joint=log_joint,
        data=data,
        guides={"amortized": amortized, "mean_field": mean_field},
        model_params=model_params,
        source="Model: Kingma and Welling (2014), Auto-Encoding Variational Bayes, with the binary "
        "latents of Neal (1992), Connectionist Learning of Belief Networks. Data: Alpaydin and "
        "Kaynak (1998), Optical Recognition of Handwritten Digits, as shipped with scikit-learn.",
    )
)
