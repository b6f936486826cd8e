import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop(draw):
    x, z = models.topics.data(), draw("topics")
    words = np.asarray(x["words"])
    theta, phi, t = (np.asarray(z[name]) for name in ("theta", "phi", "t"))
    expected = sum(stats.dirichlet.logpdf(row, np.full(3, 0.7)) for row in theta)
    expected += sum(stats.dirichlet.logpdf(row, np.full(8, 0.5)) for row in phi)
    for m, i in itertools.product(range(4), range(12)):
        expected += np.log(theta[m, t[m, i]]) + np.log(phi[t[m, i], words[m, i]])
    assert jax.jit(models.topics.log_joint)(x, z) == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_topics_and_words_have_a_distribution():
    """Over all topics and words of a document of two words, the density sums to the prior's."""
    x = models.topics.data(num_documents=1, num_words=2, num_topics=2, vocabulary=3)
    theta, phi = jnp.asarray([[0.3, 0.7]]), jnp.asarray([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
    total = 0.0
    for values in itertools.product(range(2), range(2), range(3), range(3)):
        t, words = jnp.asarray([values[:2]]), jnp.asarray([values[2:]])
        z = {"theta": theta, "phi": phi, "t": t}
        total += np.exp(models.topics.log_joint(x | {"words": words}, z))
    log_prior = stats.dirichlet.logpdf(theta[0], np.full(2, 0.7))
    log_prior += sum(stats.dirichlet.logpdf(row, np.full(3, 0.5)) for row in phi)
    assert np.log(total) == pytest.approx(log_prior, rel=1e-12)


def test_words_are_drawn_from_the_mean_of_the_topics():
    """With many topics each word has probability 1/8, up to the spread of their mean."""
    words = models.topics.data(num_documents=2000, num_words=2, num_topics=1000)["words"]
    frequencies = np.bincount(np.asarray(words).reshape(-1), minlength=8) / words.size
    # Standard deviations: 0.0047 of the mean of 1000 Dirichlet draws, 0.0052 of 4000 words.
    np.testing.assert_allclose(frequencies, 1.0 / 8.0, atol=5 * 0.007)
