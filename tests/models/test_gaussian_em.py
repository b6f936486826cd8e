import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import models


@pytest.fixture
def solution(x64):
    reference = models.gaussian_em.reference()
    return models.gaussian_em.data(), jax.tree.map(jnp.asarray, dict(reference.model_params))


@jax.jit
def log_likelihood(x, theta):
    """log p(x; theta), with the latents integrated out."""
    loadings, residuals = theta["loadings"], x["measurements"] - theta["mean"][None, :]
    cov = loadings @ loadings.T + jnp.exp(2.0 * theta["log_noise"]) * jnp.eye(4)
    quadratic = jnp.sum(residuals * jnp.linalg.solve(cov, residuals.T).T)
    log_det = jnp.linalg.slogdet(cov)[1]
    return -0.5 * (len(residuals) * (4.0 * jnp.log(2.0 * jnp.pi) + log_det) + quadratic)


def test_reference_is_a_stationary_point_of_the_likelihood(solution):
    x, theta = solution
    value, slope = jax.value_and_grad(log_likelihood, argnums=1)(x, theta)
    assert models.gaussian_em.reference().log_evidence == pytest.approx(float(value), rel=1e-12)
    for leaf in jax.tree.leaves(slope):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-8)


@pytest.mark.parametrize("name", ["loadings", "mean", "log_noise"])
def test_other_parameters_are_less_likely(solution, name):
    x, theta = solution
    rng = np.random.default_rng(0)
    best = float(log_likelihood(x, theta))
    for _ in range(5):
        moved = theta[name] + 0.1 * rng.normal(size=theta[name].shape)
        assert log_likelihood(x, theta | {name: moved}) < best - 1e-3


def test_joint_over_posterior_is_the_evidence(solution):
    """log p(x, u) - log p(u | x) = log p(x) for any u."""
    x, theta = solution
    reference = models.gaussian_em.reference()
    u = np.random.default_rng(0).normal(size=(150, 2))
    log_posterior = stats.norm.logpdf(u, reference.mean["u"], reference.sd["u"]).sum()
    log_joint = models.gaussian_em.log_joint(x, {"u": jnp.asarray(u)}, theta)
    assert log_joint - log_posterior == pytest.approx(reference.log_evidence, rel=1e-10)
