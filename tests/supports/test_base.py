"""What every support must be: bijectors against brute-force Jacobians and NumPyro's."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import biject_to, constraints

from bbvi import supports
from tests.supports.oracles import EVENTS, backward, contains, forward, reals

each_event = pytest.mark.parametrize(("support", "shape"), EVENTS.values(), ids=EVENTS.keys())


def free_entries(support, z):
    """The entries of z that its density is a density of."""
    n = z.shape[-1]
    if support == supports.simplex:
        return z[:-1]
    if support in (supports.positive_definite, supports.cholesky_factor):
        return z[jnp.tril_indices(n)]
    if support == supports.correlation_cholesky:
        return z[jnp.tril_indices(n, -1)]
    return z.ravel()


@functools.partial(jax.jit, static_argnums=0)
def brute_force_log_det(support, u):
    jacobian = jax.jacfwd(lambda u: free_entries(support, support.constrain(u)))(u)
    return jnp.linalg.slogdet(jacobian)[1]


@each_event
def test_log_det_is_that_of_the_jacobian(support, shape):
    with jax.enable_x64(True):
        for seed in range(3):
            u = reals(support, shape, seed, jnp.float64, scale=2.0)
            log_det = forward(support, u)[1]
            chex.assert_shape(log_det, ())
            np.testing.assert_allclose(log_det, brute_force_log_det(support, u), rtol=1e-10)


@each_event
def test_the_parts_are_those_of_the_pair(support, shape):
    u = reals(support, shape)
    z, log_det = support.constrain_with_log_det(u)
    np.testing.assert_array_equal(z, support.constrain(u))
    np.testing.assert_array_equal(log_det, support.log_det(u))


@each_event
def test_log_det_in_single_precision(support, shape):
    u = reals(support, shape)
    with jax.enable_x64(True):
        exact = forward(support, jnp.asarray(np.asarray(u), jnp.float64))[1]
    np.testing.assert_allclose(forward(support, u)[1], exact, rtol=1e-5, atol=1e-6)


@each_event
@pytest.mark.parametrize(("x64", "rtol"), [(False, 1e-4), (True, 1e-10)])
def test_round_trip(support, shape, x64, rtol):
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        u = reals(support, shape, dtype=dtype)
        z, log_det = forward(support, u)
        assert z.shape == shape
        assert z.dtype == log_det.dtype == dtype
        assert contains(support, z)
        back = backward(support, z)
        assert back.dtype == dtype
        np.testing.assert_allclose(back, u, rtol=rtol, atol=rtol)


@each_event
def test_rows_are_independent_events(support, shape):
    batch = (5, *shape)
    u = reals(support, batch)
    z, log_det = forward(support, u)
    assert z.shape == batch
    by_row, by_row_log_det = jax.vmap(lambda u: forward(support, u))(u)
    np.testing.assert_allclose(z, by_row, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_det, by_row_log_det.sum(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(backward(support, z), u, rtol=1e-3, atol=1e-4)
    assert contains(support, z)


@each_event
def test_gradients_are_finite_differences(support, shape):
    @jax.jit
    def value(u):
        z, log_det = support.constrain_with_log_det(u)
        return log_det + jnp.sum(jnp.sin(z)) + jnp.sum(support.unconstrain(z))

    with jax.enable_x64(True):
        u = reals(support, (2, *shape), dtype=jnp.float64)
        gradients = jax.jit(jax.vmap(jax.grad(value)))(u)
        direction = np.random.default_rng(1).normal(size=u[0].shape)
        step = 1e-6 * direction
        for row, gradient in zip(u, gradients, strict=True):
            slope = float(value(row + step) - value(row - step)) / 2e-6
            np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-5, atol=1e-7)


@each_event
def test_no_traced_value_escapes(support, shape, tracer_leak_checks):
    u = reals(support, shape)
    jax.make_jaxpr(jax.grad(lambda u: jnp.sum(support.unconstrain(support.constrain(u)))))(u)


NUMPYRO = {
    "real": constraints.real,
    "positive": constraints.positive,
    "greater_than": constraints.greater_than(-1.3),
    "less_than": constraints.less_than(0.7),
    "interval": constraints.interval(-1.1, 2.3),
    "unit_interval": constraints.unit_interval,
    "simplex": constraints.simplex,
    "ordered": constraints.ordered_vector,
}


@pytest.mark.parametrize("name", NUMPYRO)
def test_same_map_as_numpyro(name):
    support, shape = EVENTS[name]
    transform = biject_to(NUMPYRO[name])
    u = reals(support, shape)
    z, log_det = forward(support, u)
    theirs = transform(u)
    np.testing.assert_allclose(z, theirs, rtol=2e-6)
    expected = transform.log_abs_det_jacobian(u, theirs).sum()
    np.testing.assert_allclose(log_det, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "support",
    [
        supports.greater_than(0.1),
        supports.less_than(-0.1),
        supports.interval(0.1, 0.3),
        supports.interval(-1e4, 1e4),
        supports.unit_interval,
        supports.simplex,
    ],
    ids=repr,
)
@pytest.mark.parametrize("far", [-80.0, -20.0, 20.0, 80.0])
def test_far_draws_stay_inside_and_come_back_finite(support, far):
    u = jnp.full(support.unconstrained_shape((3,)), far)
    z, log_det = forward(support, u)
    assert contains(support, z)
    assert np.isfinite(log_det)
    assert np.all(np.isfinite(backward(support, z)))
    slope = jax.jit(jax.grad(lambda u: jnp.sum(jnp.log(jnp.abs(support.constrain(u))))))(u)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize(
    ("support", "z"),
    [
        (supports.simplex, np.full(1000, np.float32(1e-3))),
        (supports.positive_definite, [[2.0, 1.0], [1.0, 2.0]]),
        (supports.correlation_cholesky, [[1.0, 0.0], [0.6, 0.8]]),
        (supports.unit_interval, [[0.1], [0.9]]),
    ],
)
def test_values_inside(support, z):
    inside = contains(support, jnp.array(z, jnp.float32))
    assert inside.shape == ()
    assert inside


@each_event
def test_shapes_that_exist(support, shape):
    support.check_shape(shape, "z")
    support.check_shape((7, *shape), "z")


def test_value_equal_and_printable():
    assert supports.interval(0, 1) == supports.unit_interval
    assert supports.greater_than(np.float32(0.0)) == supports.positive
    assert hash(supports.interval(-1, 2)) == hash(supports.interval(-1.0, 2.0))
    assert supports.greater_than(1.0) != supports.less_than(1.0)
    assert type(supports.interval(np.float32(0.0), 2).lower) is float
    assert repr(supports.interval(0, 2)) == "interval(0.0, 2.0)"
    assert repr(supports.greater_than(0.0)) == "positive"
    for name in ("real", "positive", "unit_interval", "simplex", "ordered", "positive_definite"):
        assert repr(getattr(supports, name)) == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        supports.interval(0, 1).lower = 2.0


def test_equal_supports_are_one_static_argument():
    chex.clear_trace_counter()

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def constrain(support, u):
        return support.constrain(u)

    constrain(supports.interval(-1.0, 2.0), jnp.zeros(2))
    constrain(supports.interval(-1.0, 2.0), jnp.ones(2))
