import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import (
    bernoulli_problem,
    check_mean,
    exact_bernoulli_gradient,
    normal_problem,
    replicate_gradients,
)
from tests.estimators.oracles import estimate


@pytest.mark.parametrize("num_samples", [2, 3, 8])
@pytest.mark.parametrize("target", [bernoulli_problem, normal_problem])
def test_equals_leave_one_out_draw_for_draw(target, num_samples, key):
    with jax.enable_x64(True):
        problem, params, *_ = target()
        score = bbvi.ScoreFunction(num_samples, signal="component")
        var_grad = bbvi.VarGrad(num_samples)
        noise = score.draw(key, problem)
        wanted, got = (estimate(e, problem, params, noise) for e in (score, var_grad))
        assert float(jnp.abs(ravel_pytree(wanted.grads)[0]).max()) > 0.01
        np.testing.assert_allclose(
            ravel_pytree(got.grads)[0], ravel_pytree(wanted.grads)[0], rtol=1e-9, atol=1e-12
        )
        np.testing.assert_allclose(got.loss, wanted.loss, rtol=1e-12)


def test_a_component_is_not_disturbed_by_the_others(key):
    """The gradient of a datum is that of its own terms, however large those of the others are."""

    def log_joint(x, z):
        return jnp.sum(x * jnp.sin(1.0 + z["b"].sum(axis=1)))

    problem = bbvi.Problem(log_joint, bbvi.MeanField({"b": bbvi.Bernoulli((3, 2))}))
    estimator, x = bbvi.VarGrad(4), jnp.array([1.0, -2.0, 0.5])
    init_key, draw_key = jax.random.split(key)
    params = problem.init(init_key, x)
    noise = estimator.draw(draw_key, problem)

    def gradient(x):
        grads = estimator.estimate(noise, problem, params, x, ())[0].grads
        return grads.guide.families["b"]["logits"]

    moved = gradient(x.at[1].set(1000.0)) - gradient(x)
    np.testing.assert_allclose(moved[jnp.array([0, 2])], 0.0, atol=1e-6)
    assert float(jnp.abs(moved[1]).max()) > 1.0


def test_two_draws_give_the_whole_gradient():
    """With the 1/S variance the mean is (S - 1)/S of the gradient: half of it here."""
    problem, params = bernoulli_problem()
    exact = ravel_pytree(exact_bernoulli_gradient(problem, params, None))[0]
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.VarGrad(2), problem, params, None, 100_000
    )
    check_mean(gradients, exact, power=0.05)


def test_needs_two_draws():
    with pytest.raises(ValueError, match="VarGrad needs num_samples >= 2, got 1"):
        bbvi.VarGrad(1)
