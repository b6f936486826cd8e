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
        score = bbvi.ScoreFunction(num_samples, signal="full")
        var_grad = bbvi.VarGrad(num_samples)
        noise = score.draw(key, problem)
        wanted, got = (estimate(e, problem, params, noise) for e in (score, var_grad))
        assert float(jnp.abs(ravel_pytree(wanted.grads)[0]).max()) > 0.01
        np.testing.assert_allclose(
            ravel_pytree(got)[0], ravel_pytree(wanted)[0], rtol=1e-9, atol=1e-12
        )


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
