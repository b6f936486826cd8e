"""Small targets with categorical latents, and their exact gradients."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bbvi


def exact_gradient(problem, params, x=None):
    """Gradient ``[P]`` of the loss at a guide of discrete sites, by enumeration of all values."""
    sites = problem.guide.sites()
    counts = [math.prod(site.block_shape) for site in sites]
    ranges = [range(s.num_values) for s, n in zip(sites, counts, strict=True) for _ in range(n)]
    parts = jnp.split(jnp.array(list(itertools.product(*ranges))), np.cumsum(counts)[:-1], axis=1)
    values = {}
    for site, part in zip(sites, parts, strict=True):
        index = part.reshape(-1, *site.block_shape)
        is_one_hot = site.event_ndims == 1
        values[site.name] = jax.nn.one_hot(index, site.num_values) if is_one_hot else index
    z = problem.guide.pack(values)

    def loss(params):
        log_q = problem.log_q(params, x, z)
        return -jnp.sum(jnp.exp(log_q) * (problem.log_p(params, x, z) - log_q))

    return ravel_pytree(jax.jit(jax.grad(loss))(params))[0]


def categorical_pair():
    """Two coupled categories of three, not factorized, with learned theta."""
    table = np.array([[0.5, -1.0, 0.2], [1.5, 0.3, -0.4], [-0.8, 0.6, 0.1]])

    def log_joint(x, z, theta):
        first, second = z["c"]
        return theta[first] + jnp.asarray(table)[first, second] - 2 * jax.nn.logsumexp(theta)

    problem = bbvi.Problem(log_joint, bbvi.MeanField({"c": bbvi.Categorical(3, (2,))}))
    logits = jnp.array([[0.4, -1.1, 0.9], [1.2, 0.1, -0.3]])
    guide = problem.guide.init(jax.random.key(0), None)._replace(families={"c": {"logits": logits}})
    return problem, bbvi.Params(guide, jnp.array([0.2, -0.5, 0.7])), None


class OneHotNetwork:
    """Logits ``[B, 2, 2]`` that are a linear map of the data ``[B]``."""

    def init(self, key, x):
        return {"slope": jnp.array([[0.8, -0.5], [0.3, 0.9]]), "bias": jnp.asarray(0.2)}

    def apply(self, params, x):
        return x[:, None, None] * params["slope"][None] + params["bias"] * jnp.eye(2)[None]


def categorical_batch():
    """Two data with two one-hot vectors each, an amortized guide and learned theta."""

    def log_joint(x, z, theta):
        first, second = z["c"][:, 0], z["c"][:, 1]
        pairs = x * first[:, 0] * second[:, 1]
        return jnp.sum(first @ theta + pairs - jax.nn.logsumexp(theta))

    sites = {"c": bbvi.OneHotCategorical(2, (2, 2))}
    problem = bbvi.Problem(log_joint, bbvi.Amortized(sites, NETWORK))
    x = jnp.array([1.5, -2.0])
    return problem, problem.init(jax.random.key(0), x, jnp.array([0.7, -0.4])), x


NETWORK = OneHotNetwork()


def three_kinds():
    """A tuple of a Bernoulli, a category of three and a one-hot vector; two components."""

    def log_joint(x, z):
        b, rest = z
        return jnp.cos(2.0 * rest["c"]) * (1 + b) + rest["hot"] @ jnp.array([0.4, -0.9, 0.1])

    sites = (
        bbvi.Bernoulli(),
        {"c": bbvi.Categorical(3), "hot": bbvi.OneHotCategorical(3)},
    )
    problem = bbvi.Problem(log_joint, bbvi.MeanField(sites))
    return problem, problem.init(jax.random.key(2), None), None


TARGETS = [categorical_pair, categorical_batch, three_kinds]
