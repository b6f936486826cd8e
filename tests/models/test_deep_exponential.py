import itertools

import jax
import numpy as np
import pytest
from scipy import stats

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop(draw):
    x, z = models.deep_exponential.data(), draw("deep_exponential")
    counts, (w1, w2, z1, z2) = np.asarray(x["counts"]), map(np.asarray, jax.tree.leaves(z))
    shape = 0.5
    expected = sum(stats.gamma.logpdf(root, shape, scale=2.0).sum() for root in (w1, w2, z2))
    for n, k in itertools.product(range(5), range(3)):
        mean = z2[n, 0] * w2[0, k] + z2[n, 1] * w2[1, k]
        expected += stats.gamma.logpdf(z1[n, k], shape, scale=mean / shape)
    for n, d in itertools.product(range(5), range(16)):
        rate = z1[n, 0] * w1[0, d] + z1[n, 1] * w1[1, d] + z1[n, 2] * w1[2, d]
        expected += stats.poisson.logpmf(counts[n, d], rate)
    actual = jax.jit(models.deep_exponential.log_joint)(x, z)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_counts_are_the_ink_of_the_digits():
    from sklearn import datasets

    counts = np.asarray(models.deep_exponential.data(1797)["counts"])
    images = datasets.load_digits().images
    np.testing.assert_array_equal(counts.sum(axis=1), images.sum(axis=(1, 2)))
    np.testing.assert_array_equal(counts[:, 5], images[:, 2:4, 2:4].sum(axis=(1, 2)))
