import jax
import numpy as np
import pytest
from scipy import stats

import models

WRITINGS = [name for name in models.names() if name.startswith("wine_mixture")]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", WRITINGS)
def test_log_joint_equals_a_loop(name, draw):
    target = models.get(name)
    x, z = target.data(), draw(name)
    expected = stats.norm.logpdf(z["mu"], 0.0, 2.0).sum()
    for y, c in zip(x["measurements"], z["c"], strict=True):
        expected += np.log([3 / 6, 2 / 6, 1 / 6][c])
        expected += stats.multivariate_normal(z["mu"][c], np.eye(4)).logpdf(y)
    assert jax.jit(target.log_joint)(x, z) == pytest.approx(expected, rel=1e-12)


def test_data_are_standardised_wines_and_repeat():
    once = models.wine_mixture.data(num_data=178, num_features=13)["measurements"]
    np.testing.assert_allclose(np.mean(once, axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.std(once, axis=0), 1.0, atol=1e-6)
    twice = models.wine_mixture.data(num_data=356, num_features=13)["measurements"]
    np.testing.assert_array_equal(twice, np.concatenate([once, once]))
