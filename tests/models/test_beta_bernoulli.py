import numpy as np
import pytest
from scipy import integrate, stats

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_is_prior_plus_likelihood():
    x = models.beta_bernoulli.data()
    expected = stats.beta.logpdf(0.3, 2.0, 2.0) + 18 * np.log(0.3) + 27 * np.log(0.7)
    assert models.beta_bernoulli.log_joint(x, {"p": 0.3}) == pytest.approx(expected, rel=1e-12)


def test_reference_equals_quadrature():
    def moment(power):
        def integrand(p):
            return p**power * 6.0 * p ** (1 + 18) * (1.0 - p) ** (1 + 27)

        return integrate.quad(integrand, 0.0, 1.0, epsabs=0.0, epsrel=1e-12)[0]

    reference = models.beta_bernoulli.reference()
    mean = moment(1) / moment(0)
    assert reference.log_evidence == pytest.approx(np.log(moment(0)), rel=1e-10)
    assert reference.mean["p"] == pytest.approx(mean, rel=1e-10)
    assert reference.sd["p"] == pytest.approx(np.sqrt(moment(2) / moment(0) - mean**2), rel=1e-8)
