"""REBAR against enumeration, by quadrature over the uniforms of the draw and of its copy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import (
    check_estimator,
    check_mean,
    exact_bernoulli_gradient,
    replicate_gradients,
)
from tests.estimators.categoricals import exact_gradient
from tests.estimators.coupled import check_steps, nested_problem
from tests.estimators.oracles import bernoulli_signal_problem, enumerated_gradient
from tests.estimators.relaxed import (
    check_precision,
    coefficients,
    exact_moments,
    last_state,
    linear_problem,
    one_hot_problem,
    one_step,
    pair_problem,
    two_data_problem,
)

ESTIMATOR = bbvi.Rebar(1, temperature=0.5)


def state_at(estimator, problem, params, x, coefficient):
    state = estimator.init(problem, params, x)
    return state._replace(coefficients=coefficients(coefficient, *state.coefficients))


# Unbiased, whatever was learned.


@pytest.mark.parametrize("make", [pair_problem, two_data_problem])
def test_mean_is_the_enumerated_gradient(x64, make):
    problem, params, x = make()
    ESTIMATOR.validate(problem, params, x)
    state = state_at(ESTIMATOR, problem, params, x, 0.7)
    mean, _ = exact_moments(ESTIMATOR, problem, params, x, state, num_nodes=14)
    exact = ravel_pytree(exact_bernoulli_gradient(problem, params, x))[0]
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_mean_with_the_baseline_of_the_other_draw(x64, temperature):
    estimator = bbvi.Rebar(2, temperature)
    problem, params = bernoulli_signal_problem()
    state = state_at(estimator, problem, params, None, 1.3)
    mean, _ = exact_moments(estimator, problem, params, None, state, num_nodes=12)
    np.testing.assert_allclose(mean, enumerated_gradient(problem, params, None), atol=1e-9)
    np.testing.assert_allclose(mean, -0.021, atol=1e-9)


def test_mean_for_categoricals():
    """Two coupled sets of one-hot vectors, with conditional Gumbels and a large coefficient."""
    problem, params, _ = one_hot_problem()
    estimator = bbvi.Rebar(8, temperature=1.0)
    estimator.validate(problem, params, None)
    state = state_at(estimator, problem, params, None, 1.5)

    def one(key):
        noise = estimator.draw(key, problem)
        return ravel_pytree(estimator.estimate(noise, problem, params, None, state)[0].grads)[0]

    keys = jax.random.split(jax.random.key(1), 40_000)
    gradients = jax.jit(lambda: jax.lax.map(one, keys, batch_size=1000))()
    check_mean(gradients, exact_gradient(problem, params), power=0.03)


def test_three_coupled_bernoullis():
    check_estimator(bbvi.Rebar(3), replicates=10_000)


# Variances.


def test_variance_with_the_textbook_coefficient(x64):
    """One draw, f = (b - 0.45)^2: larger than the 0.015594 of no control variate."""
    problem, params = bernoulli_signal_problem()
    for coefficient, wanted in ((0.0, 0.015594), (1.0, 0.021561)):
        state = state_at(ESTIMATOR, problem, params, None, coefficient)
        mean, variance = exact_moments(ESTIMATOR, problem, params, None, state, num_nodes=100)
        np.testing.assert_allclose(mean, -0.021, atol=1e-9)
        np.testing.assert_allclose(variance, wanted, atol=5e-7)


def test_learned_coefficient_is_not_worse_than_none(x64):
    problem, params = bernoulli_signal_problem()
    state = last_state(ESTIMATOR, problem, params, 1500)
    _, variance = exact_moments(ESTIMATOR, problem, params, None, state, num_nodes=60)
    assert variance < 1.03 * 0.015594


def test_learned_coefficient_and_temperature(x64):
    """f(b) = b: both the textbook values and no control variate are far from the best."""
    problem, params = linear_problem()
    variances = []
    for coefficient in (0.0, 1.0):
        state = state_at(ESTIMATOR, problem, params, None, coefficient)
        variances.append(exact_moments(ESTIMATOR, problem, params, None, state, 60)[1])
    state = last_state(ESTIMATOR, problem, params, 1500)
    assert jnp.exp(state.log_temperature) > 1.0
    _, learned = exact_moments(ESTIMATOR, problem, params, None, state, num_nodes=100)
    assert learned < 0.1 * variances[1] < 0.05 * variances[0]


def test_no_noise_at_the_posterior(x64, key):
    """All signals of a linear log joint are alike there, and so are the relaxed ones."""
    logits = jnp.array([0.3, -1.2])
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((2,))})
    init = guide.init(jax.random.key(0), None)
    params = bbvi.Params(init._replace(families={"b": {"logits": logits}}))
    problem = bbvi.Problem(lambda x, z: z["b"] @ logits, guide)
    estimator = bbvi.Rebar(3)
    state = state_at(estimator, problem, params, None, 1.0)
    noise = estimator.draw(key, problem)
    grads = one_step(estimator, problem, params)(noise, state)[0].grads
    np.testing.assert_allclose(ravel_pytree(grads)[0], 0, atol=1e-14)


# What is learned.


def test_temperature_follows_the_squared_estimate(x64, key):
    """The first moment of Adam is a tenth of the gradient: here against finite differences."""
    problem, params, _ = pair_problem()
    estimator = bbvi.Rebar(2)
    noise = estimator.draw(key, problem)
    start = state_at(estimator, problem, params, None, 0.8)

    def half_square(log_temperature):
        state = start._replace(log_temperature=log_temperature)
        estimate, _ = estimator.estimate(noise, problem, params, None, state)
        return 0.5 * jnp.sum(estimate.grads.guide.families["b"]["logits"] ** 2)

    h, at = 1e-5, start.log_temperature
    up, down = jax.jit(jax.vmap(half_square))(at + jnp.array([h, -h]))
    wanted = (up - down) / (2 * h)
    assert abs(wanted) > 1e-3
    _, state = one_step(estimator, problem, params)(noise, start)
    moment = optax.tree_utils.tree_get(state.opt_state, "mu")
    np.testing.assert_allclose(10 * moment, wanted, rtol=1e-6)
    np.testing.assert_allclose(state.log_temperature - at, -0.01 * jnp.sign(wanted), rtol=1e-6)


def test_first_step_is_the_score_function_gradient(x64, key):
    """Nothing has been learned yet; leave-one-out is the baseline."""
    problem, params, _ = pair_problem()
    estimator = bbvi.Rebar(3)
    noise = estimator.draw(key, problem)
    state = estimator.init(problem, params, None)
    grads = one_step(estimator, problem, params)(noise, state)[0].grads
    b = 1.0 * (noise["b"][0] > jax.nn.sigmoid(-jnp.array([0.4, -0.6]))[None])
    signal = problem.log_p(params, None, {"b": b}) - problem.log_q(params, None, {"b": b})
    score = b - jax.nn.sigmoid(jnp.array([0.4, -0.6]))[None]
    wanted = -(signal - signal.mean()) @ score / 2
    np.testing.assert_allclose(grads.guide.families["b"]["logits"], wanted, atol=1e-12)


def test_huge_signal_leaves_no_trace(key):
    """Squares that overflow are not learned from, and the gradient stays as it is."""
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((2,))})
    problem = bbvi.Problem(lambda x, z: x * jnp.prod(1.0 + z["b"]), guide)
    params = problem.init(jax.random.key(0), 1.0)
    estimator = bbvi.Rebar(2)
    state = state_at(estimator, problem, params, 1.0, 0.5)
    noise = estimator.draw(key, problem)
    huge = jnp.finfo(noise["b"].dtype).max ** 0.65
    estimate, after = one_step(estimator, problem, params, huge)(noise, state)
    assert 1e-3 < jnp.abs(estimate.grads.guide.families["b"]["logits"] / huge).max() < 100
    chex.assert_trees_all_equal(after, state)


# The same under every transformation, in every precision.


def test_two_steps_are_one_trace():
    check_steps(ESTIMATOR, *nested_problem())
    check_steps(bbvi.Rebar(2), *one_hot_problem())


@pytest.mark.parametrize("make", [two_data_problem, one_hot_problem])
def test_precision(make):
    estimator = bbvi.Rebar(2)
    check_precision(estimator, make, lambda *at: state_at(estimator, *at, 0.8))


def test_bernoulli_is_a_one_hot_of_two(key):
    """Same target, same exact gradient: the difference of the two logits' is the logit's."""
    pair = bbvi.MeanField({"c": bbvi.OneHotCategorical(2)})
    problem = bbvi.Problem(lambda x, z: jnp.sin(2 * z["c"][1]), pair)
    logits = jnp.array([0.2, -0.5])
    guide = pair.init(key, None)._replace(families={"c": {"logits": logits}})
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.Rebar(4), problem, bbvi.Params(guide), None, 20_000
    )
    theta = jax.nn.softmax(logits)[1]
    slope = -theta * (1 - theta) * (jnp.sin(2.0) - (logits[1] - logits[0]))
    check_mean(gradients, jnp.stack([-slope, slope]), power=0.03)
    np.testing.assert_allclose(gradients.sum(axis=1), 0, atol=1e-6)


def test_cost():
    assert bbvi.Rebar(3).cost == bbvi.estimators.Cost(values=3, gradients=6)


# Errors.


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "0.5"])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="Rebar temperature must be a positive number, got"):
        bbvi.Rebar(2, temperature)


@pytest.mark.parametrize(
    ("log_joint", "family", "message"),
    [
        (lambda x, z: 1.0 * (z["b"] == 1), bbvi.Bernoulli(), "differentiable in latent 'b'"),
        (lambda x, z: 1.0 * z["b"], bbvi.Categorical(3), "use bbvi.OneHotCategorical"),
        (lambda x, z: z["b"], bbvi.Normal(), "Rebar is for discrete latents"),
    ],
)
def test_refused(log_joint, family, message):
    problem = bbvi.Problem(log_joint, bbvi.MeanField({"b": family}))
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=message):
        ESTIMATOR.validate(problem, params, None)


def test_only_the_elbo():
    problem, params, _ = pair_problem()
    problem = bbvi.Problem(problem.log_joint, problem.guide, bbvi.Iwae(2))
    with pytest.raises(ValueError, match="Elbo"):
        bbvi.Rebar(2).validate(problem, params, None)
