import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi

SIGNAL = jnp.array([1.0, -2.0, 6.0, 0.5])


def warm(baseline, signals):
    """The baseline's state after steps that saw these signals."""
    state = baseline.init()
    for signal in signals:
        _, state = baseline(state, jnp.asarray(signal))
    return state


@pytest.mark.parametrize(
    "baseline",
    [bbvi.NoBaseline(), bbvi.LeaveOneOut(), bbvi.MovingAverage(0.0), bbvi.MovingAverage(0.9)],
    ids=repr,
)
def test_never_sees_its_own_sample(baseline):
    """The diagonal of the Jacobian is zero: what makes the gradient unbiased."""
    state = warm(baseline, [SIGNAL + 1.0, SIGNAL - 3.0])
    jacobian = jax.jacobian(lambda signal: baseline(state, signal)[0])(SIGNAL)
    np.testing.assert_allclose(jnp.diag(jacobian), 0, atol=1e-6)


def test_none_is_zero():
    values, state = bbvi.NoBaseline()((), SIGNAL)
    np.testing.assert_array_equal(values, jnp.zeros(4))
    assert state == ()


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_leave_one_out_is_the_mean_of_the_others(offset):
    signal = SIGNAL + offset
    values, _ = bbvi.LeaveOneOut()((), signal)
    wanted = [np.delete(np.asarray(signal, np.float64), s).mean() for s in range(4)]
    np.testing.assert_allclose(values, wanted, rtol=2e-7, atol=1e-6)
    assert bbvi.LeaveOneOut.min_samples == 2


def test_leave_one_out_of_two_swaps():
    values, _ = bbvi.LeaveOneOut()((), jnp.array([3.0, -1.0]))
    np.testing.assert_allclose(values, [-1.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_moving_average_is_that_of_the_past(decay):
    rng = np.random.default_rng(0)
    signals = rng.normal(2.0, 1.0, (6, 3)).astype(np.float32)
    baseline = bbvi.MovingAverage(decay)
    state = baseline.init()
    for step, signal in enumerate(signals):
        values, state = baseline(state, jnp.asarray(signal))
        shares = decay ** np.arange(step)[::-1]
        past = shares @ signals[:step].mean(axis=1) / shares.sum() if step else 0.0
        np.testing.assert_allclose(values, np.full(3, past), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_moving_average_of_a_constant_is_that_constant(decay):
    """Storing the bias-corrected value, a bug seen elsewhere, would make it grow or shrink."""
    baseline = bbvi.MovingAverage(decay)
    state = baseline.init()
    first, state = baseline(state, jnp.full(2, 5.0))
    np.testing.assert_array_equal(first, [0.0, 0.0])
    for _ in range(20):
        values, state = baseline(state, jnp.full(2, 5.0))
        np.testing.assert_allclose(values, [5.0, 5.0], rtol=1e-5)


def test_moving_average_compiles_and_keeps_its_dtype():
    baseline = bbvi.MovingAverage(0.9)
    state = warm(baseline, [SIGNAL])
    values, after = jax.jit(baseline)(state, SIGNAL)
    np.testing.assert_allclose(values, jnp.full(4, SIGNAL.mean()), rtol=1e-6)
    assert [leaf.dtype for leaf in after] == [leaf.dtype for leaf in state]
    assert [leaf.weak_type for leaf in after] == [False, False]


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_decay_is_checked(decay):
    with pytest.raises(ValueError, match=r"MovingAverage decay must be in \[0, 1\), got"):
        bbvi.MovingAverage(decay)
