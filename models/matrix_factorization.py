"""Probabilistic matrix factorization of a table of which a few entries are observed."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Target, register

NUM_USERS = 8
NUM_ITEMS = 10
RANK = 2


def log_joint(x, z):
    r"""Ratings are inner products of a user's and an item's factors, plus a bias of the user.

    .. math:: \log p(z) + \sum_n \log N(y_n; u_{i(n)}^\top v_{j(n)} + b_{i(n)}, \tfrac12)

    All latents have standard Gaussian priors.

    Args:
        x: `user` i (N,) and `item` j (N,) of integers, `rating` y (N,).
        z: `u` (U, R), `v` (I, R) and `bias` (U,).
    """
    products = (z["u"][x["user"]] * z["v"][x["item"]]).sum(axis=1)
    log_prior = sum(norm.logpdf(latent).sum() for latent in z.values())
    return log_prior + norm.logpdf(x["rating"], products + z["bias"][x["user"]], 0.5).sum()


def data(num_users=NUM_USERS, num_items=NUM_ITEMS, rank=RANK, ratings_per_user=4):
    """Returns ratings drawn from the model; each user rates some successive items."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(num_users, rank)), rng.normal(size=(num_items, rank))
    bias = rng.normal(size=num_users)
    user = np.repeat(np.arange(num_users), ratings_per_user)
    first = rng.integers(num_items, size=(num_users, 1))
    item = ((first + np.arange(ratings_per_user)) % num_items).reshape(-1)
    mean = (u[user] * v[item]).sum(axis=1) + bias[user]
    x = {
        "user": user.astype(np.int32),
        "item": item.astype(np.int32),
        "rating": rng.normal(mean, 0.5),
    }
    return jax.tree.map(jnp.asarray, x)


def mean_field(num_users=NUM_USERS, num_items=NUM_ITEMS, rank=RANK):
    """Returns an independent Gaussian guide."""
    return bbvi.MeanField(
        {
            "u": bbvi.Normal((num_users, rank)),
            "v": bbvi.Normal((num_items, rank)),
            "bias": bbvi.Normal((num_users,)),
        }
    )


def interactions(x, num_users=NUM_USERS, num_items=NUM_ITEMS, rank=RANK):
    """All that a rating reads interacts: the factors of its user and item, and the bias."""
    rated = np.zeros((num_users, num_items), bool)
    rated[np.asarray(x["user"]), np.asarray(x["item"])] = True
    users, items = np.eye(num_users, dtype=bool), np.eye(num_items, dtype=bool)
    rating_users = users & rated.any(axis=1)
    rated_items = items & rated.any(axis=0)
    square, row = np.ones((rank, rank), bool), np.ones((1, rank), bool)
    return {
        ("bias", "bias"): users,
        ("bias", "u"): np.kron(rating_users, row),
        ("bias", "v"): np.kron(rated, row),
        ("u", "u"): np.kron(rating_users, square) | np.eye(num_users * rank, dtype=bool),
        ("u", "v"): np.kron(rated, square),
        ("v", "v"): np.kron(rated_items, square) | np.eye(num_items * rank, dtype=bool),
    }


register(
    Target(
        name="matrix_factorization",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        interactions=interactions,
        source="Model: Salakhutdinov and Mnih (2008), Probabilistic Matrix Factorization. Data: "
        "simulated.",
    )
)
