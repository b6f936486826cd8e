"""Gaussian processes, seen through Gaussian noise, through counts and with noise that varies."""

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jax.scipy.stats import gamma, norm, t

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


def gp_pois_regr(x, z):
    r"""Counts whose log rates are a Gaussian process, in coordinates that are white a priori.

    .. math::
        \log p(z) + \sum_n \log \mathrm{Poisson}(k_n; e^{f_n}), \quad
        f = L \tilde f, \quad L L^\top = K, \quad
        K_{ij} = \alpha^2 e^{-(x_i - x_j)^2 / 2 \rho^2} + 10^{-10} 1_{i=j}

    The priors are :math:`\rho \sim` Gamma(25, 4) with rate 4, :math:`\alpha` half-normal(2) and
    :math:`\tilde f_n` standard normal.

    Args:
        x: `x` (11,) and counts `k` (11,).
        z: `rho` () and `alpha` (), both positive, and `f_tilde` (11,).
    """
    variance, distance = z["alpha"] ** 2, (x["x"][:, None] - x["x"][None, :]) / z["rho"]
    covariance = variance * jnp.exp(-0.5 * distance**2)
    # The second is the larger one in single precision only, which may round so much away.
    jitter = jnp.maximum(1e-10, len(covariance) * jnp.finfo(covariance.dtype).eps * variance)
    triangle = jnp.linalg.cholesky(covariance + jitter * jnp.eye(len(covariance)))
    log_rates = triangle @ z["f_tilde"]
    return (
        gamma.logpdf(z["rho"], 25.0, scale=0.25)
        + norm.logpdf(z["alpha"], 0.0, 2.0)
        + jnp.log(2.0)
        + norm.logpdf(z["f_tilde"]).sum()
        + (x["k"] * log_rates - jnp.exp(log_rates) - gammaln(x["k"] + 1.0)).sum()
    )


def _process(x, z, kind):
    r"""Returns one of the two processes of `accel_gp` (133,), and the log prior of its latents.

    .. math:: f_n = \sum_j \phi_j(x_n) \sqrt{S(\omega_j)} w_j, \quad
        S(\omega) = \sqrt{2 \pi} s^2 \ell e^{-\omega^2 \ell^2 / 2}

    The squared exponential covariance with deviation s and length :math:`\ell`, approximately.

    Reference: Solin and Särkkä (2020), Hilbert Space Methods for Reduced-Rank Gaussian Process
    Regression.
    """
    scale, length, weights = (z[f"{latent}{kind}_1"] for latent in ("sdgp", "lscale", "zgp"))
    exponent = -0.5 * (x[f"slambda{kind}_1"] * length) ** 2
    log_density = 0.5 * jnp.log(2.0 * jnp.pi) + jnp.log(length) + exponent
    values = x[f"Xgp{kind}_1"] @ (scale * jnp.exp(0.5 * log_density) * weights)
    log_prior = (
        t.logpdf(scale, 3.0, 0.0, 36.0)
        + jnp.log(2.0)
        # The reciprocal of an inverse gamma variable is gamma.
        + gamma.logpdf(1.0 / length, 1.124909, scale=1.0 / 0.0177)
        - 2.0 * jnp.log(length)
        + norm.logpdf(weights).sum()
    )
    return values, log_prior


def accel_gp(x, z):
    r"""A head's acceleration in a crash: mean and log deviation are two Gaussian processes.

    .. math:: \log p(z) + \sum_n \log N(y_n; \mu_n, \sigma_n), \quad
        \mu = a + f, \quad \log \sigma = b + g

    Each process is a sum of eigenfunctions of the Laplacian. The priors are Student's t with three
    degrees of freedom for the intercepts a (location -13, scale 36) and b (scale 10), and its half
    with scale 36 for the deviation of f and of g, inverse gamma(1.124909, 0.0177) for their
    lengths, and standard normal for their weights.

    Args:
        x: `y` (133,), eigenfunctions `Xgp_1` (133, 40) and `Xgp_sigma_1` (133, 20), and the roots
            `slambda_1` (40,) and `slambda_sigma_1` (20,) of their eigenvalues.
        z: `Intercept` (), `sdgp_1` (), `lscale_1` () and `zgp_1` (40,) of the mean, and
            `Intercept_sigma`, `sdgp_sigma_1`, `lscale_sigma_1` and `zgp_sigma_1` (20,) of the log
            deviation; deviations and lengths are positive.
    """
    mean, log_prior = _process(x, z, "")
    log_sd, log_prior_of_sd = _process(x, z, "_sigma")
    mean, log_sd = z["Intercept"] + mean, z["Intercept_sigma"] + log_sd
    return (
        t.logpdf(z["Intercept"], 3.0, -13.0, 36.0)
        + t.logpdf(z["Intercept_sigma"], 3.0, 0.0, 10.0)
        + log_prior
        + log_prior_of_sd
        + norm.logpdf(x["y"], mean, jnp.exp(log_sd)).sum()
    )


register_posterior(
    "gp_regr",
    gp_regr,
    {"rho": ((), positive), "alpha": ((), positive), "sigma": ((), positive)},
    posteriordb="gp_pois_regr-gp_regr",
)
register_posterior(
    "gp_pois_regr",
    gp_pois_regr,
    {"rho": ((), positive), "alpha": ((), positive), "f_tilde": ((11,), real)},
    posteriordb="gp_pois_regr-gp_pois_regr",
)
register_posterior(
    "accel_gp",
    accel_gp,
    {
        "Intercept": ((), real),
        "sdgp_1": ((), positive),
        "lscale_1": ((), positive),
        "zgp_1": ((40,), real),
        "Intercept_sigma": ((), real),
        "sdgp_sigma_1": ((), positive),
        "lscale_sigma_1": ((), positive),
        "zgp_sigma_1": ((20,), real),
    },
    posteriordb="mcycle_gp-accel_gp",
)
