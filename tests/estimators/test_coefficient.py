"""Learned coefficients against least squares, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbvi.estimators.coefficient import DECAY, Coefficient


def random_steps(num_steps, seed=0):
    """Gradients and controls ``[T, 7]``, related by -0.4 and noise."""
    rng = np.random.default_rng(seed)
    control = rng.normal(size=(num_steps, 7)) * np.linspace(0.1, 3, 7)
    return -0.4 * control + rng.normal(size=control.shape), control


def as_tree(row):
    return {"a": jnp.asarray(row[:1]), "rest": [jnp.asarray(row[1:]).reshape(2, 3)]}


def learn(gradients, controls, start=None):
    def step(coefficient, rows):
        return coefficient.update(*map(as_tree, rows)), None

    rows = jnp.asarray(gradients), jnp.asarray(controls)
    return jax.lax.scan(step, start or Coefficient.init(), rows)[0]


@pytest.mark.parametrize("num_steps", [1, 2, 300])
def test_least_squares_with_decayed_weights(x64, num_steps):
    """The multiple of the controls that NumPy finds nearest to minus the gradients."""
    gradients, controls = random_steps(num_steps)
    weight = DECAY ** (np.arange(num_steps)[::-1, None] / 2)
    (wanted,), *_ = np.linalg.lstsq(
        (weight * controls).reshape(-1, 1), -(weight * gradients).ravel(), rcond=None
    )
    assert 0 < wanted < 1
    found = learn(gradients, controls).least_squares()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_an_exact_relation_is_found_in_one_step(x64):
    _, controls = random_steps(1)
    found = learn(-0.7 * controls, controls).value()
    np.testing.assert_allclose(found, 0.7, rtol=1e-14)


def test_an_uncertain_coefficient_is_shrunk(x64):
    """Where the best is zero its square falls manifold, and a certain one stays as it is."""
    rng = np.random.default_rng(0)
    controls = rng.normal(size=(200, 300, 7))
    noise = rng.normal(size=controls.shape)
    learned = jax.vmap(learn)(noise, controls)
    plain, used = learned.least_squares(), jax.vmap(lambda c: c.value(-1.0, 1.0))(learned)
    assert np.mean(used**2) < 0.2 * np.mean(plain**2)
    assert np.mean(used == 0) > 0.5
    # The error is that of the sums: what is off the line at each step, decayed.
    steps = jnp.sum(noise * controls, axis=2) * DECAY ** np.arange(300)[None, ::-1]
    np.testing.assert_allclose(np.mean(learned.error), np.std(steps.sum(1)), rtol=0.15)
    learned = jax.vmap(learn)(noise - 0.5 * controls, controls)
    used = jax.vmap(lambda c: c.value())(learned)
    np.testing.assert_allclose(used, learned.least_squares(), rtol=0.05)


def test_limits():
    control = jnp.array([1.0, 2.0])
    for best, wanted in ((-0.5, 0.0), (0.3, 0.3), (1.7, 1.0)):
        learned = Coefficient.init().update(-best * control, control)
        np.testing.assert_allclose(learned.value(), wanted, rtol=1e-6)
        np.testing.assert_allclose(learned.value(-1.0, 2.0), best, rtol=1e-6)


def test_zero_until_there_is_a_control():
    nothing = Coefficient.init()
    assert nothing.value() == 0
    assert nothing.value(-1.0, 2.0) == 0
    still = nothing.update(jnp.ones(3), jnp.zeros(3))
    assert still.value() == 0


def test_the_past_is_forgotten(x64):
    """After 700 steps less than a thousandth of it is left."""
    _, controls = random_steps(700)
    old = learn(-0.9 * controls, controls)
    new = learn(-0.2 * controls, controls, old)
    np.testing.assert_allclose(old.least_squares(), 0.9, rtol=1e-12)
    share = (DECAY**700 * old.variance) / new.variance
    assert 0 < share < 1e-3
    np.testing.assert_allclose(new.least_squares(), 0.2 + 0.7 * share, rtol=1e-12)


@pytest.mark.parametrize(
    ("gradient", "control"),
    [(0.9, 0.3), (0.0, 0.6), (0.6, 0.6), (jnp.nan, 0.0), (0.0, jnp.inf)],
)
def test_overflow_leaves_the_sums_alone(gradient, control):
    """Whichever of the products is not finite; sizes are powers of the largest number."""
    largest = float(jnp.finfo(jnp.zeros(()).dtype).max)
    before = learn(*random_steps(20))
    rows = np.full(7, largest**gradient), np.full(7, -(largest**control))
    after = before.update(*map(as_tree, rows))
    assert after == before
    follows = after.update(as_tree(np.ones(7)), as_tree(np.ones(7)))
    np.testing.assert_allclose(follows.variance, DECAY * before.variance + 7, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_keep_their_dtype(x64, dtype):
    """So that a state can be carried through a loop, whatever the dtype of the gradients."""
    start = Coefficient(*jnp.zeros(3, dtype))
    for other in ("float32", "float64"):
        moved = start.update(-jnp.ones(2, other), 2 * jnp.ones(2, other))
        assert {leaf.dtype for leaf in moved} == {jnp.dtype(dtype)}
        assert moved.value().dtype == dtype
        assert moved.value() == 0.5


@pytest.mark.parametrize("is_double", [False, True])
def test_initial_sums_have_the_default_dtype(is_double):
    with jax.enable_x64(is_double):
        wanted = jnp.dtype("float64" if is_double else "float32")
        assert {leaf.dtype for leaf in Coefficient.init()} == {wanted}


def test_a_step_of_rounding_does_not_spoil_those_after_it(x64):
    """Its multiple is arbitrary; what later steps are off it is no measure of their error."""
    gradients, controls = random_steps(300)
    controls[0] *= 1e-9
    learned = learn(gradients, controls)
    without = learn(gradients[1:], controls[1:])
    assert abs(float(learned.least_squares()) - 0.4) < 0.05
    np.testing.assert_allclose(learned.error, without.error, rtol=0.3)
    np.testing.assert_allclose(learned.value(), without.value(), atol=0.02)
