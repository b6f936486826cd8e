import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import models
from models.data import load

LATENTS = ("alpha_raw", "beta", "mu_alpha", "sigma_alpha", "sigma_y")


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_check_values():
    stored = load("radon")
    draws = {name: jnp.asarray(stored[f"draws_{name}"]) for name in LATENTS}
    actual = jax.jit(jax.vmap(models.radon.log_joint, in_axes=(None, 0)))(
        models.radon.data(), draws
    )
    np.testing.assert_allclose(actual, stored["check_log_joint"], rtol=1e-11)


def test_evidence_given_the_scales_equals_a_dense_gaussian():
    names = ("county", "log_uppm", "floor", "log_radon")
    x = {name: load("radon")[name][:300] for name in names}
    same_county = x["county"][:, None] == x["county"]
    fixed = np.stack([np.ones(300), x["log_uppm"], x["floor"]], axis=1)
    cov = 100.0 * fixed @ fixed.T + 0.2**2 * same_county + 0.7**2 * np.eye(300)
    expected = stats.multivariate_normal(np.zeros(300), cov).logpdf(x["log_radon"])
    assert models.radon.given_scales(x, 0.2, 0.7)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("x64")
def test_coefficients_given_the_scales_maximise_log_joint():
    _, mean, variance = models.radon.given_scales(load("radon"), 0.2, 0.7)
    x = models.radon.data()

    def log_joint(b):
        scales = {"sigma_alpha": 0.2, "sigma_y": 0.7}
        z = {"mu_alpha": b[0], "beta": b[1:3], "alpha_raw": b[3:], **scales}
        return models.radon.log_joint(x, z)

    np.testing.assert_allclose(jax.jit(jax.grad(log_joint))(jnp.asarray(mean)), 0.0, atol=1e-8)
    precision = -jax.jit(jax.hessian(log_joint))(jnp.asarray(mean))
    np.testing.assert_allclose(np.diag(np.linalg.inv(precision)), variance, rtol=1e-8)


def test_reference_equals_the_moments_of_the_draws():
    reference, stored = models.radon.reference(), load("radon")
    for name in LATENTS:
        difference = (reference.mean[name] - stored[f"mean_{name}"]) / reference.sd[name]
        np.testing.assert_allclose(difference, 0.0, atol=0.05)
        np.testing.assert_allclose(reference.sd[name] / stored[f"sd_{name}"], 1.0, atol=0.05)
