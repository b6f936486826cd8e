"""Draws from every component of a mixture: unbiased in weights too, and exact where q = p."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import bbvi
from bbvi.testing import check_mean, replicate_gradients

ONE = {"z": bbvi.Normal()}


def spread(guide):
    """Parameters of a mixture of three, none alike."""
    logits, loc = jnp.array([0.3, -0.5, 0.8]), jnp.array([-1.5, 0.2, 1.4])
    components = [
        guide.guide.params_at({"z": m}, s) for m, s in zip(loc, (0.7, 1.1, 0.5), strict=True)
    ]
    return guide.from_components(components, jnp.exp(logits))


@pytest.mark.parametrize("family", [bbvi.FullRank, bbvi.MeanField])
def test_unbiased_against_quadrature(family):
    """All parameters, weights among them, and a log joint that is no polynomial."""
    guide = bbvi.Mixture(family(ONE), 3)

    def log_joint(x, z):
        return jnp.sin(2 * z["z"]) - 0.3 * jnp.abs(z["z"] - 0.5) ** 1.5

    problem = bbvi.Problem(log_joint, guide)
    params = bbvi.Params(spread(guide))
    grid = {"z": jnp.linspace(-12.0, 12.0, 8001)}

    def loss(params):
        log_q = problem.log_q(params, None, grid)
        f = log_q - problem.log_p(params, None, grid)
        return jnp.sum(jnp.exp(log_q) * f) * (grid["z"][1] - grid["z"][0])

    exact = ravel_pytree(jax.jit(jax.grad(loss))(params))[0]
    estimator = bbvi.Stratified(2)
    estimator.validate(problem, params, None)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 20_000)
    check_mean(gradients, exact, power=0.05)


def test_no_variance_at_the_posterior(x64):
    guide = bbvi.Mixture(bbvi.FullRank(ONE), 3)
    params = bbvi.Params(spread(guide))
    held = params.guide

    problem = bbvi.Problem(lambda x, z: 0.7 + guide.log_prob(held, None, z), guide)
    noise = bbvi.Stratified(4).draw(jax.random.key(0), problem)
    estimate, _ = bbvi.Stratified(4).estimate(noise, problem, params, None, ())
    np.testing.assert_allclose(estimate.log_weights, 0.7, rtol=1e-12)
    np.testing.assert_allclose(estimate.loss, -0.7, rtol=1e-12)
    np.testing.assert_allclose(ravel_pytree(estimate.grads)[0], 0, atol=1e-10)


def test_weights_of_far_modes_have_exact_gradients(x64):
    """Modes 100 deviations apart that the components match: one draw gives the gradient."""
    guide = bbvi.Mixture(bbvi.FullRank(ONE), 2)
    modes = [{"z": jnp.array(0.0)}, {"z": jnp.array(100.0)}]
    params = bbvi.Params(guide.params_at(modes, 1.0, [0.5, 0.5]))

    def log_joint(x, z):
        near, far = norm.logpdf(z["z"]), norm.logpdf(z["z"], 100.0)
        return jnp.logaddexp(jnp.log(0.3) + near, jnp.log(0.7) + far)

    problem = bbvi.Problem(log_joint, guide)
    noise = bbvi.Stratified(1).draw(jax.random.key(0), problem)
    estimate, _ = bbvi.Stratified(1).estimate(noise, problem, params, None, ())
    # ELBO = sum of w_k log(p_k / w_k): in the logits, w_k (log(p_k / w_k) - ELBO).
    scores = np.log(np.array([0.3, 0.7]) / 0.5)
    exact = 0.5 * (scores - scores.mean())
    np.testing.assert_allclose(-estimate.grads.guide["logits"], exact, rtol=1e-9)


def test_is_the_default_for_mixtures_and_its_cost_is_counted():
    guide = bbvi.Mixture(bbvi.MeanField({"w": bbvi.Normal((2,))}), 3)
    smooth = bbvi.Problem(lambda x, z: -0.5 * jnp.sum(z["w"] ** 2), guide)
    params = smooth.init(jax.random.key(0), None)
    chosen = bbvi.estimators.default_estimator(smooth, params, None)
    assert chosen == bbvi.Stratified()
    assert chosen.cost_for(smooth, params, None) == bbvi.Cost(gradients=24)
    jumps = bbvi.Problem(lambda x, z: -jnp.sum(jnp.round(z["w"]) ** 2), guide)
    assert isinstance(bbvi.estimators.default_estimator(jumps, params, None), bbvi.ScoreFunction)


@pytest.mark.parametrize(
    ("guide", "log_joint", "objective", "message"),
    [
        (bbvi.FullRank(ONE), lambda z: z, bbvi.Elbo(), "every component of a bbvi.Mixture, got"),
        (bbvi.Mixture(bbvi.FullRank(ONE), 2), jnp.round, bbvi.Elbo(), "not differentiable in.*'z'"),
        (bbvi.Mixture(bbvi.FullRank(ONE), 2), lambda z: z, bbvi.Iwae(4), "bbvi.Elbo.. only"),
    ],
)
def test_invalid_problems_are_refused(guide, log_joint, objective, message):
    problem = bbvi.Problem(lambda x, z: log_joint(z["z"]), guide, objective)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=message):
        bbvi.Stratified(8).validate(problem, params, None)
