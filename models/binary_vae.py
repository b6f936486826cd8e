"""Variational autoencoders with 200 binary latents per layer on static binarized MNIST.

The networks, and where they follow which published code:

- `linear`: one affine layer each way, on pixels less their mean and on latents as -1 and 1, as
  in the experiments of REBAR and RELAX;
- `linear_2`: two layers of latents. Those papers draw the second layer of q given the first; here
  each layer of q depends on the pixels alone, a smaller family, so that bounds are not comparable;
- `nonlinear`: two hidden layers of 200 leaky rectifiers each way, on pixels and latents as they
  are, as in the experiments of DisARM, Double CV and RODEO.

Prior logits are learned and start at zero, weights start as Glorot and Bengio propose.
"""

import dataclasses
import functools
import hashlib
import io
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import bbvi
from models.digits_vae import log_bernoulli
from models.registry import Target, register

NUM_LATENTS = 200
NUM_PIXELS = 784
BATCH_SIZE = 100
SLOPE = 0.3  # of the leaky rectifiers, below zero
SHA256 = "50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5"


@dataclasses.dataclass(frozen=True)
class LogJoint:
    r"""Layers of binary latents above binary pixels: a function of x, z and theta.

    .. math:: \log p(z_L) + \sum_{l < L} \log p(z_l \mid z_{l+1}) + \log p(x \mid z_1)

    All units of a layer are independent Bernoulli variables given the layer above. x has `pixels`
    (N, 784), z has `z1` (N, 200) to `zL`, theta `prior` (200,) and the parameters of `decoders`.

    Attributes:
        decoders: Networks from latents to the logits of the layer below, from the pixels up.
    """

    decoders: tuple[nn.Module, ...]

    def __call__(self, x, z, theta):
        dtype = x["pixels"].dtype
        layers = [z[f"z{i + 1}"].astype(dtype) for i in range(len(self.decoders))]
        total = log_bernoulli(layers[-1], theta["prior"][None, :]).sum()
        below = [x["pixels"], *layers[:-1]]
        for network, params, child, parent in zip(
            self.decoders, theta["decoders"], below, layers, strict=True
        ):
            total += log_bernoulli(child, network.apply(params, parent)).sum()
        return total


def _dense(size, **options):
    return nn.Dense(size, kernel_init=nn.initializers.glorot_uniform(), **options)


class LinearEncoder(nn.Module):
    """Logits of every layer from centred pixels."""

    num_layers: int = 1

    @nn.compact
    def __call__(self, x):
        centred = x["pixels"] - x["mean"][None, :]
        names = [f"z{i + 1}" for i in range(self.num_layers)]
        return {name: {"logits": _dense(NUM_LATENTS, name=name)(centred)} for name in names}


class LinearDecoder(nn.Module):
    """Logits of the layer below from latents as -1 and 1."""

    size: int

    @nn.compact
    def __call__(self, b):
        return _dense(self.size)(2.0 * b - 1.0)


class Hidden(nn.Module):
    """Logits by way of two hidden layers."""

    size: int

    @nn.compact
    def __call__(self, inputs):
        for _ in range(2):
            inputs = nn.leaky_relu(_dense(NUM_LATENTS)(inputs), SLOPE)
        return _dense(self.size)(inputs)


class NonlinearEncoder(nn.Module):
    """Logits of the one layer from pixels."""

    @nn.compact
    def __call__(self, x):
        return {"z1": {"logits": Hidden(NUM_LATENTS)(x["pixels"])}}


@dataclasses.dataclass(frozen=True)
class Network:
    """An autoencoder: the log joint with its encoder."""

    log_joint: LogJoint
    encoder: nn.Module

    def guide(self, batch_size=BATCH_SIZE):
        """Returns the amortized guide for a batch of this size."""
        names = [f"z{i + 1}" for i in range(len(self.log_joint.decoders))]
        sites = {name: bbvi.Bernoulli((batch_size, NUM_LATENTS)) for name in names}
        return bbvi.Amortized(sites, self.encoder)

    def model_params(self, seed=0):
        """Returns theta to start from: an even prior, and random weights.

        Linear decoders start with the log odds of the mean image as their biases.
        """
        keys = jax.random.split(jax.random.key(seed), len(self.log_joint.decoders))
        decoders = [
            network.init(key, jnp.zeros((1, NUM_LATENTS)))
            for network, key in zip(self.log_joint.decoders, keys, strict=True)
        ]
        if isinstance(self.log_joint.decoders[0], LinearDecoder):
            mean = np.clip(train_mean(), 0.001, 0.999)
            decoders[0]["params"]["Dense_0"]["bias"] = jnp.asarray(np.log(mean / (1.0 - mean)))
        return {"prior": jnp.zeros(NUM_LATENTS), "decoders": tuple(decoders)}


NETWORKS = {
    "linear": Network(LogJoint((LinearDecoder(NUM_PIXELS),)), LinearEncoder()),
    "linear_2": Network(
        LogJoint((LinearDecoder(NUM_PIXELS), LinearDecoder(NUM_LATENTS))), LinearEncoder(2)
    ),
    "nonlinear": Network(LogJoint((Hidden(NUM_PIXELS),)), NonlinearEncoder()),
}


def images(split):
    """Returns the pixels of a split as unsigned bytes, zero or one.

    Args:
        split: "train" (50,000 images), "valid" or "test" (10,000 each).
    """
    return np.unpackbits(_packed()[split], axis=1)


@functools.cache
def _packed():
    stored = (pathlib.Path(__file__).parent / "data" / "mnist_static_binarized.npz").read_bytes()
    found = hashlib.sha256(stored).hexdigest()
    if found != SHA256:
        raise ValueError(f"mnist_static_binarized.npz has SHA-256 {found}, expected {SHA256}.")
    with np.load(io.BytesIO(stored)) as arrays:
        return dict(arrays)


@functools.cache
def train_mean():
    """Returns the mean training image (784,)."""
    return images("train").mean(axis=0)


def batch(pixels):
    """Returns pixels (N, 784) of any dtype as the data of a log joint."""
    return {"pixels": jnp.asarray(pixels, float), "mean": jnp.asarray(train_mean())}


def data(batch_size=BATCH_SIZE):
    """Returns the first training images."""
    return batch(images("train")[:batch_size])


for _name, _network in NETWORKS.items():
    register(
        Target(
            name=f"binary_vae_{_name}",
            log_joint=_network.log_joint,
            data=data,
            guides={"amortized": _network.guide},
            model_params=_network.model_params,
            source="Model: Mnih and Gregor (2014), Neural Variational Inference and Learning in "
            "Belief Networks. Data: Salakhutdinov and Murray (2008), On the Quantitative Analysis "
            "of Deep Belief Networks, in the split of Larochelle and Murray (2011).",
        )
    )
