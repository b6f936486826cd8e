"""The log evidence by importance sampling, against models whose evidence is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from scipy import stats
from scipy.special import betaln

import bbvi
from bbvi.diagnostics import log_evidence


def held(log_joint, guide, phi, x, **options):
    """A result that stays at the parameters ``phi``."""
    return bbvi.fit(
        log_joint,
        guide,
        x,
        init_params=phi,
        optimizer=optax.sgd(0.0),
        estimator=bbvi.ScoreFunction(2),
        num_steps=1,
        progress=False,
        **options,
    )


def conjugate(x, z):
    """mu ~ N(0, 1), x_i ~ N(mu, 1)."""
    return norm.logpdf(z["mu"]) + norm.logpdf(x, z["mu"]).sum()


X = np.array([1.8, 2.2, 2.0, 2.4])
EXACT = stats.multivariate_normal(np.zeros(4), np.eye(4) + 1).logpdf(X)
GUIDE = bbvi.MeanField({"mu": bbvi.Normal()})


@functools.cache
def wide():
    """A guide 1.3 times as wide as the posterior, and half a deviation off."""
    mean, sd = X.sum() / 5, 5**-0.5
    return held(conjugate, GUIDE, GUIDE.params_at({"mu": mean + 0.5 * sd}, 1.3 * sd), X)


def relative_variance(mean, sd, at, scale):
    """Variance of w / E[w] where the posterior is N(mean, sd) and the draws are N(at, scale)."""
    grid = np.linspace(mean - 15 * sd, mean + 15 * sd, 100_001)
    p, q = stats.norm(mean, sd).logpdf(grid), stats.norm(at, scale).logpdf(grid)
    return np.exp(2 * p - q).sum() * (grid[1] - grid[0]) - 1


def test_exact_evidence_and_its_error():
    """Over 200 estimates: unbiased, with the stated error, the effective sample size by theory."""
    num_samples, repeats = 1000, 200
    estimates = [
        wide().log_evidence(key, num_samples)
        for key in jax.random.split(jax.random.key(0), repeats)
    ]
    values, errors = (
        np.array([getattr(e, n) for e in estimates]) for n in ("value", "standard_error")
    )
    scores = (values - EXACT) / errors
    assert abs(scores.mean()) < 4.5 / np.sqrt(repeats)
    assert abs(scores.var() - 1) < 4.5 * np.sqrt(2 / repeats)
    mean, sd = X.sum() / 5, 5**-0.5
    spread = relative_variance(mean, sd, mean + 0.5 * sd, 1.3 * sd)
    np.testing.assert_allclose(errors.mean(), np.sqrt(spread / num_samples), rtol=0.02)
    sizes = [e.effective_sample_size for e in estimates]
    np.testing.assert_allclose(np.mean(sizes), num_samples / (1 + spread), rtol=0.02)
    assert all(e.num_components == 1 and e.khat < 0.7 for e in estimates)
    assert values.mean() > wide().elbo(jax.random.key(1), 10_000).value + 0.1


def test_evidence_of_the_posterior_has_no_error():
    guide = GUIDE.params_at({"mu": X.sum() / 5}, 5**-0.5)
    evidence = held(conjugate, GUIDE, guide, X).log_evidence(jax.random.key(0), 1000)
    assert evidence.value == pytest.approx(EXACT, abs=1e-4)
    assert evidence.standard_error < 1e-5
    assert evidence.effective_sample_size == pytest.approx(1000, rel=1e-4)


def test_learned_parameters_count():
    """A beta-Bernoulli model whose prior has a learned parameter."""

    def log_joint(x, z, theta):  # p ~ Beta(theta, 1)
        p = z["p"]
        prior = jnp.log(theta) + (theta - 1) * jnp.log(p)
        return prior + x.sum() * jnp.log(p) + (x.size - x.sum()) * jnp.log1p(-p)

    x = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    guide = bbvi.MeanField({"p": bbvi.Normal(support=bbvi.supports.unit_interval)})
    phi = guide.params_at({"p": 0.6}, 0.9)
    result = held(log_joint, guide, phi, x, model_params=jnp.asarray(2.0))
    evidence = result.log_evidence(jax.random.key(0), 5000)
    exact = betaln(2 + 3, 1 + 2) - betaln(2, 1)
    assert abs(evidence.value - exact) < 4.5 * evidence.standard_error
    assert 0 < evidence.standard_error < 0.02


# Components.

NUM = 500


def local(x, z):
    """z_n ~ N(0, 1), x_n ~ N(z_n, 1): no term reads two of them."""
    return norm.logpdf(z["z"]).sum() + norm.logpdf(x, z["z"]).sum()


@functools.cache
def local_result():
    """A guide with deviations 1.3 times the posterior's."""
    x = np.random.default_rng(0).normal(0.0, np.sqrt(2.0), NUM)
    guide = bbvi.MeanField({"z": bbvi.Normal((NUM,))})
    return held(local, guide, guide.params_at({"z": x / 2}, 1.3 / np.sqrt(2)), x)


