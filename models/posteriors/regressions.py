"""Regressions: two linear ones on raw units, a logistic one and a Gaussian process."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import cauchy, gamma, norm

from bbvi.supports import positive, real
from models.posteriors.stored import register_posterior


def nes1988(x, z):
    r"""A linear regression of party identification with flat priors.

    .. math:: \sum_n \log N(y_n; x_n^\top \beta, \sigma)

    Args:
        x: `X` (1113, 9), of which the first column is one, and `y` (1113,).
        z: `beta` (9,) and `sigma` () > 0.
    """
    return norm.logpdf(x["y"], x["X"] @ z["beta"], z["sigma"]).sum()


def kidscore_momhsiq(x, z):
    r"""A linear regression of children's test scores, whose intercept is far from the data.

    .. math:: \log p(\sigma) + \sum_n \log N(y_n; x_n^\top \beta, \sigma)

    The prior of :math:`\sigma` is half-Cauchy(2.5), that of :math:`\beta` flat. One covariate has
    mean 100, so that its slope and the intercept have a correlation of -0.9.

    Args:
        x: `X` (434, 3) of ones, mother's high school and mother's IQ, and `y` (434,).
        z: `beta` (3,) and `sigma` () > 0.
    """
    log_prior = cauchy.logpdf(z["sigma"], 0.0, 2.5) + jnp.log(2.0)
    return log_prior + norm.logpdf(x["y"], x["X"] @ z["beta"], z["sigma"]).sum()


def wells_daae_c(x, z):
    r"""A logistic regression of changing to another well, with flat priors.

    .. math:: \sum_n \log \mathrm{Bernoulli}(y_n; \mathrm{logit} = \alpha + x_n^\top \beta)

    Args:
        x: `X` (3020, 5) and `y` (3020,), zero or one.
        z: `alpha` () and `beta` (5,).
    """
    logits = z["alpha"] + x["X"] @ z["beta"]
    return (x["y"] * logits - jax.nn.softplus(logits)).sum()


def gp_regr(x, z):
    r"""The hyperparameters of a Gaussian process, seen through Gaussian noise.

    .. math::
        \log p(z) + \log N(y; 0, K), \quad
        K_{ij} = \alpha^2 e^{-(x_i - x_j)^2 / 2 \rho^2} + \sigma 1_{i=j}

    The priors are :math:`\rho \sim` Gamma(25, 4) with rate 4, :math:`\alpha` half-normal(2) and,
    for the variance :math:`\sigma` of the noise, half-normal(1).

    Args:
        x: `x` (11,) and `y` (11,).
        z: `rho` (), `alpha` () and `sigma` (), all positive.
    """
    y, distance = x["y"], (x["x"][:, None] - x["x"][None, :]) / z["rho"]
    covariance = z["alpha"] ** 2 * jnp.exp(-0.5 * distance**2)
    triangle = jnp.linalg.cholesky(covariance + z["sigma"] * jnp.eye(y.size))
    whitened = jax.scipy.linalg.solve_triangular(triangle, y, lower=True)
    return (
        gamma.logpdf(z["rho"], 25.0, scale=0.25)
        + norm.logpdf(z["alpha"], 0.0, 2.0)
        + norm.logpdf(z["sigma"])
        + 2.0 * jnp.log(2.0)
        + norm.logpdf(whitened).sum()
        - jnp.log(jnp.diagonal(triangle)).sum()
    )


register_posterior(
    "nes1988",
    nes1988,
    {"beta": ((9,), real), "sigma": ((), positive)},
    posteriordb="nes1988-nes",
)
register_posterior(
    "kidscore_momhsiq",
    kidscore_momhsiq,
    {"beta": ((3,), real), "sigma": ((), positive)},
    posteriordb="kidiq-kidscore_momhsiq",
)
register_posterior(
    "wells_daae_c",
    wells_daae_c,
    {"alpha": ((), real), "beta": ((5,), real)},
    posteriordb="wells_data-wells_daae_c_model",
)
register_posterior(
    "gp_regr",
    gp_regr,
    {"rho": ((), positive), "alpha": ((), positive), "sigma": ((), positive)},
    posteriordb="gp_pois_regr-gp_regr",
)
