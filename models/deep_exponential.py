"""A Poisson deep exponential family of handwritten digits: two gamma layers under gamma weights."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import gamma, poisson

import bbvi
from models.registry import Target, register

NUM_IMAGES = 5
NUM_FACTORS = (3, 2)
NUM_PIXELS = 16
SHAPE = 0.5  # Of all gamma distributions: below one, so that most draws are near zero.


def log_joint(x, z):
    r"""Counts with Poisson rates from a gamma layer, whose means come from another.

    .. math:: \log p(W) + \log p(z_2) + \log \mathrm{Gamma}(z_1; a, a / (z_2 W_2))
              + \log \mathrm{Poisson}(y; z_1 W_1)

    Weights and top layer have Gamma(a, a) priors, with mean one.

    Args:
        x: `counts` y (N, D).
        z: positive layers `z1` (N, K1) and `z2` (N, K2), and weights `w1` (K1, D), `w2` (K2, K1).
    """
    roots = (z["w1"], z["w2"], z["z2"])
    log_prior = sum(gamma.logpdf(root, SHAPE, scale=1.0 / SHAPE).sum() for root in roots)
    log_hidden = gamma.logpdf(z["z1"], SHAPE, scale=z["z2"] @ z["w2"] / SHAPE).sum()
    return log_prior + log_hidden + poisson.logpmf(x["counts"], z["z1"] @ z["w1"]).sum()


def data(num_images=NUM_IMAGES):
    """Returns the ink of digits in 4 x 4 blocks, from 0 to 64.

    For more than 1797 images they are repeated.
    """
    from sklearn import datasets

    ink = datasets.load_digits().images.reshape(-1, 4, 2, 4, 2).sum(axis=(2, 4))
    counts = np.resize(ink.reshape(-1, NUM_PIXELS), (num_images, NUM_PIXELS))
    return {"counts": jnp.asarray(counts)}


def mean_field(num_images=NUM_IMAGES, num_factors=NUM_FACTORS):
    """Returns an independent gamma guide."""
    return bbvi.MeanField(
        {
            "z1": bbvi.Gamma((num_images, num_factors[0])),
            "z2": bbvi.Gamma((num_images, num_factors[1])),
            "w1": bbvi.Gamma((num_factors[0], NUM_PIXELS)),
            "w2": bbvi.Gamma((num_factors[1], num_factors[0])),
        }
    )


def interactions(x, num_factors=NUM_FACTORS):
    r"""Entries interact if one rate or mean reads both; but a count of zero is additive.

    A count is :math:`y_{nd} \log \sum_k z_{nk} w_{kd} - \sum_k z_{nk} w_{kd}`. Where it is zero
    only the second sum is left, in which factor k of z1 meets factor k of w1 and nothing else.
    """
    seen = np.asarray(x["counts"]) > 0.0
    num_images, num_pixels = seen.shape
    image1, factor1 = np.indices((num_images, num_factors[0])).reshape(2, -1)
    image2, _ = np.indices((num_images, num_factors[1])).reshape(2, -1)
    row1, pixel = np.indices((num_factors[0], num_pixels)).reshape(2, -1)
    _, child = np.indices((num_factors[1], num_factors[0])).reshape(2, -1)
    return {
        ("w1", "w1"): (pixel[:, None] == pixel)
        & ((row1[:, None] == row1) | seen.any(axis=0)[pixel]),
        ("w1", "z1"): (row1[:, None] == factor1) | seen.T[pixel][:, image1],
        ("w2", "w2"): child[:, None] == child,
        ("w2", "z1"): child[:, None] == factor1,
        ("w2", "z2"): np.ones((child.size, image2.size), bool),
        ("z1", "z1"): (image1[:, None] == image1)
        & ((factor1[:, None] == factor1) | seen.any(axis=1)[image1]),
        ("z1", "z2"): image1[:, None] == image2,
        ("z2", "z2"): image2[:, None] == image2,
    }


register(
    Target(
        name="deep_exponential",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        interactions=interactions,
        source="Model: Ranganath, Tang, Charlin and Blei (2015), Deep Exponential Families. Data: "
        "Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, as shipped with "
        "scikit-learn.",
    )
)
