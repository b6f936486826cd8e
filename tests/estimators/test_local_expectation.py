import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
import models
from bbvi.testing import check_mean, replicate_gradients
from tests.estimators.oracles import enumerated_gradient, estimate


def chain(x, z):
    s = 2.0 * z["s"] - 1.0
    return x["coupling"] * jnp.sum(s[1:] * s[:-1]) + jnp.dot(x["field"], s)


CHAIN = {"coupling": 0.4, "field": np.array([0.3, -0.2, 0.1, 0.5, -0.4])}


def categories(x, z):
    """Assignments are independent given the means; the means are not reparameterized here."""
    return -0.5 * jnp.sum((x - z["mu"][z["c"]]) ** 2) - 0.5 * jnp.sum(z["mu"] ** 2)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_unbiased_on_a_chain(num_samples):
    problem = bbvi.Problem(chain, bbvi.MeanField({"s": bbvi.Bernoulli((5,))}))
    params = problem.init(jax.random.key(0), CHAIN)
    estimator = bbvi.LocalExpectation(num_samples)
    estimator.validate(problem, params, CHAIN)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, CHAIN, 20_000)
    check_mean(gradients, enumerated_gradient(problem, params, CHAIN))


def test_no_variance_where_entries_are_independent(key):
    """Every term reads one entry: the gradient is exact, whatever is drawn."""
    target = models.get("gaussian_mixture_small")
    x, guide = target.data(), target.guides["mean_field"]()
    problem = bbvi.Problem(target.log_joint, guide)
    params = problem.init(jax.random.key(0), x)
    estimator = bbvi.LocalExpectation(1)
    exact = enumerated_gradient(problem, params, x)
    for k in jax.random.split(key, 3):
        got = estimate(estimator, problem, params, estimator.draw(k, problem), x)
        np.testing.assert_allclose(ravel_pytree(got.grads)[0], exact, rtol=1e-4, atol=1e-5)


def test_learned_parameters_get_their_gradient(key):
    def log_joint(x, z, theta):
        return theta * jnp.sum(z["s"])

    problem = bbvi.Problem(log_joint, bbvi.MeanField({"s": bbvi.Bernoulli((3,))}))
    params = problem.init(jax.random.key(0), None, jnp.asarray(0.5))
    estimator = bbvi.LocalExpectation(4)
    noise = estimator.draw(key, problem)
    mean = problem.sample(noise, params, None)["s"].sum(axis=1).mean()
    got = estimate(estimator, problem, params, noise)
    np.testing.assert_allclose(got.grads.model, -mean, rtol=1e-6)


def test_beside_the_score_function_it_is_unbiased():
    """Assignments summed out, means by score function; against quadrature over the means."""
    x = jnp.array([-1.0, 0.4, 2.0])
    guide = bbvi.MeanField({"mu": bbvi.Normal((2,)), "c": bbvi.Categorical(2, (3,))})
    problem = bbvi.Problem(categories, guide)
    params = problem.init(jax.random.key(0), x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    pairs = np.array(list(itertools.product(nodes, repeat=2)))
    mass = np.prod(list(itertools.product(weights / weights.sum(), repeat=2)), axis=1)
    values = jnp.array(list(itertools.product(range(2), repeat=3)))

    def loss(params):
        loc, log_scale = params.guide.normal
        log_q = jax.nn.log_softmax(params.guide.families["c"]["logits"])

        def at(c):
            probability = jnp.exp(sum(log_q[n, c[n]] for n in range(3)))
            mu = loc[None] + jnp.exp(log_scale)[None] * pairs
            value = jax.vmap(lambda mu: categories(x, {"mu": mu, "c": c}))(mu)
            return probability * jnp.dot(jnp.asarray(mass, value.dtype), value)

        entropy = jnp.sum(log_scale) - jnp.sum(jnp.exp(log_q) * log_q)
        return -sum(at(c) for c in values) - entropy

    exact = ravel_pytree(jax.grad(loss)(params))[0]
    for mu in (bbvi.ScoreFunction(16), bbvi.Reparameterization(16)):
        estimator = bbvi.PerSite({"mu": mu, "c": bbvi.LocalExpectation(16)})
        estimator.validate(problem, params, x)
        check_mean(
            replicate_gradients(jax.random.key(2), estimator, problem, params, x, 40_000), exact
        )


def test_default_sums_assignments_out():
    target = models.get("gaussian_mixture")
    x, guide = target.data(), target.guides["mean_field"]()
    problem = bbvi.Problem(target.log_joint, guide)
    params = problem.init(jax.random.key(0), x)
    default = dict(bbvi.estimators.default_estimator(problem, params, x).estimators)
    assert default["assignments"] == bbvi.LocalExpectation(8)
    assert default["means"] == bbvi.Reparameterization(8)


def test_default_leaves_many_colours_to_the_score_function():
    def dense(x, z):
        return jnp.sum(z["s"]) ** 2.0

    problem = bbvi.Problem(dense, bbvi.MeanField({"s": bbvi.Bernoulli((6,))}))
    params = problem.init(jax.random.key(0), None)
    assert bbvi.estimators.default_estimator(problem, params, None) == bbvi.ScoreFunction()


def test_other_sites_are_refused():
    guide = bbvi.MeanField({"s": bbvi.Bernoulli((3,)), "w": bbvi.Normal()})
    problem = bbvi.Problem(lambda x, z: z["w"] * jnp.sum(z["s"]), guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=r"site 'w' \(Normal\) does not take finitely many values"):
        bbvi.LocalExpectation(2).validate(problem, params, None)


def test_terms_shared_through_data_are_refused():
    """Pairs of entries that data choose may be any pairs."""

    def pairs(x, z):
        return jnp.sum(z["s"][x["i"]] * z["s"][x["j"]] * 0.1)

    x = {"i": jnp.array([0, 1]), "j": jnp.array([2, 3])}
    problem = bbvi.Problem(pairs, bbvi.MeanField({"s": bbvi.Bernoulli((4,))}))
    params = problem.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="depends on the values of index data"):
        bbvi.LocalExpectation(2).validate(problem, params, x)
    with pytest.raises(ValueError, match=r"bbvi.Elbo\(\) only"):
        bbvi.LocalExpectation(2).validate(
            bbvi.Problem(pairs, problem.guide, bbvi.Iwae(2)), params, x
        )
