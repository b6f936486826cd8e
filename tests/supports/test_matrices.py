"""Supports of matrices against NumPyro's measures, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import biject_to, constraints

from bbvi import supports
from tests.supports.oracles import EVENTS, contains, forward, reals


@pytest.mark.parametrize(
    ("name", "constraint"),
    [
        ("positive_definite", constraints.positive_definite),
        ("cholesky_factor", constraints.lower_cholesky),
        ("correlation_cholesky", constraints.corr_cholesky),
    ],
)
def test_same_measure_as_numpyro(name, constraint):
    """The maps differ, so compare the Jacobian of going up with ours and down with theirs."""
    support, shape = EVENTS[name]
    transform = biject_to(constraint)
    with jax.enable_x64(True):
        u = reals(support, shape, dtype=jnp.float64)

        def to_theirs(u):
            return transform._inverse(support.constrain(u))

        @jax.jit
        def expected_log_det(u):
            between = jnp.linalg.slogdet(jax.jacfwd(to_theirs)(u))[1]
            return transform.log_abs_det_jacobian(to_theirs(u), support.constrain(u)) + between

        expected = expected_log_det(u)
        np.testing.assert_allclose(forward(support, u)[1], expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("support", "z"),
    [
        (supports.positive_definite, [[1.0, 2.0], [2.0, 1.0]]),
        (supports.positive_definite, [[1.0, 0.1], [0.2, 1.0]]),
        (supports.cholesky_factor, [[1.0, 0.1], [0.2, 1.0]]),
        (supports.cholesky_factor, [[1.0, 0.0], [0.2, -1.0]]),
        (supports.correlation_cholesky, [[1.0, 0.0], [0.5, 0.5]]),
    ],
)
def test_values_outside(support, z):
    assert not contains(support, jnp.array(z))


@pytest.mark.parametrize(
    ("support", "shape", "message"),
    [
        (supports.positive_definite, (3,), "'positive_definite' needs at least 2 axes"),
        (supports.cholesky_factor, (3, 2), "last two axes must be equal"),
        (supports.correlation_cholesky, (1, 1), "at least 2 by 2"),
    ],
)
def test_shapes_that_cannot_exist(support, shape, message):
    with pytest.raises(ValueError, match=message):
        support.check_shape(shape, "site 'c'")
