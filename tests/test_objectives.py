import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi.infer.step import make_step

LOG_WEIGHTS = jnp.array([-1.3, 0.4, 2.0, -3.0, 0.1, 0.7])


def test_elbo_is_minimised():
    """The loss is MINUS the mean log weight: better fits have a smaller one."""
    assert bbvi.Elbo()(LOG_WEIGHTS) == pytest.approx(-float(LOG_WEIGHTS.mean()))
    assert bbvi.Elbo()(LOG_WEIGHTS + 1.0) < bbvi.Elbo()(LOG_WEIGHTS)


def test_iwae_of_one_is_the_elbo():
    loss, grad = jax.value_and_grad(bbvi.Iwae(1))(LOG_WEIGHTS)
    wanted_loss, wanted_grad = jax.value_and_grad(bbvi.Elbo())(LOG_WEIGHTS)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-6)


@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
def test_iwae_is_the_mean_over_groups(group_size):
    groups = np.asarray(LOG_WEIGHTS, np.float64).reshape(-1, group_size)
    wanted = -np.log(np.exp(groups).mean(axis=1)).mean()
    assert bbvi.Iwae(group_size)(LOG_WEIGHTS) == pytest.approx(wanted, rel=1e-5)


def test_larger_groups_are_tighter():
    """Jensen: for any weights, the loss of nested groups falls with their size."""
    losses = [float(bbvi.Iwae(group_size)(LOG_WEIGHTS)) for group_size in (1, 2, 6)]
    assert all(tight < loose for loose, tight in itertools.pairwise(losses))


def test_iwae_gradient_is_the_normalised_weights():
    grad = jax.grad(bbvi.Iwae(3))(LOG_WEIGHTS)
    np.testing.assert_allclose(
        grad, -jax.nn.softmax(LOG_WEIGHTS.reshape(2, 3), axis=1).ravel() / 2, rtol=1e-5
    )


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_iwae_does_not_overflow(shift):
    loss = bbvi.Iwae(6)(LOG_WEIGHTS + shift)
    assert loss == pytest.approx(float(bbvi.Iwae(6)(LOG_WEIGHTS)) - shift, abs=0.01)


def test_iwae_ignores_an_impossible_draw():
    """One weight of zero leaves the bound finite; the ELBO has none then."""
    log_weights = jnp.array([0.0, -jnp.inf])
    loss, grad = jax.value_and_grad(bbvi.Iwae(2))(log_weights)
    assert loss == pytest.approx(math.log(2.0))
    np.testing.assert_allclose(grad, [-1.0, 0.0])
    assert bbvi.Elbo()(log_weights) == jnp.inf


@pytest.mark.parametrize("group_size", [0, -2, 2.0])
def test_group_size_is_checked(group_size):
    with pytest.raises(ValueError, match="Iwae group_size must be an int >= 1, got"):
        bbvi.Iwae(group_size)


def test_group_size_must_divide_the_draws():
    with pytest.raises(ValueError, match=r"Iwae\(4\) needs a multiple of 4 draws, got 6"):
        bbvi.Iwae(4)(LOG_WEIGHTS)


def test_a_step_reports_the_loss():
    """At q = p every draw's log weight is the log evidence, 0.7, and the loss minus that."""

    def log_joint(x, z):
        return 0.7 + jax.scipy.stats.norm.logpdf(z["z"], 1.0, 2.0)

    guide = bbvi.MeanField({"z": bbvi.Normal()})
    for objective in (bbvi.Elbo(), bbvi.Iwae(2)):
        init, step = make_step(
            log_joint,
            guide,
            estimator=bbvi.Reparameterization(4, "monte_carlo"),
            objective=objective,
        )
        state = init(jax.random.key(0), params=guide.params_at({"z": jnp.asarray(1.0)}, 2.0))
        assert step(state)[1].loss == pytest.approx(-0.7, abs=1e-5)
