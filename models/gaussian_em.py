"""Probabilistic principal components of the irises: latents with learned parameters."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Reference, Target, register

NUM_COMPONENTS = 2


def log_joint(x, z, theta):
    r"""One latent pair for each flower, and a linear Gaussian likelihood.

    .. math:: \sum_n \log N(u_n; 0, I) + \log N(y_n; W u_n + m, \sigma^2 I)

    Args:
        x: `measurements` (150, 4).
        z: `u` (150, 2).
        theta: `loadings` W (4, 2), `mean` m (4,) and `log_noise` log sigma ().
    """
    fitted = z["u"] @ theta["loadings"].T + theta["mean"][None, :]
    log_likelihood = norm.logpdf(x["measurements"], fitted, jnp.exp(theta["log_noise"])).sum()
    return norm.logpdf(z["u"]).sum() + log_likelihood


def _measurements():
    from sklearn import datasets

    return datasets.load_iris().data


def data():
    """Returns the four measurements of 150 irises in cm."""
    return {"measurements": jnp.asarray(_measurements())}


def model_params():
    """Returns a starting value: small unequal loadings, mean zero, noise one."""
    loadings = 0.1 * np.cos(np.arange(4.0 * NUM_COMPONENTS)).reshape(4, NUM_COMPONENTS)
    return {
        "loadings": jnp.asarray(loadings),
        "mean": jnp.zeros(4),
        "log_noise": jnp.asarray(0.0),
    }


def mean_field():
    """Returns an independent Gaussian guide.

    It contains the posterior if the columns of W are orthogonal; as W can be rotated freely, the
    largest ELBO over theta still equals the largest log likelihood.
    """
    return bbvi.MeanField({"u": bbvi.Normal((150, NUM_COMPONENTS))})


def reference():
    r"""Maximises log p(x; theta) in closed form.

    The sample covariance has eigenvalues :math:`l_1 \ge \dots \ge l_D` and eigenvectors V. With
    K components, :math:`\sigma^2` is the mean of the last D - K eigenvalues, m the sample mean,
    :math:`W = V_K (\Lambda_K - \sigma^2 I)^{1/2}` up to a rotation, and the maximum is

    .. math:: -\frac N2 (D \log 2\pi + \sum_{i \le K} \log l_i + (D - K) \log \sigma^2 + D)

    Mean and deviation of u are those of the posterior at this W, which has diagonal covariance.

    Source: Tipping and Bishop (1999), Probabilistic Principal Component Analysis.
    """
    y = _measurements()
    num_data, dim = y.shape
    values, vectors = np.linalg.eigh(np.cov(y.T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[NUM_COMPONENTS:].mean()
    kept = values[:NUM_COMPONENTS]
    loadings = vectors[:, :NUM_COMPONENTS] * np.sqrt(kept - noise)
    log_det = np.log(kept).sum() + (dim - NUM_COMPONENTS) * np.log(noise)
    sd = np.sqrt(noise / kept)
    return Reference(
        how="closed form; loadings and u up to one rotation of both",
        log_evidence=float(-0.5 * num_data * (dim * np.log(2.0 * np.pi) + log_det + dim)),
        mean={"u": (y - y.mean(axis=0)) @ loadings / kept},
        sd={"u": np.broadcast_to(sd, (num_data, NUM_COMPONENTS))},
        model_params={
            "loadings": loadings,
            "mean": y.mean(axis=0),
            "log_noise": 0.5 * np.log(noise),
        },
    )


register(
    Target(
        name="gaussian_em",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        reference=reference,
        source="Model: Tipping and Bishop (1999), Probabilistic Principal Component Analysis. "
        "Data: Fisher (1936), The Use of Multiple Measurements in Taxonomic Problems, as shipped "
        "with scikit-learn.",
        model_params=model_params,
    )
)
