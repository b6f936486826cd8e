"""Radon in Minnesota's houses: a varying-intercept regression with 85 counties, non-centred."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models import quadrature
from models.data import load
from models.registry import Reference, Target, register

NUM_COUNTIES = 85


def log_joint(x, z):
    r"""A regression of log radon with an intercept for each county.

    .. math:: \log p(z) + \sum_n \log N(y_n; \alpha_{c(n)} + \beta_1 u_n + \beta_2 f_n, \sigma_y)

    The intercepts are :math:`\alpha_c = \mu_\alpha + \sigma_\alpha r_c`. The priors are
    :math:`r_c \sim N(0, 1)`, :math:`\mu_\alpha, \beta \sim N(0, 10)`, and half-normal(1) for both
    deviations.

    Args:
        x: `county` (919,) of integers, `log_uppm` (919,), `floor` (919,), `log_radon` (919,).
        z: `alpha_raw` (85,), `beta` (2,), `mu_alpha` (), `sigma_alpha` () and `sigma_y` () > 0.
    """
    alpha = z["mu_alpha"] + z["sigma_alpha"] * z["alpha_raw"]
    fitted = alpha[x["county"]] + z["beta"][0] * x["log_uppm"] + z["beta"][1] * x["floor"]
    return (
        norm.logpdf(z["alpha_raw"]).sum()
        + norm.logpdf(z["beta"], 0.0, 10.0).sum()
        + norm.logpdf(z["mu_alpha"], 0.0, 10.0)
        + norm.logpdf(z["sigma_alpha"])
        + norm.logpdf(z["sigma_y"])
        + 2.0 * jnp.log(2.0)
        + norm.logpdf(x["log_radon"], fitted, z["sigma_y"]).sum()
    )


def data():
    """Returns county, uranium, floor and log radon of 919 houses."""
    stored = load("radon")
    return {
        name: jnp.asarray(stored[name]) for name in ("county", "log_uppm", "floor", "log_radon")
    }


def _sites():
    return {
        "alpha_raw": bbvi.Normal((NUM_COUNTIES,)),
        "beta": bbvi.Normal((2,)),
        "mu_alpha": bbvi.Normal(()),
        "sigma_alpha": bbvi.LogNormal(()),
        "sigma_y": bbvi.LogNormal(()),
    }


def mean_field():
    """Returns an independent Gaussian guide, with the deviations on the log scale."""
    return bbvi.MeanField(_sites())


def full_rank():
    """Returns a correlated Gaussian guide of 90 dimensions."""
    return bbvi.FullRank(_sites())


def low_rank():
    """Returns a Gaussian guide with a covariance of rank five plus a diagonal."""
    return bbvi.LowRank(_sites(), rank=5)


def interactions(x):
    r"""All pairs interact, except as follows.

    A house reads the intercept of its own county only, so intercepts do not interact with each
    other. The floor enters as :math:`\beta_2 f_n`, which is zero where radon was measured in the
    basement: a county that has only such houses does not interact with :math:`\beta_2`.
    """
    sizes = {"alpha_raw": NUM_COUNTIES, "beta": 2, "mu_alpha": 1, "sigma_alpha": 1, "sigma_y": 1}
    pairs = itertools.combinations_with_replacement(sizes, 2)
    blocks = {(a, b): np.ones((sizes[a], sizes[b]), bool) for a, b in pairs}
    blocks["alpha_raw", "alpha_raw"] = np.eye(NUM_COUNTIES, dtype=bool)
    floors = np.bincount(np.asarray(x["county"]), np.asarray(x["floor"]), NUM_COUNTIES)
    blocks["alpha_raw", "beta"][:, 1] = floors > 0.0
    return blocks


def given_scales(x, sigma_alpha, sigma_y):
    r"""Solves the model given its two deviations, where it is linear and Gaussian.

    The coefficients :math:`b = (\mu_\alpha, \beta, r) \sim N(0, S)` enter as :math:`y = X b +
    \epsilon`. Their posterior has precision :math:`A = S^{-1} + X^\top X / \sigma_y^2`, and with
    its mean m

    .. math:: -2 \log p(y) = N \log 2\pi\sigma_y^2 + \log|S A| + y^\top y / \sigma_y^2 - m^\top A m

    Args:
        x: The data as float64 NumPy arrays.
        sigma_alpha: Deviation of the intercepts.
        sigma_y: Deviation of the measurements.

    Returns:
        log p(y | deviations), and mean (88,) and variance (88,) of the coefficients.
    """
    y = x["log_radon"]
    counties = np.eye(NUM_COUNTIES)[x["county"]]
    fixed = np.stack([np.ones_like(y), x["log_uppm"], x["floor"]], axis=1)
    design = np.concatenate([fixed, sigma_alpha * counties], axis=1)
    prior_precision = np.repeat([0.01, 1.0], [3, NUM_COUNTIES])
    precision = np.diag(prior_precision) + design.T @ design / sigma_y**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (design.T @ y) / sigma_y**2
    log_evidence = -0.5 * (
        len(y) * np.log(2.0 * np.pi * sigma_y**2)
        + np.linalg.slogdet(precision)[1]
        - np.log(prior_precision).sum()
        + y @ y / sigma_y**2
        - mean @ precision @ mean
    )
    return log_evidence, mean, np.diag(covariance)


@functools.cache
def reference():
    """Integrates the 88 coefficients exactly and the two deviations by quadrature."""
    from scipy import stats

    nodes, log_weights = quadrature.product_rule(*np.polynomial.legendre.leggauss(24), dim=2)
    lower, upper = np.array([0.0, 0.62]), np.array([0.5, 0.86])
    scales = lower + (upper - lower) * (nodes + 1.0) / 2.0
    stored = load("radon")
    solved = [given_scales(stored, *point) for point in scales]
    log_likelihood, means, variances = (np.array(part) for part in zip(*solved, strict=True))
    log_prior = stats.halfnorm.logpdf(scales).sum(axis=1)
    log_terms = log_weights + np.log((upper - lower) / 2.0).sum() + log_prior + log_likelihood
    log_evidence = np.logaddexp.reduce(log_terms)
    weights = np.exp(log_terms - log_evidence)

    mean, spread = quadrature.moments(means, weights)
    sd = np.sqrt(spread**2 + weights @ variances)
    scale_mean, scale_sd = quadrature.moments(scales, weights)

    def named(coefficients, deviations):
        return {
            "mu_alpha": coefficients[0],
            "beta": coefficients[1:3],
            "alpha_raw": coefficients[3:],
            "sigma_alpha": deviations[0],
            "sigma_y": deviations[1],
        }

    return Reference(
        how="closed form given the two deviations, quadrature over them",
        log_evidence=float(log_evidence),
        mean=named(mean, scale_mean),
        sd=named(sd, scale_sd),
    )


register(
    Target(
        name="radon",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field, "full_rank": full_rank, "low_rank": low_rank},
        reference=reference,
        interactions=interactions,
        source="Gelman and Hill (2007), Data Analysis Using Regression and Multilevel/Hierarchical "
        "Models, chapter 12; radon_mn-radon_hierarchical_intercept_noncentered in posteriordb.",
    )
)
