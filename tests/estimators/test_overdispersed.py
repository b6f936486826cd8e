"""Draws from an overdispersed guide, every term weighted with the blocks it reads."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.special import digamma, gammaln

import bbvi
from bbvi.testing import (
    check_estimator,
    check_mean,
    exact_bernoulli_gradient,
    replicate_gradients,
)
from tests.estimators.oracles import (
    check_variance,
    estimate,
    gauss_hermite,
    gaussian_problem,
    leave_one_out_variance,
    normal_signal_problem,
)


@pytest.mark.parametrize("dispersion", [1.0, 2.0])
def test_unbiased(dispersion):
    check_estimator(bbvi.Overdispersed(8, dispersion))


def chain_problem(offset=0.0):
    """Three Bernoullis in a chain with fields: terms of one block, of two, and a constant one."""

    def log_joint(x, z, theta):
        b = z["b"]
        pairs = jnp.array([1.5, -2.0]) * b[1:] * b[:-1] + offset
        return jnp.sum(theta * b + offset) + jnp.sum(pairs) - jnp.sum(theta**2)

    problem = bbvi.Problem(log_joint, bbvi.MeanField({"b": bbvi.Bernoulli((3,))}))
    return problem, problem.init(jax.random.key(0), None, jnp.array([0.7, -0.4, 0.9]))


@pytest.mark.parametrize("dispersion", [1.0, 1.7, 4.0])
def test_mean_by_enumeration(dispersion):
    """Gradients and loss over every outcome of two draws from r: those of q, up to rounding."""
    with jax.enable_x64(True):
        problem, params = chain_problem()
        params.guide.families["b"]["logits"] = logits = jnp.array([0.8, -1.5, 2.0])
        bits = np.array(list(itertools.product([0, 1], repeat=6))).reshape(-1, 2, 3)
        wide = jax.nn.sigmoid(logits / dispersion)[None, None]
        chance = jnp.prod(jnp.where(bits == 1, wide, 1 - wide), axis=(1, 2))
        noise = jnp.zeros((len(bits), 2, 0)), {"b": jnp.where(bits == 1, 0.0, 1.0)}
        estimator = bbvi.Overdispersed(2, dispersion)

        def one(noise):
            first = estimator.estimate(noise, problem, params, None, ())[0]
            return first.loss, ravel_pytree(first.grads)[0]

        losses, gradients = jax.jit(jax.vmap(one))(noise)

        values = jnp.asarray(np.array(list(itertools.product([0, 1], repeat=3))))
        log_q = problem.log_q(params, None, {"b": values})
        elbo = jnp.exp(log_q) @ (problem.log_p(params, None, {"b": values}) - log_q)
        exact = ravel_pytree(exact_bernoulli_gradient(problem, params, None))[0]
        mean_loss, mean_gradient = chance @ losses, chance @ gradients
    np.testing.assert_allclose(mean_loss, -elbo, rtol=1e-9)
    np.testing.assert_allclose(mean_gradient, exact, rtol=1e-9, atol=1e-11)


def test_without_dispersion_it_is_the_score_function(key):
    def log_joint(x, z, theta):
        u, b, p = z["u"], z["b"], z["p"]
        local = -0.5 * jnp.sum(u**2) + theta * jnp.sum(b) + jnp.sum(b * jnp.sin(u))
        return local + jnp.sum(u[1:] * u[:-1]) / 3 + jnp.sum(jnp.log(p) @ x) - theta**2

    guide = bbvi.Product(
        bbvi.MeanField({"u": bbvi.Normal((3,)), "b": bbvi.Bernoulli((3,))}),
        bbvi.MeanField({"p": bbvi.Dirichlet((2, 3))}),
    )
    problem = bbvi.Problem(log_joint, guide)
    # The base noise of a Dirichlet is a key, which both estimators draw from.
    with jax.enable_x64(True), jax.debug_key_reuse(False):
        x = jnp.arange(3.0)
        params = problem.init(jax.random.key(1), x, jnp.array(0.4))
        noise = problem.base_noise(key, 5)
        ours, theirs = (
            estimate(estimator, problem, params, noise, x)
            for estimator in (
                bbvi.Overdispersed(5, dispersion=1.0),
                bbvi.ScoreFunction(5, signal="blanket"),
            )
        )
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("dispersion", "without_baseline"), [(1.0, 77.92), (1.5, 37.53), (2.0, 29.54), (3.0, 26.33)]
)
def test_variance_on_a_parabola(dispersion, without_baseline):
    """f = (z - k)^2 in mu. The squared weight times r is a normal of variance v s^2, unscaled."""
    mu, s, k, num_samples = 1.0, 1.5, -0.7, 4
    d, v = mu - k, 1 / (2 - 1 / dispersion)

    def second_moment(baseline):
        """Of (f - baseline) times weight and score, by normal moments up to the sixth."""
        a, mass = d**2 - baseline, np.sqrt(dispersion * v)
        moments = a**2 * v + 6 * (2 * d**2 + a) * s**2 * v**2 + 15 * s**4 * v**3
        return mass * moments / s**2

    np.testing.assert_allclose(second_moment(0.0) - 4 * d**2, without_baseline, rtol=3e-4)

    nodes, weights = gauss_hermite()
    e = np.sqrt(dispersion) * nodes  # draws from r
    ratio = np.sqrt(dispersion) * np.exp(-(e**2) * (1 - 1 / dispersion) / 2)
    f, scores = (d + s * e) ** 2, [ratio * e / s, ratio * (e**2 - 1)]
    mean = d**2 + dispersion * s**2
    np.testing.assert_allclose(weights @ (scores[0] * (f - mean)) ** 2, second_moment(mean))

    problem, params = normal_signal_problem(lambda z: (z - k) ** 2, mu, s)
    estimator = bbvi.Overdispersed(num_samples, dispersion)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 200_000)
    exact = [leave_one_out_variance(f, score, weights, num_samples) for score in scores]
    check_variance(gradients, exact)


def test_gammas_against_the_closed_form():
    """Poisson counts: unbiased, and the loss is that of the guide."""

    def log_joint(x, z):
        return jnp.sum(x * jnp.log(z["rate"]) - z["rate"])

    problem = bbvi.Problem(log_joint, bbvi.MeanField({"rate": bbvi.Gamma((2,))}))
    x = jnp.array([3.0, 1.0])
    params = problem.init(jax.random.key(0), x)
    log_gamma = {"log_concentration": jnp.array([0.4, 1.0]), "log_rate": jnp.array([1.0, 0.0])}
    params = params._replace(guide=params.guide._replace(families={"rate": log_gamma}))

    def loss(params):
        a, b = (jnp.exp(leaf) for leaf in params.guide.families["rate"].values())
        entropy = a - jnp.log(b) + gammaln(a) + (1 - a) * digamma(a)
        return -jnp.sum(x * (digamma(a) - jnp.log(b)) - a / b + entropy)

    estimator = bbvi.Overdispersed(8)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, x, 20_000)
    check_mean(gradients, ravel_pytree(jax.grad(loss)(params))[0])

    def one(key):
        return estimator.estimate(estimator.draw(key, problem), problem, params, x, ())[0].loss

    losses = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 20_000))
    check_mean(losses[:, None], np.array([loss(params)]))


def test_constants_in_the_terms_change_nothing(key):
    """Not the gradient, and the loss only by their sum: they gain no noise from the weights."""
    estimator = bbvi.Overdispersed(4, dispersion=3.0)
    noise = estimator.draw(key, chain_problem()[0])
    with jax.enable_x64(True):
        here, there = (estimate(estimator, *chain_problem(offset), noise) for offset in (0.0, 1e4))
        got, wanted = ravel_pytree(there.grads)[0], ravel_pytree(here.grads)[0]
        shift = float(there.loss) - float(here.loss)
    np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-10)
    assert shift == pytest.approx(-5e4, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "Overdispersed needs num_samples >= 2, got 1"),
        ({"dispersion": 0.9}, "dispersion must be a number >= 1, got 0.9"),
        ({"dispersion": float("nan")}, "dispersion must be a number >= 1, got nan"),
        ({"dispersion": float("inf")}, "dispersion must be a number >= 1, got inf"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bbvi.Overdispersed(**options)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (bbvi.MeanField({"z": bbvi.StudentT()}), "site 'z': StudentT is not an exponential family"),
        (bbvi.FullRank({"z": bbvi.Normal()}), "FullRank has no overdispersed form. Use ScoreFunc"),
    ],
)
def test_guides_without_an_overdispersed_form_are_refused(guide, message):
    problem = bbvi.Problem(lambda x, z: -jnp.sum(z["z"] ** 2), guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=message):
        bbvi.Overdispersed().validate(problem, params, None)


def test_other_objectives_are_refused():
    problem, params = gaussian_problem(objective=bbvi.Iwae(2))
    with pytest.raises(ValueError, match=r"Overdispersed estimates .* only, got Iwae"):
        bbvi.Overdispersed(4).validate(problem, params, None)
