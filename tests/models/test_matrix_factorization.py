import jax
import numpy as np
import pytest
from scipy import stats

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop(draw):
    x, z = models.matrix_factorization.data(), draw("matrix_factorization")
    u, v, bias = (np.asarray(z[name]) for name in ("u", "v", "bias"))
    expected = sum(stats.norm.logpdf(latent).sum() for latent in (u, v, bias))
    for user, item, rating in zip(x["user"], x["item"], x["rating"], strict=True):
        expected += stats.norm.logpdf(rating, u[user] @ v[item] + bias[user], 0.5)
    actual = jax.jit(models.matrix_factorization.log_joint)(x, z)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_no_rating_is_given_twice():
    x = models.matrix_factorization.data(num_users=50, num_items=9, ratings_per_user=7)
    pairs = np.stack([x["user"], x["item"]], axis=1)
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 350
