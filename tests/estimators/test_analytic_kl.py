"""Reconstruction minus a divergence in closed form: the same gradient, with less noise."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import bbvi
from bbvi.estimators.analytic_kl import divergences
from bbvi.testing import check_mean, replicate_gradients
from tests.estimators.oracles import check_variance, estimate
from tests.estimators.test_reparameterization import implicit_problem

SLOPE, NOISE, DATUM = 1.5, 0.6, 0.8
LOC, SCALE = 0.4, 0.7


def linear(x, z):
    """w ~ N(0, 1), y ~ N(a w, sigma^2)."""
    return norm.logpdf(z["w"]) + norm.logpdf(x, SLOPE * z["w"], NOISE)


def standard_normal(x, z):
    return {"w": distrax.Normal(jnp.zeros(()), jnp.ones(()))}


def another_normal(x, z):
    return {"w": distrax.Normal(3.0 * jnp.ones(()), 2.0 * jnp.ones(()))}


def linear_problem(log_joint=linear):
    guide = bbvi.MeanField({"w": bbvi.Normal()})
    params = bbvi.Params(guide.params_at({"w": jnp.asarray(LOC)}, SCALE))
    return bbvi.Problem(log_joint, guide), params, jnp.asarray(DATUM)


# Exact answers.


def test_the_divergence_has_no_noise(key):
    """A log joint that is its prior: every draw gives the divergence, and its gradient."""
    problem, params, x = linear_problem(lambda x, z: norm.logpdf(z["w"]))
    estimator = bbvi.Reparameterization(1, prior=standard_normal)
    exact = 0.5 * (SCALE**2 + LOC**2 - 1) - np.log(SCALE)
    for k in jax.random.split(key, 3):
        got = estimate(estimator, problem, params, estimator.draw(k, problem), x)
        np.testing.assert_allclose(got.loss, exact, rtol=1e-5)
        np.testing.assert_allclose(
            ravel_pytree(got.grads)[0], [LOC, SCALE**2 - 1], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("prior", [None, standard_normal], ids=["entropy", "divergence"])
def test_mean_and_variance(prior):
    """A linear-Gaussian model: what is left is the likelihood's share of the curvature."""
    curvature = SLOPE**2 / NOISE**2
    slope = LOC - SLOPE * (DATUM - SLOPE * LOC) / NOISE**2  # of minus log p at the mean
    share, at_mean = curvature + 1, slope
    if prior is not None:
        share, at_mean = curvature, slope - LOC
    exact = [share**2 * SCALE**2, SCALE**2 * (at_mean**2 + 2 * share**2 * SCALE**2)]
    problem, params, x = linear_problem()
    estimator = bbvi.Reparameterization(1, prior=prior)
    estimator.validate(problem, params, x)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, x, 100_000)
    check_mean(gradients, np.array([slope, (curvature + 1) * SCALE**2 - 1]), power=0.05)
    check_variance(gradients, exact)


def test_any_prior_is_unbiased():
    """It cancels in the mean; that of the model has the least noise."""
    problem, params, x = linear_problem()
    exact = [
        LOC - SLOPE * (DATUM - SLOPE * LOC) / NOISE**2,
        (SLOPE**2 / NOISE**2 + 1) * SCALE**2 - 1,
    ]
    estimator = bbvi.Reparameterization(2, prior=another_normal)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, x, 100_000)
    check_mean(gradients, np.array(exact), power=0.05)


@jax.debug_key_reuse(False)  # it mistakes the loop of distrax's von Mises sampler for a reuse
def test_every_family_with_a_divergence():
    """Gamma, beta, Dirichlet and von Mises priors that are the log joint: no noise at all."""
    problem, params, loss = implicit_problem()

    def prior(x, z):
        return {
            "gamma": distrax.Gamma(3.0, 2.0),
            "beta": distrax.Beta(1.5, 4.0),
            "dirichlet": distrax.Dirichlet(jnp.array([1.0, 3.0, 2.0])),
            "circle": distrax.VonMises(0.9, 2.0),
        }

    estimator = bbvi.Reparameterization(2, prior=prior)
    estimator.validate(problem, params, None)
    got = estimate(estimator, problem, params, estimator.draw(jax.random.key(1), problem))
    np.testing.assert_allclose(got.loss, loss(params), rtol=1e-4)
    exact = ravel_pytree(jax.grad(loss)(params))[0]
    np.testing.assert_allclose(ravel_pytree(got.grads)[0], exact, rtol=1e-3, atol=1e-4)


def hierarchical(x, z, theta):
    """The deviation of w is a latent, without a divergence in closed form; its mean is learned."""
    prior = norm.logpdf(z["w"], theta, z["tau"]).sum() + norm.logpdf(jnp.log(z["tau"]))
    return prior - jnp.log(z["tau"]) + norm.logpdf(x, z["w"], 0.5).sum()


def prior_given_tau(x, z, theta):
    return {"w": distrax.Normal(theta, z["tau"])}


