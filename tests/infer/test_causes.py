"""Which reason is given for which operation."""

import jax
import jax.numpy as jnp
import pytest

from bbvi.dependence.origin import gradient_origin, value_origin
from bbvi.infer.causes import cause_of_gradient, cause_of_value


def origin(function, z, find=value_origin):
    z = jnp.asarray(z)
    return find(jax.make_jaxpr(function)(z), [z], [True])


VALUES = {
    "log of a negative": (jnp.log, -1.0, "negative number", "Give latent 'tau' its support"),
    "log of zero": (jnp.log, 0.0, "logarithm of zero", "log scale"),
    "root": (jnp.sqrt, -1.0, "root of a negative", "support"),
    "division": (lambda z: 1 / z, 0.0, "division by zero: a scale may have coll", "greater_than"),
    "overflow of exp": (jnp.exp, 89.0, "more than 88.7 is infinite in float32", "logsumexp"),
    "overflow": (lambda z: z * z, 1e30, "Overflow", "learning rate"),
    "fraction of a power": (lambda z: z**0.3, -1.0, "power of a negative", "support"),
    "outside": (lambda z: jnp.where(z > 0, z, -jnp.inf), -1.0, "reaches outside", "support"),
    "constant": (lambda z: z + jnp.nan, 1.0, "constant or an entry of the data", "mask"),
    "matrix": (
        lambda z: jnp.linalg.cholesky(jnp.eye(2) * z).sum(),
        -2.0,
        "smallest eigenvalue is -2",
        "multiple of the identity",
    ),
    "index": (
        lambda z: jnp.take(z, jnp.array([0, 7])).sum(),
        [1.0, 2.0],
        "index out of range",
        "indices",
    ),
    "inverse normal": (lambda z: jax.scipy.special.erfinv(z), 2.0, "not defined", "support"),
}


@pytest.mark.parametrize("name", VALUES)
def test_of_values(name):
    function, z, reason, remedy = VALUES[name]
    cause = cause_of_value(origin(function, z), ["tau"])
    assert reason in cause.reason
    assert remedy in cause.remedy


GRADIENTS = {
    "left out": (lambda z: jnp.where(z > 0, jnp.log(z), 0.0), 0.0, "zero times infinity", "ok"),
    "root": (lambda z: jnp.sqrt(z), 0.0, "infinite at zero", "small constant"),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_of_derivatives(name):
    function, z, reason, remedy = GRADIENTS[name]
    cause = cause_of_gradient(origin(function, z, gradient_origin))
    assert reason in cause.reason
    assert remedy in cause.remedy
