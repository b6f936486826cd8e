"""Simplexes and increasing vectors: quadrature, small entries, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbvi import supports
from tests.supports.oracles import contains


def test_pushed_forward_normal_on_the_smallest_simplex_integrates_to_one():
    with jax.enable_x64(True):
        first = jax.nn.sigmoid(jnp.linspace(-9.0, 9.0, 20_001))
        u = jax.vmap(supports.simplex.unconstrain)(jnp.stack([first, 1.0 - first], axis=-1))
        log_det = jax.vmap(supports.simplex.log_det)(u)
        log_q = -0.5 * u[:, 0] ** 2 - 0.5 * jnp.log(2 * jnp.pi) - log_det
        np.testing.assert_allclose(jnp.trapezoid(jnp.exp(log_q), first), 1.0, rtol=1e-6)


def test_simplex_keeps_its_small_entries():
    """One minus the other entries would be 0 here, and the log-determinant NaN."""
    u = jnp.array([20.0, 20.0])
    z, log_det = supports.simplex.constrain_with_log_det(u)
    with jax.enable_x64(True):
        exact, exact_log_det = supports.simplex.constrain_with_log_det(jnp.array([20.0, 20.0]))
    np.testing.assert_allclose(z, exact, rtol=1e-5)
    np.testing.assert_allclose(log_det, exact_log_det, rtol=1e-6)
    np.testing.assert_allclose(supports.simplex.unconstrain(z), u, rtol=1e-6)


def test_centre_of_the_simplex_is_at_zero():
    z = supports.simplex.constrain(jnp.zeros(6))
    np.testing.assert_allclose(z, np.full(7, 1 / 7), rtol=1e-6)


@pytest.mark.parametrize(
    ("support", "z"),
    [
        (supports.simplex, [0.5, 0.6]),
        (supports.simplex, [0.0, 1.0]),
        (supports.simplex, [[0.5, 0.5], [0.5, 0.4]]),
        (supports.ordered, [1.0, 1.0]),
        (supports.ordered, [0.0, jnp.nan]),
    ],
)
def test_values_outside(support, z):
    assert not contains(support, jnp.array(z))


@pytest.mark.parametrize(
    ("support", "shape", "message"),
    [
        (supports.simplex, (), r"^site 'c' has shape \(\), but .*'simplex' needs at least 1 axis"),
        (supports.simplex, (5, 1), r"^site 'c' has shape \(5, 1\), .* length >= 2"),
        (supports.ordered, (), "'ordered' needs at least 1 axis"),
    ],
)
def test_shapes_that_cannot_exist(support, shape, message):
    with pytest.raises(ValueError, match=message):
        support.check_shape(shape, "site 'c'")
