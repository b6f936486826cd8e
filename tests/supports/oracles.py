"""One event of every support, and maps compiled once for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bbvi import supports

REAL_LINE = {
    "real": supports.real,
    "positive": supports.positive,
    "greater_than": supports.greater_than(-1.3),
    "less_than": supports.less_than(0.7),
    "interval": supports.interval(-1.1, 2.3),
    "unit_interval": supports.unit_interval,
}
# name: support, shape of one event
EVENTS = {name: (support, (3,)) for name, support in REAL_LINE.items()} | {
    "simplex": (supports.simplex, (4,)),
    "simplex_of_two": (supports.simplex, (2,)),
    "ordered": (supports.ordered, (4,)),
    "ordered_of_one": (supports.ordered, (1,)),
    "positive_definite": (supports.positive_definite, (3, 3)),
    "positive_definite_of_one": (supports.positive_definite, (1, 1)),
    "cholesky_factor": (supports.cholesky_factor, (3, 3)),
    "correlation_cholesky": (supports.correlation_cholesky, (4, 4)),
    "correlation_cholesky_of_two": (supports.correlation_cholesky, (2, 2)),
}


def reals(support, shape, seed=0, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    u = scale * rng.normal(size=support.unconstrained_shape(shape))
    return jnp.asarray(u, dtype)


@functools.partial(jax.jit, static_argnums=0)
def forward(support, u):
    return support.constrain_with_log_det(u)


@functools.partial(jax.jit, static_argnums=0)
def backward(support, z):
    return support.unconstrain(z)


@functools.partial(jax.jit, static_argnums=0)
def contains(support, z):
    return support.contains(z)
