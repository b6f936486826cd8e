import numpy as np
import pytest
from scipy import special, stats

import models


@pytest.fixture
def arrays(x64):
    x = models.breast_cancer.data()
    return np.asarray(x["features"]), np.asarray(x["labels"])


def log_density(arrays, w):
    """The log joint in NumPy, for weights `(n, 31)`."""
    features, labels = arrays
    log_likelihood = stats.bernoulli.logpmf(labels, special.expit(w @ features.T)).sum(axis=1)
    return stats.norm.logpdf(w).sum(axis=1) + log_likelihood


def test_features_are_standardised(arrays):
    features, labels = arrays
    assert features.shape == (569, 31)
    assert labels.sum() == 357
    np.testing.assert_array_equal(features[:, 0], 1.0)
    np.testing.assert_allclose(features[:, 1:].mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(features[:, 1:].std(axis=0), 1.0, rtol=1e-12)


def test_log_joint_is_prior_plus_likelihood(arrays):
    w = 0.1 * np.cos(np.arange(31.0))
    actual = models.breast_cancer.log_joint(models.breast_cancer.data(), {"w": w})
    assert actual == pytest.approx(log_density(arrays, w[None])[0], rel=1e-10)


def test_reference_equals_importance_sampling(arrays):
    """Proposes from a Student's t with the curvature of the log joint at the reference mean."""
    features, _ = arrays
    reference = models.breast_cancer.reference()
    mean, sd = reference.mean["w"], reference.sd["w"]
    probs = special.expit(features @ mean)
    precision = np.eye(31) + (features.T * (probs * (1.0 - probs))) @ features
    proposal = stats.multivariate_t(mean, np.linalg.inv(precision), df=20, seed=1)
    w = proposal.rvs(20_000)
    log_weights = log_density(arrays, w) - proposal.logpdf(w)
    log_evidence = special.logsumexp(log_weights) - np.log(len(w))
    weights = special.softmax(log_weights)
    assert 1.0 / np.sum(weights**2) > 3000.0  # Standard errors of 0.02 sd, or less.

    sampled_mean = weights @ w
    sampled_sd = np.sqrt(weights @ (w - sampled_mean) ** 2)
    np.testing.assert_allclose((sampled_mean - mean) / sd, 0.0, atol=0.08)
    np.testing.assert_allclose(sampled_sd / sd, 1.0, atol=0.08)
    assert log_evidence == pytest.approx(reference.log_evidence, abs=0.06)
