"""Measure-valued derivatives: differences of values at two coupled draws per coordinate."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.special import digamma, gammaln
from jax.scipy.stats import norm
from scipy import stats

import bbvi
from bbvi import supports
from bbvi.estimators.measure_valued import JUMP_SHAPE
from bbvi.testing import check_estimator, check_mean, replicate_gradients
from tests.estimators.oracles import (
    M,
    T,
    check_variance,
    estimate,
    gauss_hermite,
    gaussian_problem,
    normal_signal_problem,
    signal_problem,
)

REPLICATES = 100_000


@pytest.mark.parametrize("num_samples", [1, 3])
def test_unbiased(num_samples):
    """Normals and Bernoullis, each with a learned parameter."""
    check_estimator(bbvi.MeasureValued(num_samples), replicates=10_000)


# Exact variances.


def test_variance_on_a_parabola():
    """f = (z - k)^2: d^2 (16/pi - 4) for the location, 4 d^2 + 4 s^2 for the scale, d = mu - k."""
    mu, s, k = 1.0, 1.5, -0.7
    by_mu, by_s = (mu - k) ** 2 * (16 / np.pi - 4), 4 * (mu - k) ** 2 + 4 * s**2
    np.testing.assert_allclose([by_mu, by_s], [3.1587, 20.56], rtol=1e-4)
    problem, params = normal_signal_problem(lambda z: (z - k) ** 2, mu, s)
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.MeasureValued(1), problem, params, None, REPLICATES
    )
    check_variance(gradients, [by_mu, s**2 * by_s])
    check_mean(gradients, -np.array([2 * (mu - k), 2 * s**2]), power=0.05)


def gamma_signal_problem(f, a, b):
    guide = bbvi.MeanField({"z": bbvi.Gamma()})
    gamma = {"log_concentration": jnp.log(a), "log_rate": jnp.log(b)}
    params = guide.init(jax.random.key(0), None)._replace(families={"z": gamma})
    return signal_problem(lambda z: f(z["z"]), guide, params)


@pytest.mark.parametrize("a", [0.2, 2.5])
def test_gamma_variance(a):
    """f = b z: a^2 for the log rate. The log concentration's is that of a w(J) J V + z (1 - V'),
    with z = Y V: the moments of Y, V, V' and J are known.
    """
    kappa = math.gamma(JUMP_SHAPE) * math.gamma(2 - JUMP_SHAPE)  # E[w^2 J^2], where E[w J] = 1
    by_shape = kappa * a**3 / (a + 2) + 2 * a / (a + 2) + 2 * a**2 / (a + 2) - a**2
    rate = 1.7
    problem, params = gamma_signal_problem(lambda z: rate * z, a, rate)
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.MeasureValued(1), problem, params, None, 2 * REPLICATES
    )
    check_variance(gradients, [by_shape, a**2], power=0.3)
    check_mean(gradients, np.array([-a, a]), power=0.05)


def test_no_noise_at_the_posterior(key):
    """The log weight is constant, so all differences are zero."""
    problem, params = gaussian_problem(loc=M, scale=T)
    estimator = bbvi.MeasureValued(4)
    noise = estimator.draw(key, problem)
    grads = estimate(estimator, problem, params, noise).grads
    np.testing.assert_allclose(grads.guide.normal, 0, atol=2e-6)


# Means, without a derivative of the log joint.


def test_step_function_of_a_normal():
    """f = 1[z > t]: the density and its moment at t. The pathwise gradient would be zero."""
    mu, s, t = 0.3, 0.8, 0.9
    problem, params = normal_signal_problem(lambda z: jnp.where(z > t, 1.0, 0.0), mu, s)
    height = stats.norm.pdf((t - mu) / s)
    exact = -np.array([height / s, height * (t - mu) / s])
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.MeasureValued(2), problem, params, None, REPLICATES
    )
    check_mean(gradients, exact, power=0.05)


@pytest.mark.parametrize("a", [0.3, 2.5])
def test_step_function_of_a_gamma(a):
    """The derivatives of 1 - F(t), that in the concentration by central differences of SciPy's."""
    b, t, h = 1.7, 1.2 * a / 1.7, 1e-4
    problem, params = gamma_signal_problem(lambda z: jnp.where(z > t, 1.0, 0.0), a, b)
    by_shape = (stats.gamma.sf(b * t, a + h) - stats.gamma.sf(b * t, a - h)) / (2 * h)
    by_rate = -t * stats.gamma.pdf(b * t, a)
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.MeasureValued(2), problem, params, None, REPLICATES
    )
    # Jumps make for heavy tails.
    check_mean(gradients, -np.array([a * by_shape, b * by_rate]), power=0.1)


def numpy_log_joint(x, z):
    """-|w - x|^2 / 2 + w_0 w_1, and a gamma density with shape 3 and rate 2, all in NumPy."""

    def host(x, w, tau):
        w, tau, x = (np.asarray(v, np.float64) for v in (w, tau, x))
        quadratic = -0.5 * ((w - x) ** 2).sum(axis=-1) + 0.6 * w[..., 0] * w[..., 1]
        return np.asarray(quadratic + (2 * np.log(tau) - 2 * tau).sum(axis=-1), np.float32)

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(host, shape, x, z["w"], z["tau"], vmap_method="expand_dims")


