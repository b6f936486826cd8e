"""Gaussian processes: the hyperparameters of one, through Gaussian noise and through counts."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import gamma, norm

from bbvi.supports import positive, real
from models.posteriors.stored import register_posterior


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
    "gp_regr",
    gp_regr,
    {"rho": ((), positive), "alpha": ((), positive), "sigma": ((), positive)},
    posteriordb="gp_pois_regr-gp_regr",
)
