import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import models


@pytest.fixture
def arrays(x64):
    x = models.conjugate_gaussian.data()
    noise_tril = np.asarray(x["noise_tril"])
    return np.asarray(x["observations"]), noise_tril @ noise_tril.T


@pytest.mark.usefixtures("x64")
def test_log_joint_is_prior_plus_likelihood(arrays):
    y, noise = arrays
    mu = np.array([0.5, -0.3, 1.0, 1.2])
    expected = stats.norm.logpdf(mu).sum() + stats.multivariate_normal(mu, noise).logpdf(y).sum()
    actual = models.conjugate_gaussian.log_joint(models.conjugate_gaussian.data(), {"mu": mu})
    assert actual == pytest.approx(expected, rel=1e-12)


def test_evidence_equals_the_density_of_all_observations_at_once(arrays):
    y, noise = arrays
    cov = np.kron(np.eye(len(y)), noise) + np.kron(np.ones((len(y), len(y))), np.eye(4))
    expected = stats.multivariate_normal(np.zeros(y.size), cov).logpdf(y.ravel())
    assert models.conjugate_gaussian.reference().log_evidence == pytest.approx(expected, rel=1e-10)


@pytest.mark.usefixtures("x64")
def test_posterior_has_the_slope_and_curvature_of_log_joint():
    mean, covariance = models.conjugate_gaussian.posterior()
    x = models.conjugate_gaussian.data()

    def log_joint(mu):
        return models.conjugate_gaussian.log_joint(x, {"mu": mu})

    slope = jax.jit(jax.grad(log_joint))(jnp.asarray(mean))
    precision = -jax.jit(jax.hessian(log_joint))(jnp.asarray(mean))
    np.testing.assert_allclose(slope, 0.0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.inv(precision), covariance, rtol=1e-9)
