import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_is_prior_plus_likelihood():
    x = models.gaussian_mixture.data()
    y = np.asarray(x["width"])
    weights, means, scale = np.array([0.2, 0.5, 0.3]), np.array([0.3, 1.0, 2.2]), 0.4
    c = np.arange(150) % 3
    expected = (
        stats.dirichlet.logpdf(weights, np.ones(3))
        + np.log(6.0)
        + stats.norm.logpdf(means, 1.0, 1.0).sum()
        + stats.halfnorm.logpdf(scale)
        + np.log(weights[c]).sum()
        + stats.norm.logpdf(y, means[c], scale).sum()
    )
    z = {"weights": weights, "means": means, "scale": scale, "assignments": c}
    actual = models.gaussian_mixture.log_joint(x, jax.tree.map(jnp.asarray, z))
    assert actual == pytest.approx(expected, rel=1e-12)


def gibbs(y, num_draws, rng):
    """Samples the mixture by turns, with a grid for the scale; returns draws of all latents."""
    weights, means, scale = np.full(3, 1 / 3), np.array([0.25, 1.35, 2.1]), 0.2
    grid = np.geomspace(0.12, 0.32, 400)
    draws = {"weights": [], "means": [], "scale": [], "probs": []}
    for _ in range(num_draws):
        probs = weights * np.exp(-0.5 * ((y[:, None] - means) / scale) ** 2)
        probs /= probs.sum(axis=1, keepdims=True)
        c = (rng.uniform(size=(len(y), 1)) > probs.cumsum(axis=1)).sum(axis=1)
        member = c[:, None] == np.arange(3)
        weights = rng.dirichlet(1.0 + member.sum(axis=0))
        precision = 1.0 + member.sum(axis=0) / scale**2
        means = (1.0 + y @ member / scale**2) / precision + rng.normal(size=3) / precision**0.5
        squares = np.sum((y - means[c]) ** 2)
        log_scale = -0.5 * grid**2 - len(y) * np.log(grid) - 0.5 * squares / grid**2
        scale = rng.choice(grid, p=special.softmax(log_scale + np.log(grid)))
        for name, value in zip(draws, (weights, means, scale, probs), strict=True):
            draws[name].append(value)
    return {name: np.array(values[500:]) for name, values in draws.items()}


def test_reference_equals_gibbs_sampling():
    reference = models.gaussian_mixture.reference()
    y = np.asarray(models.gaussian_mixture.data()["width"], float)
    draws = gibbs(y, 8_000, np.random.default_rng(0))
    for name, sd in reference.sd.items():
        difference = (draws[name].mean(axis=0) - reference.mean[name]) / sd
        np.testing.assert_allclose(difference, 0.0, atol=0.12)
        np.testing.assert_allclose(draws[name].std(axis=0) / sd, 1.0, atol=0.12)
    probs = reference.probs["assignments"]
    assert np.sum((probs > 0.1) & (probs < 0.9)) > 20
    np.testing.assert_allclose(draws["probs"].mean(axis=0), probs, atol=0.02)


def test_mixture_evidence_equals_importance_sampling():
    """Proposes log-normal, Gaussian and Dirichlet parameters with the reference moments."""
    reference = models.gaussian_mixture.reference()
    y = np.asarray(models.gaussian_mixture.data()["width"], float)
    rng = np.random.default_rng(1)
    centre, sd = reference.mean, {name: 1.2 * sd for name, sd in reference.sd.items()}
    means = rng.normal(centre["means"], sd["means"], size=(20_000, 3))
    relative = sd["scale"] / centre["scale"]
    scale = centre["scale"] * np.exp(relative * rng.normal(size=20_000))
    weights = rng.dirichlet(90.0 * centre["weights"], size=20_000)
    log_proposal = (
        stats.norm.logpdf(means, centre["means"], sd["means"]).sum(axis=1)
        + stats.lognorm.logpdf(scale, relative, scale=centre["scale"])
        + stats.dirichlet.logpdf(weights.T, 90.0 * centre["weights"])
    )
    log_prior = stats.norm.logpdf(means, 1.0, 1.0).sum(axis=1) + stats.halfnorm.logpdf(scale)
    log_prior += np.log(6.0) + np.log(2.0)
    likelihood = sum(
        weights[:, k, None] * stats.norm.pdf(y, means[:, k, None], scale[:, None]) for k in range(3)
    )
    log_weights = log_prior + np.log(likelihood).sum(axis=1) - log_proposal
    assert 1.0 / np.sum(special.softmax(log_weights) ** 2) > 2000.0
    log_evidence = special.logsumexp(log_weights) - np.log(20_000)
    assert log_evidence == pytest.approx(reference.log_evidence, abs=0.06)


@pytest.mark.usefixtures("x64")
def test_small_reference_equals_enumeration():
    x = models.gaussian_mixture.data_small()
    assignments = np.array(list(itertools.product(range(3), repeat=6)))
    log_joint = jax.jit(jax.vmap(models.gaussian_mixture.log_joint_small, in_axes=(None, 0)))
    log_probs = np.asarray(log_joint(x, {"assignments": jnp.asarray(assignments)}))
    reference = models.gaussian_mixture.reference_small()
    assert reference.log_evidence == pytest.approx(special.logsumexp(log_probs), rel=1e-12)
    marginals = [special.softmax(log_probs) @ (assignments == k) for k in range(3)]
    np.testing.assert_allclose(reference.probs["assignments"], np.stack(marginals, 1), rtol=1e-9)
