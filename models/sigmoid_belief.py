"""A sigmoid belief network of handwritten digits, with weights known, latent or learned."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import bernoulli, norm

import bbvi
from models.registry import Target, register

NUM_IMAGES = 6
NUM_HIDDEN = (4, 3)
NUM_PIXELS = 16
NUM_UNITS = 32  # of the network in the amortized guide


def _log_bernoulli(outcomes, logits):
    return (outcomes * logits - jax.nn.softplus(logits)).sum()


def log_joint(x, z):
    r"""Two layers of binary causes above binary pixels.

    .. math:: \log p(h_2) + \log p(h_1 \mid h_2) + \log p(y \mid h_1)

    All entries are independent Bernoulli variables given the layer above, with probabilities
    :math:`\frac12`, :math:`\sigma(h_2 W_2)` and :math:`\sigma(h_1 W_1)`.

    Args:
        x: `pixels` y (N, D), zero or one, and weights `w1` (H1, D) and `w2` (H2, H1).
        z: `h1` (N, H1) and `h2` (N, H2) of integers, zero or one.
    """
    dtype = x["pixels"].dtype
    h1, h2 = z["h1"].astype(dtype), z["h2"].astype(dtype)
    log_top = bernoulli.logpmf(h2, 0.5).sum()
    log_hidden = _log_bernoulli(h1, h2 @ x["w2"])
    return log_top + log_hidden + _log_bernoulli(x["pixels"], h1 @ x["w1"])


def log_joint_weights(x, z):
    """The same with weights as latents, under standard Gaussian priors.

    Args:
        x: `pixels` (N, D), zero or one.
        z: `h1` (N, H1) and `h2` (N, H2) of integers, zero or one; `w1` (H1, D) and `w2` (H2, H1).
    """
    log_prior = norm.logpdf(z["w1"]).sum() + norm.logpdf(z["w2"]).sum()
    return log_prior + log_joint(x | {"w1": z["w1"], "w2": z["w2"]}, z)


def log_joint_learned(x, z, theta):
    """The same with weights as parameters: x is `pixels` (N, D), theta are `w1` and `w2`."""
    return log_joint(x | theta, z)


def data_weights(num_images=NUM_IMAGES):
    """Returns digits of 4 x 4 pixels: means of blocks of the 8 x 8 originals, cut at half ink.

    For more than 1797 images they are repeated.
    """
    from sklearn import datasets

    ink = datasets.load_digits().images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
    pixels = (ink > 8.0).astype(float).reshape(-1, NUM_PIXELS)
    return {"pixels": jnp.asarray(np.resize(pixels, (num_images, NUM_PIXELS)))}


def model_params(num_hidden=NUM_HIDDEN):
    """Returns weights drawn from their prior."""
    rng = np.random.default_rng(0)
    return {
        "w1": jnp.asarray(rng.normal(size=(num_hidden[0], NUM_PIXELS))),
        "w2": jnp.asarray(rng.normal(size=(num_hidden[1], num_hidden[0]))),
    }


def data(num_images=NUM_IMAGES, num_hidden=NUM_HIDDEN):
    """Returns the same digits, and weights drawn from their prior."""
    return data_weights(num_images) | model_params(num_hidden)


def _causes(num_images, num_hidden):
    return {
        "h1": bbvi.Bernoulli((num_images, num_hidden[0])),
        "h2": bbvi.Bernoulli((num_images, num_hidden[1])),
    }


def _weights(num_hidden):
    return {
        "w1": bbvi.Normal((num_hidden[0], NUM_PIXELS)),
        "w2": bbvi.Normal((num_hidden[1], num_hidden[0])),
    }


def mean_field(num_images=NUM_IMAGES, num_hidden=NUM_HIDDEN):
    """Returns an independent Bernoulli guide."""
    return bbvi.MeanField(_causes(num_images, num_hidden))


def mean_field_weights(num_images=NUM_IMAGES, num_hidden=NUM_HIDDEN):
    """Returns an independent Bernoulli and Gaussian guide."""
    return bbvi.MeanField(_causes(num_images, num_hidden) | _weights(num_hidden))


class Encoder(nn.Module):
    """Logits of both layers from the pixels, by way of a hidden layer."""

    num_hidden: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        hidden = nn.tanh(nn.Dense(NUM_UNITS)(x["pixels"]))
        heads = zip(("h1", "h2"), self.num_hidden, strict=True)
        return {name: {"logits": nn.Dense(size, name=name)(hidden)} for name, size in heads}


def amortized(num_images=NUM_IMAGES, num_hidden=NUM_HIDDEN):
    """Returns a Bernoulli guide whose logits a network computes, for batches of images."""
    return bbvi.Amortized(_causes(num_images, num_hidden), Encoder(num_hidden))


def amortized_weights(num_images=NUM_IMAGES, num_hidden=NUM_HIDDEN):
    """Returns the same for the causes beside an independent Gaussian one for the weights."""
    shared = bbvi.MeanField(_weights(num_hidden))
    return bbvi.Product(shared, amortized(num_images, num_hidden))


def interactions(x, num_hidden=NUM_HIDDEN):
    """The causes of one image interact: children with parents, and parents of a common child."""
    image1, _ = np.indices((x["pixels"].shape[0], num_hidden[0])).reshape(2, -1)
    image2, _ = np.indices((x["pixels"].shape[0], num_hidden[1])).reshape(2, -1)
    return {
        ("h1", "h1"): image1[:, None] == image1,
        ("h1", "h2"): image1[:, None] == image2,
        ("h2", "h2"): image2[:, None] == image2,
    }


def interactions_weights(x, num_hidden=NUM_HIDDEN):
    """A weight interacts with the weights into the same child, and with that child's terms.

    Pixel d of image n reads all of h1[n] and column d of w1; h1[n, j] reads all of h2[n] and
    column j of w2. So h1[n, j] meets all of w1, but of w2 only its own column.
    """
    num_images, num_pixels = x["pixels"].shape
    _, unit1 = np.indices((num_images, num_hidden[0])).reshape(2, -1)
    _, child1 = np.indices((num_hidden[0], num_pixels)).reshape(2, -1)
    _, child2 = np.indices((num_hidden[1], num_hidden[0])).reshape(2, -1)
    return interactions(x, num_hidden) | {
        ("h1", "w1"): np.ones((unit1.size, child1.size), bool),
        ("h1", "w2"): unit1[:, None] == child2,
        ("h2", "w2"): np.ones((num_images * num_hidden[1], child2.size), bool),
        ("w1", "w1"): child1[:, None] == child1,
        ("w2", "w2"): child2[:, None] == child2,
    }


_SOURCE = (
    "Model: Neal (1992), Connectionist Learning of Belief Networks. Data: Alpaydin and Kaynak "
    "(1998), Optical Recognition of Handwritten Digits, as shipped with scikit-learn."
)

register(
    Target(
        name="sigmoid_belief",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field, "amortized": amortized},
        interactions=interactions,
        source=_SOURCE,
    )
)
register(
    Target(
        name="sigmoid_belief_weights",
        log_joint=log_joint_weights,
        data=data_weights,
        guides={"mean_field": mean_field_weights, "amortized": amortized_weights},
        interactions=interactions_weights,
        source=_SOURCE,
    )
)
register(
    Target(
        name="sigmoid_belief_learned",
        log_joint=log_joint_learned,
        data=data_weights,
        guides={"mean_field": mean_field, "amortized": amortized},
        model_params=model_params,
        source=_SOURCE,
    )
)
