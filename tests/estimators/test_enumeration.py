"""Enumeration against brute force, to rounding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import bernoulli_problem, exact_bernoulli_gradient
from tests.estimators.oracles import cells, enumerated_gradient, estimate, tensor_moments

pytestmark = pytest.mark.usefixtures("x64")


def first_estimate(estimator, problem, params, x=None):
    estimator.validate(problem, params, x)
    return estimate(estimator, problem, params, estimator.draw(jax.random.key(0), problem), x)


def test_gradient_and_loss_are_exact():
    problem, params = bernoulli_problem()
    found = first_estimate(bbvi.Enumeration(), problem, params)
    exact = exact_bernoulli_gradient(problem, params, None)
    np.testing.assert_allclose(ravel_pytree(found.grads)[0], ravel_pytree(exact)[0], rtol=1e-10)
    table = jnp.array(list(itertools.product([0, 1], repeat=3)))
    log_q = problem.log_q(params, None, {"b": table})
    elbo = jnp.exp(log_q) @ (problem.log_p(params, None, {"b": table}) - log_q)
    np.testing.assert_allclose(found.loss, -elbo, rtol=1e-12)
    np.testing.assert_allclose(found.log_weights, [elbo], rtol=1e-12)


def chain(x, z, theta):
    c = jnp.asarray(z["c"])
    return jnp.sum(theta[c[:-1], c[1:]]) + jnp.sum(x[c])


@pytest.mark.parametrize("length", [1, 6])  # 3 states, and 729: not a whole number of batches
def test_categorical_chain(length):
    problem = bbvi.Problem(chain, bbvi.MeanField({"c": bbvi.Categorical(3, (length,))}))
    theta = jax.random.normal(jax.random.key(1), (3, 3))
    x = jnp.array([0.3, -0.2, 0.9])
    params = problem.init(jax.random.key(0), x, theta)
    found = first_estimate(bbvi.Enumeration(), problem, params, x)
    exact = enumerated_gradient(problem, params, x)
    np.testing.assert_allclose(ravel_pytree(found.grads)[0], exact, rtol=1e-9, atol=1e-12)


def test_one_hot_vectors_are_enumerated_as_numbers_are():
    def log_joint(x, z):
        return jnp.sum(z["c"][0] @ x @ z["c"][1]) + z["c"][0, 2]

    def by_number(x, z):
        return x[z["c"][0], z["c"][1]] + (z["c"][0] == 2)

    x = jax.random.normal(jax.random.key(1), (3, 3))
    grads = []
    for function, family in (
        (log_joint, bbvi.OneHotCategorical(3, (2,))),
        (by_number, bbvi.Categorical(3, (2,))),
    ):
        problem = bbvi.Problem(function, bbvi.MeanField({"c": family}))
        params = problem.init(jax.random.key(0), x)
        grads.append(ravel_pytree(first_estimate(bbvi.Enumeration(), problem, params, x).grads)[0])
    np.testing.assert_allclose(*grads, rtol=1e-10)
    assert np.abs(grads[0]).max() > 0.01


def of_data(x, z, theta):
    b = z["b"].astype(theta.dtype)
    logits = b @ theta + jnp.prod(b, axis=1, keepdims=True)
    return jnp.sum(x * logits - jax.nn.softplus(logits)) + jnp.sum(0.3 * b)


def test_data_of_a_batch_are_enumerated_side_by_side():
    """2^4 evaluations for 50 data of 4 latents, where there are 2^200 joint values."""
    x = (jax.random.uniform(jax.random.key(0), (50, 7)) < 0.4).astype(float)
    theta = jax.random.normal(jax.random.key(1), (4, 7))
    problem = bbvi.Problem(of_data, bbvi.MeanField({"b": bbvi.Bernoulli((50, 4))}))
    params = problem.init(jax.random.key(2), x, theta)
    found = first_estimate(bbvi.Enumeration(), problem, params, x)
    one = bbvi.Problem(of_data, bbvi.MeanField({"b": bbvi.Bernoulli((1, 4))}))
    logits, model = [], 0.0
    for n in range(50):
        mine = params.guide.families["b"]["logits"][n : n + 1]
        guide = params.guide._replace(families={"b": {"logits": mine}})
        exact = exact_bernoulli_gradient(one, params._replace(guide=guide), x[n : n + 1])
        logits.append(exact.guide.families["b"]["logits"])
        model += exact.model
    got = found.grads.guide.families["b"]["logits"]
    np.testing.assert_allclose(got, jnp.concatenate(logits), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.grads.model, model, rtol=1e-9)


def two_sites(x, z, theta):
    a, b = z["a"].astype(theta.dtype), z["b"].astype(theta.dtype)
    return jnp.sum(jnp.sin(theta * (a[0] + 2 * a[1] * b))) + a[0] * a[1] - 0.4 * b


def two_site_problem():
    guide = bbvi.MeanField({"a": bbvi.Bernoulli((2,)), "b": bbvi.Bernoulli()})
    problem = bbvi.Problem(two_sites, guide)
    return problem, problem.init(jax.random.key(3), None, jnp.array([0.7, -1.1]))


@pytest.mark.parametrize("sites", [("a",), "b", None])
def test_chosen_sites_are_summed_out_and_the_others_drawn(sites):
    """The expectation over all draws of the others is the exact gradient."""
    problem, params = two_site_problem()
    exact = exact_bernoulli_gradient(problem, params, None)
    estimator = bbvi.Enumeration(2, sites)
    estimator.validate(problem, params, None)
    theta = {n: jax.nn.sigmoid(p["logits"]) for n, p in params.guide.families.items()}

    def gradient(u):
        noise = {"a": u[:4].reshape(2, 2), "b": u[4:]}
        return estimator.estimate(noise, problem, params, None, ())[0].grads

    rules = [cells(float(t)) for t in (*theta["a"], *theta["a"], theta["b"], theta["b"])]
    mean, variance = tensor_moments(gradient, rules)
    np.testing.assert_allclose(mean, ravel_pytree(exact)[0], rtol=1e-9, atol=1e-12)
    assert (variance.max() < 1e-20) == (sites is None)


def test_a_fit_reaches_the_best_mean_field_bound():
    problem, params = two_site_problem()
    result = bbvi.fit(
        two_sites,
        problem.guide,
        model_params=params.model,
        estimator=bbvi.Enumeration(),
        num_steps=400,
        progress=False,
    )
    assert np.ptp(result.history.loss[-20:]) < 1e-3
    found = first_estimate(bbvi.Enumeration(), problem, result.params)
    assert np.abs(ravel_pytree(found.grads.guide)[0]).max() < 1e-2


def binary(shape, name="b"):
    problem = bbvi.Problem(
        lambda x, z: jnp.prod(1.0 * z[name]), bbvi.MeanField({name: bbvi.Bernoulli(shape)})
    )
    return problem, problem.init(jax.random.key(0), None)


def test_errors():
    problem, params = binary((17,))
    with pytest.raises(ValueError, match="'b' would sum 131072 joint values, more than 65536"):
        bbvi.Enumeration().validate(problem, params, None)
    problem, params = binary((100_000,))
    with pytest.raises(ValueError, match=r"10\^30103 joint values"):
        bbvi.Enumeration().validate(problem, params, None)
    problem, params = two_site_problem()
    with pytest.raises(ValueError, match=r"names sites \['q'\].*\['a', 'b'\]"):
        bbvi.Enumeration(2, ("a", "q")).validate(problem, params, None)
    with pytest.raises(ValueError, match=r"draws sites \['b'\].*num_samples >= 2, got 1"):
        bbvi.Enumeration(sites="a").validate(problem, params, None)
    problem = bbvi.Problem(lambda x, z: -(z["w"] ** 2), bbvi.MeanField({"w": bbvi.Normal()}))
    with pytest.raises(ValueError, match=r"'w' \(Normal\) is not one; .* bbvi.Mixed"):
        bbvi.Enumeration().validate(problem, problem.init(jax.random.key(0), None), None)


def test_sixteen_binary_latents_are_allowed():
    problem, params = binary((16,))
    bbvi.Enumeration().validate(problem, params, None)
