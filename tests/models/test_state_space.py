import jax
import numpy as np
import pytest
from scipy import stats

import models

WRITINGS = ("state_space_loop", "state_space_scan")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", WRITINGS)
def test_log_joint_equals_one_in_arrays(name, draw):
    target = models.get(name)
    x, z = target.data(), draw(name)
    walk = np.append(z["s0"], z["s"])
    expected = (
        stats.norm.logpdf(walk[0], 10.0, 2.0)
        + stats.norm.logpdf(walk[1:], walk[:-1], 0.383).sum()
        + stats.norm.logpdf(x["flow"], walk[1:], 1.229).sum()
    )
    assert jax.jit(target.log_joint)(x, z) == pytest.approx(expected, rel=1e-12)


def test_reference_equals_conditioning_of_the_joint_gaussian():
    """States and data are jointly Gaussian: cov(s_t, s_u) = v^2 + w^2 min(t, u)."""
    y = np.asarray(models.state_space._arrays()["flow"])
    time = np.arange(21)
    prior = 2.0**2 + 0.383**2 * np.minimum(time[:, None], time)
    seen = prior[1:, 1:] + 1.229**2 * np.eye(20)
    gain = prior[:, 1:] @ np.linalg.inv(seen)
    mean = 10.0 + gain @ (y - 10.0)
    sd = np.sqrt(np.diag(prior - gain @ prior[1:, :]))

    reference = models.state_space.reference()
    evidence = stats.multivariate_normal(np.full(20, 10.0), seen).logpdf(y)
    assert reference.log_evidence == pytest.approx(evidence, rel=1e-12)
    np.testing.assert_allclose(np.append(reference.mean["s0"], reference.mean["s"]), mean)
    np.testing.assert_allclose(np.append(reference.sd["s0"], reference.sd["s"]), sd)
