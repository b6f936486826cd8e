"""A stochastic block model of Zachary's karate club: which of 34 members belong together?"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Target, register

NUM_BLOCKS = 2
NUM_MEMBERS = 34

# The friends of each member who come after it, counted from one: 78 pairs.
FRIENDS = {
    1: (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 18, 20, 22, 32),
    2: (3, 4, 8, 14, 18, 20, 22, 31),
    3: (4, 8, 9, 10, 14, 28, 29, 33),
    4: (8, 13, 14),
    5: (7, 11),
    6: (7, 11, 17),
    7: (17,),
    9: (31, 33, 34),
    10: (34,),
    14: (34,),
    15: (33, 34),
    16: (33, 34),
    19: (33, 34),
    20: (34,),
    21: (33, 34),
    23: (33, 34),
    24: (26, 28, 30, 33, 34),
    25: (26, 28, 32),
    26: (32,),
    27: (30, 34),
    28: (34,),
    29: (32, 34),
    30: (33, 34),
    31: (33, 34),
    32: (33, 34),
    33: (34,),
}


def log_joint(x, z):
    r"""Two members are friends with a probability that depends on their blocks alone.

    .. math:: \log p(b) - N \log K
              + \sum_n \log \mathrm{Bernoulli}(y_n; \sigma(l_{c_{i(n)} c_{j(n)}}))

    Friendship has no direction: the logits are :math:`l = (b + b^\top) / 2`. The entries of b have
    N(0, 2) priors, and blocks are equally likely.

    Args:
        x: pairs `first` i (P,) and `second` j (P,) of integers, `friends` y (P,), zero or one.
        z: blocks `c` (N,) of integers in 0..K-1 and `b` (K, K).
    """
    c, b = z["c"], z["b"]
    logits = (0.5 * (b + b.T))[c[x["first"]], c[x["second"]]]
    log_prior = norm.logpdf(b, 0.0, 2.0).sum() - c.size * jnp.log(b.shape[0])
    return log_prior + (x["friends"] * logits - jax.nn.softplus(logits)).sum()


def data():
    """Returns all 561 pairs of members, of which 78 are friends."""
    first, second = np.triu_indices(NUM_MEMBERS, 1)
    friends = [j + 1 in FRIENDS.get(i + 1, ()) for i, j in zip(first, second, strict=True)]
    return _pairs(first, second, friends)


def simulate(num_members, num_pairs):
    """Returns random pairs of members of two equal blocks: friends if in the same, mostly."""
    rng = np.random.default_rng(0)
    first = rng.integers(num_members, size=num_pairs)
    second = (first + rng.integers(1, num_members, size=num_pairs)) % num_members
    same_block = first % 2 == second % 2
    return _pairs(first, second, rng.random(num_pairs) < np.where(same_block, 0.8, 0.1))


def _pairs(first, second, friends):
    return {
        "first": jnp.asarray(first, jnp.int32),
        "second": jnp.asarray(second, jnp.int32),
        "friends": jnp.asarray(friends, float),
    }


def mean_field(num_members=NUM_MEMBERS, num_blocks=NUM_BLOCKS):
    """Returns an independent categorical and Gaussian guide."""
    return bbvi.MeanField(
        {
            "c": bbvi.Categorical(num_blocks, (num_members,)),
            "b": bbvi.Normal((num_blocks, num_blocks)),
        }
    )


def interactions(x, num_members=NUM_MEMBERS, num_blocks=NUM_BLOCKS):
    """Members interact if their pair is recorded, friends or not; each with all of b it may select.

    Of b, an entry and its transpose make one logit, and no logits share a term.
    """
    recorded = np.zeros((num_members, num_members), bool)
    recorded[np.asarray(x["first"]), np.asarray(x["second"])] = True
    recorded |= recorded.T
    row, column = np.indices((num_blocks, num_blocks)).reshape(2, -1)
    transposed = (row[:, None] == column) & (column[:, None] == row)
    return {
        ("b", "b"): transposed | np.eye(row.size, dtype=bool),
        ("b", "c"): np.tile(recorded.any(axis=0), (row.size, 1)),
        ("c", "c"): recorded | np.eye(num_members, dtype=bool),
    }


register(
    Target(
        name="karate_club",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        interactions=interactions,
        source="Data: Zachary (1977), An Information Flow Model for Conflict and Fission in Small "
        "Groups, matrix E. Model: Holland, Laskey and Leinhardt (1983), Stochastic Blockmodels.",
    )
)
