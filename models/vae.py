"""Variational autoencoders with one layer of Gaussian latents on static binarized MNIST.

Fitted with the ELBO they are those of Kingma and Welling, with `bbvi.Iwae(K)` the
importance-weighted ones of Burda, Grosse and Salakhutdinov:

    vae, x = NETWORKS["200"], images("train")
    result = bbvi.fit(
        *(vae.log_joint, vae.guide(len(x)), x),
        model_params=vae.model_params(),
        optimizer=optax.adam(1e-3),
        batch_size=100,
        num_epochs=50,
    )
    result.at(images("test")).log_evidence(key, 5000).value / 10_000  # nats per image

- `200`: 50 latents and two layers of 200 hyperbolic tangents each way, as Burda, Grosse and
  Salakhutdinov have them; biases of the pixels start at the log odds of the mean image;
- `512`: 128 latents and two layers of 512 rectifiers each way; biases start at zero. From the log
  odds it never leaves the saddle where the decoder ignores its latents: -206 nats.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.binary_vae import NUM_PIXELS, images, train_mean
from models.digits_vae import log_bernoulli
from models.registry import Target, register

NUM_IMAGES = 20  # of the registered data
PARAMETERS = ("loc", "log_scale")


@dataclasses.dataclass(frozen=True)
class LogJoint:
    r"""Gaussian latents and, given them, independent pixels: a function of x, z and theta.

    .. math:: \sum_n \log N(z_n; 0, I) +
      \sum_{nd} \log \mathrm{Bernoulli}(x_{nd}; \sigma(f_\theta(z_n)_d))

    x holds pixels (N, 784) of any dtype, zero or one; z has `z` (N, L); theta are the parameters
    of the decoder.

    Attributes:
        decoder: The network f from latents to logits (N, 784).
    """

    decoder: nn.Module

    def __call__(self, x, z, theta):
        logits = self.decoder.apply(theta, z["z"])
        log_likelihood = log_bernoulli(x.astype(logits.dtype), logits).sum()
        return norm.logpdf(z["z"]).sum() + log_likelihood


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """A log joint with its encoder.

    Attributes:
        log_joint: The model.
        encoder: Network from pixels to location and log scale of the latents.
        num_latents: Latents of an image.
    """

    log_joint: LogJoint
    encoder: nn.Module
    num_latents: int

    def guide(self, num_images=NUM_IMAGES):
        """Returns the amortized guide over the latents of so many images."""
        sites = {"z": bbvi.Normal((num_images, self.num_latents))}
        return bbvi.Amortized(sites, self.encoder)

    def model_params(self, seed=0):
        """Returns theta to start from."""
        init = jax.jit(self.log_joint.decoder.init)  # one program, not one for each layer
        return init(jax.random.key(seed), jnp.zeros((1, self.num_latents)))


def log_odds(key, shape, dtype):
    """Returns the log odds of the mean training image, for biases of pixels to start at."""
    del key
    mean = np.clip(train_mean(), 0.001, 0.999)
    return jnp.asarray(np.log(mean / (1.0 - mean)), dtype).reshape(shape)


def kernel_init(key, shape, dtype):
    """Returns uniform weights of variance one over the number of inputs.

    Drawn along one axis: for the four of a convolution, compiling takes seconds.
    """
    limit = math.sqrt(3.0 * shape[-1] / math.prod(shape))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


Dense = functools.partial(nn.Dense, kernel_init=kernel_init)


class Encoder(nn.Module):
    """Two hidden layers, then location and log scale."""

    num_latents: int
    num_hidden: int
    activation: Callable

    @nn.compact
    def __call__(self, x):
        hidden = x.astype(float)
        for _ in range(2):
            hidden = self.activation(Dense(self.num_hidden)(hidden))
        return {"z": {name: Dense(self.num_latents, name=name)(hidden) for name in PARAMETERS}}


class Decoder(nn.Module):
    """Logits of the pixels by way of two hidden layers."""

    num_hidden: int
    activation: Callable
    bias_init: Callable = log_odds

    @nn.compact
    def __call__(self, z):
        for _ in range(2):
            z = self.activation(Dense(self.num_hidden)(z))
        return Dense(NUM_PIXELS, bias_init=self.bias_init, name="logits")(z)


def autoencoder(num_latents, num_hidden, activation, bias_init=log_odds):
    """Returns an autoencoder with two hidden layers each way."""
    log_joint = LogJoint(Decoder(num_hidden, activation, bias_init))
    return Autoencoder(log_joint, Encoder(num_latents, num_hidden, activation), num_latents)


NETWORKS = {
    "200": autoencoder(50, 200, nn.tanh),
    "512": autoencoder(128, 512, nn.relu, nn.initializers.zeros),
}


def data(num_images=NUM_IMAGES):
    """Returns the pixels of the first training images."""
    return jnp.asarray(images("train")[:num_images], float)


for _name, _network in NETWORKS.items():
    register(
        Target(
            name=f"vae_{_name}",
            log_joint=_network.log_joint,
            data=data,
            guides={"amortized": _network.guide},
            model_params=_network.model_params,
            source="Model: Kingma and Welling (2014), Auto-Encoding Variational Bayes; Burda, "
            "Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders; with 512 units "
            "Altosaar (2016), What is a variational autoencoder? Data: Salakhutdinov and Murray "
            "(2008), On the Quantitative Analysis of Deep Belief Networks, in the split of "
            "Larochelle and Murray (2011); images of LeCun, Cortes and Burges (CC BY-SA 3.0).",
        )
    )