def test_components_have_weights_of_their_own():
    """500 latents: joint weights are worth about one draw, those of each latent most of them."""
    result, num_samples = local_result(), 2000
    exact = stats.norm(0, np.sqrt(2)).logpdf(np.asarray(result.x, np.float64)).sum()
    evidence = result.log_evidence(jax.random.key(0), num_samples)
    assert evidence.num_components == NUM
    spread = relative_variance(0.0, np.sqrt(0.5), 0.0, 1.3 * np.sqrt(0.5))
    wanted = np.sqrt(NUM * spread / num_samples)
    np.testing.assert_allclose(evidence.standard_error, wanted, rtol=0.1)
    assert abs(evidence.value - exact) < 4.5 * evidence.standard_error
    assert evidence.effective_sample_size > 0.8 * num_samples
    assert evidence.khat < 0.7

    together = log_evidence(result.log_weights(jax.random.key(0), num_samples)[:, None])
    assert together.effective_sample_size < 4
    assert together.khat > 0.7
    assert exact - together.value > 10 * evidence.standard_error


def test_errors_of_many_components_are_calibrated():
    result, repeats = local_result(), 100
    exact = stats.norm(0, np.sqrt(2)).logpdf(np.asarray(result.x, np.float64)).sum()
    keys = jax.random.split(jax.random.key(5), repeats)
    estimates = [result.log_evidence(key, 1000) for key in keys]
    # Low by half the squared error, as the docstring says.
    scores = np.array(
        [(e.value - exact) / e.standard_error + e.standard_error / 2 for e in estimates]
    )
    assert abs(scores.mean()) < 4.5 / np.sqrt(repeats)
    assert abs(scores.var() - 1) < 4.5 * np.sqrt(2 / repeats)


# Other proposals.


def test_the_prior_as_proposal():
    """The naive average of the likelihood: right, with five times the error of a fitted guide's."""
    num_samples = 20_000
    prior = GUIDE, GUIDE.params_at({"mu": 0.0}, 1.0)
    naive = wide().log_evidence(jax.random.key(0), num_samples, proposal=prior)
    fitted = wide().log_evidence(jax.random.key(0), num_samples)
    assert abs(naive.value - EXACT) < 4.5 * naive.standard_error
    mean, sd = X.sum() / 5, 5**-0.5
    spreads = [
        relative_variance(mean, sd, 0.0, 1.0),
        relative_variance(mean, sd, mean + 0.5 * sd, 1.3 * sd),
    ]
    ratio = np.sqrt(spreads[0] / spreads[1])
    assert ratio > 5
    assert naive.standard_error / fitted.standard_error == pytest.approx(ratio, rel=0.1)
    full_rank = bbvi.FullRank({"mu": bbvi.Normal()})
    other = full_rank, full_rank.params_at({"mu": jnp.asarray(1.6)}, 0.5)
    evidence = wide().log_evidence(jax.random.key(0), num_samples, proposal=other)
    assert abs(evidence.value - EXACT) < 4.5 * evidence.standard_error


# Errors.


def test_proposals_are_checked():
    result, key = wide(), jax.random.key(0)
    with pytest.raises(
        TypeError, match=r"proposal must be a guide and its parameters, \(guide, gu"
    ):
        result.log_evidence(key, proposal=GUIDE)
    other = bbvi.MeanField({"mu": bbvi.Normal((2,))})
    phi = other.params_at({"mu": jnp.zeros(2)}, 1.0)
    with pytest.raises(
        ValueError, match=r"the parameters of the proposal are {normal: float\d+\[2, 2"
    ):
        result.log_evidence(key, proposal=(GUIDE, phi))
    named = bbvi.MeanField({"m": bbvi.Normal()})
    with pytest.raises(ValueError, match="log_joint looks up 'mu', which there is not"):
        result.log_evidence(key, proposal=(named, named.params_at({"m": jnp.zeros(())}, 1.0)))


def test_draws_are_checked():
    with pytest.raises(ValueError, match=r"with S >= 100, got shape \(99, 1\)"):
        wide().log_evidence(jax.random.key(0), 99)
    with pytest.raises(TypeError, match="key must be one typed key"):
        wide().log_evidence(0)
