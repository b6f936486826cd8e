import numpy as np
import pytest
from scipy import special, stats

import models


def test_reference_satisfies_the_symmetry_of_the_logistic_function():
    """sigma(w) + sigma(-w) = 1 gives evidence 1/2 and E w^2 = 1; Stein's identity the mean."""
    reference = models.toy_logistic.reference()
    mean, sd = reference.mean["w"], reference.sd["w"]
    assert reference.log_evidence == pytest.approx(-np.log(2.0), rel=1e-12)
    assert mean**2 + sd**2 == pytest.approx(1.0, rel=1e-10)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    slope = special.expit(nodes) * special.expit(-nodes)
    assert mean == pytest.approx(2.0 * weights @ slope / weights.sum(), rel=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_log_joint_is_prior_plus_likelihood(label):
    x = {"feature": 1.5, "label": label}
    expected = stats.norm.logpdf(-0.7) + stats.bernoulli.logpmf(label, special.expit(-0.7 * 1.5))
    assert models.toy_logistic.log_joint(x, {"w": -0.7}) == pytest.approx(expected, rel=1e-12)