def test_a_prior_may_depend_on_other_sites_and_on_learned_parameters():
    """Against the closed form: E[1 / tau^2] of a log-normal is known."""
    x = jnp.array([0.5, -1.0, 2.0])
    guide = bbvi.MeanField({"w": bbvi.Normal((3,)), "tau": bbvi.LogNormal()})
    problem = bbvi.Problem(hierarchical, guide)
    params = bbvi.Params(
        guide.params_at({"w": jnp.array([0.3, -0.5, 1.0]), "tau": jnp.asarray(0.8)}, 0.4),
        jnp.asarray(0.2),
    )

    def loss(params):
        by_site = guide.site_params(params.guide)
        m, s = by_site["w"]["loc"], jnp.exp(by_site["w"]["log_scale"])
        a, b = by_site["tau"]["loc"], jnp.exp(by_site["tau"]["log_scale"])
        precision = jnp.exp(-2 * a + 2 * b**2)
        prior = -jnp.sum((m - params.model) ** 2 + s**2) * precision / 2 - 3 * a
        prior -= (a**2 + b**2) / 2 + a
        likelihood = -jnp.sum((x - m) ** 2 + s**2) / (2 * 0.25)
        entropy = jnp.sum(jnp.log(s)) + jnp.log(b) + a
        return -(prior + likelihood + entropy)

    exact = ravel_pytree(jax.grad(loss)(params))[0]
    estimator = bbvi.Reparameterization(2, prior=prior_given_tau)
    estimator.validate(problem, params, x)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, x, 100_000)
    check_mean(gradients, exact, power=0.05)


def test_amortized_guides_have_divergences():
    """The network's output at the data gives the distributions."""

    class Encoder:
        def init(self, key, x):
            return {"slope": jnp.asarray(0.5), "log_scale": jnp.asarray(-0.3)}

        def apply(self, params, x):
            loc = params["slope"] * x
            return {"z": {"loc": loc, "log_scale": jnp.full_like(loc, params["log_scale"])}}

    x = jnp.array([-1.0, 2.0])
    guide = bbvi.Amortized({"z": bbvi.Normal((2,))}, Encoder())
    problem = bbvi.Problem(lambda x, z: norm.logpdf(z["z"]).sum(), guide)
    params = problem.init(jax.random.key(0), x)

    def prior(x, z):
        return {"z": distrax.Normal(jnp.zeros(()), jnp.ones(()))}

    estimator = bbvi.Reparameterization(1, prior=prior)
    estimator.validate(problem, params, x)
    got = estimate(estimator, problem, params, estimator.draw(jax.random.key(1), problem), x)
    exact = [2 * (np.exp(-0.6) - 1), 0.5 * 5.0]  # in log_scale and slope
    np.testing.assert_allclose(ravel_pytree(got.grads)[0], exact, rtol=1e-5)
    (divergence,) = divergences(prior(x, None), problem, params, x).values()
    np.testing.assert_allclose(divergence, got.loss, rtol=1e-5)


# Errors.


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (lambda x, z: {}, "prior must return a dict of distrax distributions by site, got {}"),
        (lambda x, z: {"v": distrax.Normal(0.0, 1.0)}, "prior names site 'v'; the guide's are"),
        (lambda x, z: {"w": norm}, "the prior of site 'w' must be of distrax"),
        (lambda x, z: {"w": distrax.Gamma(1.0, 1.0)}, r"'w' \(Normal\) to its prior Gamma in clos"),
        (
            lambda x, z: {"tau": distrax.Normal(0.0, 1.0)},
            r"site 'tau' \(Normal\) to its prior Norm",
        ),
        (
            lambda x, z: {"w": distrax.Normal(jnp.zeros((2, 3)), 1.0)},
            r"has shape \(2, 3\), but there are independent entries \(3,\)",
        ),
        (lambda x, z: {"w": distrax.Normal(z["w"], z["tau"])}, "of site 'w' depends on 'w' itself"),
    ],
)
def test_priors_are_checked(prior, message):
    guide = bbvi.MeanField({"w": bbvi.Normal((3,)), "tau": bbvi.LogNormal()})
    problem = bbvi.Problem(lambda x, z: -jnp.sum(z["w"] ** 2) / z["tau"] - z["tau"], guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises((TypeError, ValueError), match=message):
        bbvi.Reparameterization(4, prior=prior).validate(problem, params, None)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"prior must be a function \(x, z\)"):
        bbvi.Reparameterization(4, prior={"w": None})
    with pytest.raises(ValueError, match="prior replaces entropies in closed form, got"):
        bbvi.Reparameterization(4, "monte_carlo", prior=standard_normal)
    problem, params, x = linear_problem()
    several = bbvi.Problem(problem.log_joint, problem.guide, bbvi.Iwae(2))
    with pytest.raises(ValueError, match=r"Reparameterization estimates the gradient of bbvi.Elbo"):
        bbvi.Reparameterization(4, prior=standard_normal).validate(several, params, x)
    per_site = bbvi.PerSite({"w": bbvi.Reparameterization(4, prior=standard_normal)})
    with pytest.raises(ValueError, match="site 'w': a prior is for Reparameterization of all"):
        per_site.validate(problem, params, x)