def test_many_coordinates_with_a_callback():
    """Every coordinate of two sites, against closed forms."""
    x = jnp.array([0.5, -1.0, 2.0])
    guide = bbvi.MeanField({"w": bbvi.Normal((3,)), "tau": bbvi.Gamma((2,))})
    problem = bbvi.Problem(numpy_log_joint, guide)
    params = problem.init(jax.random.key(0), x)

    def loss(params):
        (loc, log_scale), phi = params.guide.normal, params.guide.families["tau"]
        a, log_b = jnp.exp(phi["log_concentration"]), phi["log_rate"]
        log_joint = -0.5 * jnp.sum((loc - x) ** 2 + jnp.exp(2 * log_scale)) + 0.6 * loc[0] * loc[1]
        log_joint += jnp.sum(2 * (digamma(a) - log_b) - 2 * a * jnp.exp(-log_b))
        entropy = jnp.sum(a - log_b + gammaln(a) + (1 - a) * digamma(a))
        return -log_joint - entropy - jnp.sum(log_scale)

    estimator = bbvi.MeasureValued(2)
    estimator.validate(problem, params, x)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, x, 20_000)
    check_mean(gradients, ravel_pytree(jax.grad(loss)(params))[0], power=0.1)


@pytest.mark.parametrize(
    ("support", "shape"),
    [(supports.positive, (2,)), (supports.unit_interval, (2,)), (supports.simplex, (3,))],
    ids=repr,
)
def test_normals_on_other_supports(support, shape):
    """Two unconstrained entries, integrated by a product of Gauss-Hermite rules."""

    def log_joint(x, z):
        return jnp.sum(jnp.array([1.0, -0.5, 2.0])[: z["z"].size] * jnp.log(z["z"])) - z["z"][0]

    guide = bbvi.MeanField({"z": bbvi.Normal(shape, support=support)})
    problem = bbvi.Problem(log_joint, guide)
    normal = jnp.array([[0.4, -0.3], [-0.5, -0.2]])
    params = bbvi.Params(guide.init(jax.random.key(0), None)._replace(normal=normal))
    nodes, weights = gauss_hermite(30)
    noise = jnp.array(list(itertools.product(nodes, nodes)))
    mass = jnp.array(np.outer(weights, weights).ravel())

    def loss(params):
        z, log_q = problem.sample_and_log_q((noise, {}), params, None)
        return -jnp.dot(mass, problem.log_p(params, None, z) - log_q)

    exact = ravel_pytree(jax.grad(loss)(params))[0]
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.MeasureValued(2), problem, params, None, 20_000
    )
    check_mean(gradients, exact, power=0.1)


# Coordinates in blocks.


def dense(x, z):
    return norm.logpdf(z["w"]).sum() + norm.logpdf(x["y"], jnp.sin(x["a"] @ z["w"])).sum()


def test_blocks_do_not_matter(monkeypatch, key):
    """One coordinate at a time, some, or all: the same gradient."""
    x = {"a": jax.random.normal(key, (5, 7)), "y": jnp.ones(5)}
    problem = bbvi.Problem(dense, bbvi.MeanField({"w": bbvi.Normal((7,))}))
    params = problem.init(jax.random.key(0), x)
    estimator = bbvi.MeasureValued(2)
    noise = estimator.draw(jax.random.key(1), problem)
    wanted = ravel_pytree(estimate(estimator, problem, params, noise, x).grads)[0]
    for entries in (1, 3 * 3 * (2 * 40 + 14)):
        monkeypatch.setattr("bbvi.estimators.measure_valued.BLOCK_ENTRIES", entries)
        got = ravel_pytree(estimate(estimator, problem, params, noise, x).grads)[0]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_memory_does_not_grow_with_the_square_of_the_coordinates():
    """At 4096 coordinates the draws with one changed would be 800 MB all at once."""
    num, num_samples = 4096, 4
    guide = bbvi.MeanField({"w": bbvi.Normal((num,))})
    problem = bbvi.Problem(lambda x, z: -jnp.sum(jnp.abs(z["w"])), guide)
    params = problem.init(jax.random.key(0), None)
    estimator = bbvi.MeasureValued(num_samples)
    noise = estimator.draw(jax.random.key(1), problem)
    run = jax.jit(lambda n, p: estimator.estimate(n, problem, p, None, ())[0])
    used = run.lower(noise, params).compile().memory_analysis().temp_size_in_bytes
    assert used < 64e6 < num * num * num_samples * 3 * 4


# Errors.


def test_other_guides_and_families_are_refused():
    def refused(guide, message):
        problem = bbvi.Problem(lambda x, z: jnp.zeros(()), guide)
        params = problem.init(jax.random.key(0), None)
        with pytest.raises(ValueError, match=message):
            bbvi.MeasureValued().validate(problem, params, None)

    refused(
        bbvi.MeanField({"ok": bbvi.LogNormal(), "t": bbvi.StudentT()}),
        r"site 't' is StudentT\(.*has derivatives for Normal \(on any support\), Gamma and Bern",
    )
    refused(bbvi.FullRank({"w": bbvi.Normal((2,))}), "needs a bbvi.MeanField guide, got a FullRank")


def test_other_objectives_are_refused():
    problem, params = gaussian_problem(objective=bbvi.Iwae(2))
    with pytest.raises(ValueError, match=r"MeasureValued estimates the gradient of bbvi.Elbo\(\)"):
        bbvi.MeasureValued(2).validate(problem, params, None)
