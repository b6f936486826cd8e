"""The installed XLA computes what it is told: a release that did not is excluded in pyproject."""

import jax
import jax.numpy as jnp
import numpy as np


def test_vmapped_sums_of_products_are_right_under_jit():
    # jaxlib 0.10.2 on CPU was off by nats from the 32,769th term on.
    z = jax.random.uniform(jax.random.key(0), (5000, 10, 3), minval=0.1)
    weights = 0.1 * jnp.arange(30.0).reshape(10, 3)

    def one(row):
        return (jnp.sum(weights * jnp.log(row), axis=-1) - jnp.ones(10)).sum()

    compiled = jax.jit(jax.vmap(one))(z)
    exact = (np.asarray(weights, np.float64) * np.log(np.asarray(z, np.float64))).sum((1, 2)) - 10
    np.testing.assert_allclose(compiled, exact, rtol=1e-4, atol=1e-4)
