"""Supports of single numbers: quadrature, rounding at the bounds, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbvi import supports
from tests.supports.oracles import REAL_LINE, contains


@pytest.mark.parametrize("name", REAL_LINE)
def test_pushed_forward_normal_integrates_to_one(name):
    """q(z) = N(T^-1(z)) / |dT/du|, integrated over z by the trapezoid rule on uneven nodes."""
    support = REAL_LINE[name]
    with jax.enable_x64(True):
        z = support.constrain(jnp.linspace(-9.0, 9.0, 20_001))
        u = support.unconstrain(z)
        log_q = -0.5 * u**2 - 0.5 * jnp.log(2 * jnp.pi) - jax.vmap(support.log_det)(u)
        mass = abs(jnp.trapezoid(jnp.exp(log_q), z))
        np.testing.assert_allclose(mass, 1.0, rtol=1e-6)


def test_normal_on_positive_is_lognormal():
    z = jnp.linspace(0.1, 4.0, 7)
    u = jax.vmap(supports.positive.unconstrain)(z)
    log_q = jax.scipy.stats.norm.logpdf(u) - jax.vmap(supports.positive.log_det)(u)
    expected = -jnp.log(z) - 0.5 * jnp.log(z) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)


def test_bounds_keep_double_precision():
    with jax.enable_x64(True):
        z = supports.interval(0.1, 0.3).constrain(jnp.zeros((), jnp.float64))
        np.testing.assert_allclose(z, 0.2, rtol=1e-15)
        z = supports.greater_than(0.1).constrain(jnp.zeros((), jnp.float64))
        np.testing.assert_allclose(z, 1.1, rtol=1e-15)


def test_real_costs_nothing():
    jaxpr = jax.make_jaxpr(supports.real.constrain)(jnp.ones(3))
    assert not jaxpr.eqns
    u = jnp.ones(3)
    assert supports.real.constrain(u) is u
    assert supports.real.unconstrain(u) is u
    log_det = supports.real.log_det(u)
    assert log_det.shape == ()
    assert log_det == 0.0


@pytest.mark.parametrize(
    ("support", "z"),
    [
        (supports.real, [jnp.nan, 0.0]),
        (supports.real, [jnp.inf]),
        (supports.positive, [1.0, 0.0]),
        (supports.positive, [jnp.inf]),
        (supports.positive, [jnp.nan]),
        (supports.greater_than(2.0), [2.0]),
        (supports.less_than(2.0), [2.0]),
        (supports.interval(0.0, 2.0), [0.0, 1.0]),
        (supports.unit_interval, [0.5, 1.0]),
    ],
)
def test_values_outside(support, z):
    assert not contains(support, jnp.array(z))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: supports.interval(1.0, 1.0), r"needs lower < upper, got \(1.0, 1.0\)"),
        (
            lambda: supports.interval(0.0, jnp.inf),
            "interval needs a finite number as its upper bound, got inf",
        ),
        (lambda: supports.greater_than(jnp.nan), "greater_than needs a finite number as its lower"),
        (lambda: supports.less_than(-jnp.inf), "less_than needs a finite number as its upper"),
    ],
)
def test_bad_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()
