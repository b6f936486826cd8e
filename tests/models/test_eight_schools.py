import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import models
from models.data import load

LATENTS = ("theta_trans", "mu", "tau")


@pytest.fixture
def checks(x64):
    """Five draws of posteriordb with their log joint."""
    stored = load("eight_schools")
    draws = {name: jnp.asarray(stored[f"draws_{name}"]) for name in LATENTS}
    return draws, stored["check_log_joint"]


def test_log_joint_noncentered_equals_check_values(checks):
    draws, expected = checks
    x = models.eight_schools.data()
    log_joint = models.eight_schools.log_joint_noncentered
    actual = jax.jit(jax.vmap(log_joint, in_axes=(None, 0)))(x, draws)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_log_joint_centered_differs_by_the_jacobian(checks):
    draws, expected = checks
    mu, tau = draws["mu"], draws["tau"]
    theta = mu[:, None] + tau[:, None] * draws["theta_trans"]
    centered = {"theta": theta, "mu": mu, "tau": tau}
    x = models.eight_schools.data()
    log_joint = models.eight_schools.log_joint_centered
    actual = jax.jit(jax.vmap(log_joint, in_axes=(None, 0)))(x, centered)
    np.testing.assert_allclose(actual, expected - 8.0 * np.log(tau), rtol=1e-10)


def test_reference_equals_the_moments_of_posteriordb():
    reference, stored = models.eight_schools.reference_noncentered(), load("eight_schools")
    for name in LATENTS:
        difference = (reference.mean[name] - stored[f"mean_{name}"]) / reference.sd[name]
        np.testing.assert_allclose(difference, 0.0, atol=0.05)
        np.testing.assert_allclose(reference.sd[name] / stored[f"sd_{name}"], 1.0, atol=0.05)


def test_references_agree_on_what_the_parametrisations_share():
    centered = models.eight_schools.reference_centered()
    noncentered = models.eight_schools.reference_noncentered()
    assert centered.log_evidence == noncentered.log_evidence
    for name in ("mu", "tau"):
        assert centered.mean[name] == noncentered.mean[name]
        assert centered.sd[name] == noncentered.sd[name]


def test_centered_reference_equals_nested_quadrature():
    """Integrates mu and tau on a grid, with the effects integrated out of the log joint."""
    stored = load("eight_schools")
    y, sigma = stored["y"], stored["sigma"]
    mu = np.linspace(-35.0, 45.0, 401)[:, None, None]
    tau = np.geomspace(1e-4, 400.0, 1201)[None, :, None]
    log_prior = stats.norm.logpdf(mu, 0.0, 5.0) + stats.halfcauchy.logpdf(tau, 0.0, 5.0)
    log_likelihood = stats.norm.logpdf(y, mu, np.hypot(sigma, tau)).sum(axis=2)
    density = np.exp(log_prior[..., 0] + log_likelihood) * tau[..., 0]

    def integral(values):
        rows = integrate.simpson(values * density, x=np.log(tau.ravel()), axis=1)
        return integrate.simpson(rows, x=mu.ravel())

    reference = models.eight_schools.reference_centered()
    evidence = integral(1.0)
    assert reference.log_evidence == pytest.approx(np.log(evidence), abs=1e-4)
    shrunk = (y * tau**2 + mu * sigma**2) / (tau**2 + sigma**2)
    for school in range(8):
        mean = integral(shrunk[..., school]) / evidence
        variance = integral((tau**2 * sigma**2 / (tau**2 + sigma**2))[..., school]) / evidence
        second = integral(shrunk[..., school] ** 2) / evidence
        sd = np.sqrt(variance + second - mean**2)
        assert reference.mean["theta"][school] == pytest.approx(mean, rel=1e-3)
        assert reference.sd["theta"][school] == pytest.approx(sd, rel=1e-3)
