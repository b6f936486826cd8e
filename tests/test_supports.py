"""Bijectors against brute-force Jacobians, quadrature and NumPyro's."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import biject_to, constraints

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
each_event = pytest.mark.parametrize(("support", "shape"), EVENTS.values(), ids=EVENTS.keys())


def reals(support, shape, seed=0, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    u = scale * rng.normal(size=support.unconstrained_shape(shape))
    return jnp.asarray(u, dtype)


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


@functools.partial(jax.jit, static_argnums=0)
def forward(support, u):
    return support.constrain_with_log_det(u)


@functools.partial(jax.jit, static_argnums=0)
def backward(support, z):
    return support.unconstrain(z)


@functools.partial(jax.jit, static_argnums=0)
def contains(support, z):
    return support.contains(z)


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


def test_pushed_forward_normal_on_the_smallest_simplex_integrates_to_one():
    with jax.enable_x64(True):
        first = jax.nn.sigmoid(jnp.linspace(-9.0, 9.0, 20_001))
        u = jax.vmap(supports.simplex.unconstrain)(jnp.stack([first, 1.0 - first], axis=-1))
        log_det = jax.vmap(supports.simplex.log_det)(u)
        log_q = -0.5 * u[:, 0] ** 2 - 0.5 * jnp.log(2 * jnp.pi) - log_det
        np.testing.assert_allclose(jnp.trapezoid(jnp.exp(log_q), first), 1.0, rtol=1e-6)


def test_normal_on_positive_is_lognormal():
    z = jnp.linspace(0.1, 4.0, 7)
    u = jax.vmap(supports.positive.unconstrain)(z)
    log_q = jax.scipy.stats.norm.logpdf(u) - jax.vmap(supports.positive.log_det)(u)
    expected = -jnp.log(z) - 0.5 * jnp.log(z) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)


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
        (supports.simplex, [0.5, 0.6]),
        (supports.simplex, [0.0, 1.0]),
        (supports.simplex, [[0.5, 0.5], [0.5, 0.4]]),
        (supports.ordered, [1.0, 1.0]),
        (supports.ordered, [0.0, jnp.nan]),
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


@pytest.mark.parametrize(
    ("support", "shape", "message"),
    [
        (supports.simplex, (), r"^site 'c' has shape \(\), but .*'simplex' needs at least 1 axis"),
        (supports.simplex, (5, 1), r"^site 'c' has shape \(5, 1\), .* length >= 2"),
        (supports.ordered, (), "'ordered' needs at least 1 axis"),
        (supports.positive_definite, (3,), "'positive_definite' needs at least 2 axes"),
        (supports.cholesky_factor, (3, 2), "last two axes must be equal"),
        (supports.correlation_cholesky, (1, 1), "at least 2 by 2"),
    ],
)
def test_shapes_that_cannot_exist(support, shape, message):
    with pytest.raises(ValueError, match=message):
        support.check_shape(shape, "site 'c'")


@each_event
def test_shapes_that_exist(support, shape):
    support.check_shape(shape, "z")
    support.check_shape((7, *shape), "z")


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
