import itertools

import jax
import numpy as np
import pytest
from scipy import stats

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop_over_observed_cells(draw):
    x, z = models.panel.data(), draw("panel")
    values, a, b = np.asarray(x["values"]), np.asarray(z["individual"]), np.asarray(z["period"])
    expected = stats.norm.logpdf(a).sum() + stats.norm.logpdf(b).sum()
    expected += stats.halfnorm.logpdf(z["scale"])
    for i, t in itertools.product(range(8), range(6)):
        if not np.isnan(values[i, t]):
            expected += stats.norm.logpdf(values[i, t], a[i] + b[t], z["scale"])
    assert jax.jit(models.panel.log_joint)(x, z) == pytest.approx(expected, rel=1e-12)


def test_missing_cells_are_nan_and_a_third_of_all():
    x = models.panel.data(100, 100)
    np.testing.assert_array_equal(np.isnan(x["values"]), ~x["observed"])
    # Five standard deviations of the share of 10,000 cells.
    assert np.mean(x["observed"]) == pytest.approx(2.0 / 3.0, abs=0.024)
