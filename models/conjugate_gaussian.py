"""The mean of a multivariate Gaussian with known covariance: a correlated Gaussian posterior."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.stats import norm

import bbvi
from models.registry import Reference, Target, register


def log_joint(x, z):
    r"""A standard Gaussian prior and Gaussian observations with known covariance.

    .. math:: \log N(\mu; 0, I) + \sum_n \log N(y_n; \mu, L L^\top)

    Args:
        x: `observations` (N, D) and `noise_tril` (D, D), the lower Cholesky factor L.
        z: `mu` (D,).
    """
    residuals = x["observations"] - z["mu"][None, :]
    whitened = solve_triangular(x["noise_tril"], residuals.T, lower=True)
    log_det = jnp.log(jnp.diagonal(x["noise_tril"])).sum()
    log_likelihood = norm.logpdf(whitened).sum() - residuals.shape[0] * log_det
    return norm.logpdf(z["mu"]).sum() + log_likelihood


def _arrays():
    from sklearn import datasets

    iris = datasets.load_iris()
    standardised = (iris.data - iris.data.mean(axis=0)) / iris.data.std(axis=0)
    virginica = standardised[iris.target == 2]
    return {
        "observations": virginica,
        "noise_tril": np.linalg.cholesky(np.cov(virginica.T)),
    }


def data():
    """Returns the four measurements of 50 virginica, standardised over all three kinds of iris.

    Their sample covariance is taken as known.
    """
    return jax.tree.map(jnp.asarray, _arrays())


def mean_field():
    """Returns a Gaussian guide without correlations: right means, too small deviations."""
    return bbvi.MeanField({"mu": bbvi.Normal((4,))})


def full_rank():
    """Returns a Gaussian guide with all correlations, which contains the posterior."""
    return bbvi.FullRank({"mu": bbvi.Normal((4,))})


def low_rank():
    """Returns a Gaussian guide with a covariance of rank two plus a diagonal."""
    return bbvi.LowRank({"mu": bbvi.Normal((4,))}, rank=2)


def interactions(x):
    """All pairs: no entry of the precision of the noise is zero."""
    dim = x["noise_tril"].shape[0]
    return {("mu", "mu"): np.ones((dim, dim), bool)}


def posterior():
    r"""Returns mean (D,) and covariance (D, D) of the posterior.

    With :math:`\Sigma = L L^\top` they are :math:`V \Sigma^{-1} \sum_n y_n` and
    :math:`V = (I + N \Sigma^{-1})^{-1}`.
    """
    x = _arrays()
    y, noise_tril = x["observations"], x["noise_tril"]
    noise_precision = np.linalg.inv(noise_tril @ noise_tril.T)
    covariance = np.linalg.inv(np.eye(y.shape[1]) + len(y) * noise_precision)
    return covariance @ noise_precision @ y.sum(axis=0), covariance


def reference():
    """Evaluates log p(x, m) - log p(m | x) at the posterior mean m."""
    from scipy import stats

    x = _arrays()
    y, noise_tril = x["observations"], x["noise_tril"]
    mean, covariance = posterior()
    log_prior = stats.norm.logpdf(mean).sum()
    log_likelihood = stats.multivariate_normal(mean, noise_tril @ noise_tril.T).logpdf(y).sum()
    log_posterior = stats.multivariate_normal(mean, covariance).logpdf(mean)
    return Reference(
        how="closed form",
        log_evidence=float(log_prior + log_likelihood - log_posterior),
        mean={"mu": mean},
        sd={"mu": np.sqrt(np.diag(covariance))},
    )


register(
    Target(
        name="conjugate_gaussian",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field, "full_rank": full_rank, "low_rank": low_rank},
        reference=reference,
        interactions=interactions,
        source="Data: Fisher (1936), The Use of Multiple Measurements in Taxonomic Problems, "
        "as shipped with scikit-learn.",
    )
)
