"""Eight schools, the smallest hierarchical model, centred and non-centred."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import cauchy, norm

import bbvi
from models.data import load
from models.registry import Reference, Target, register


def _log_prior(z):
    """Log N(mu; 0, 5) + log half-Cauchy(tau; 5)."""
    log_half_cauchy = cauchy.logpdf(z["tau"], 0.0, 5.0) + jnp.log(2.0)
    return norm.logpdf(z["mu"], 0.0, 5.0) + log_half_cauchy


def log_joint_centered(x, z):
    r"""Effects drawn around a common mean, and measured with known errors.

    .. math::
        \log p(\mu, \tau) + \sum_j \log N(\theta_j; \mu, \tau) + \log N(y_j; \theta_j, \sigma_j)

    The priors are :math:`\mu \sim N(0, 5)` and :math:`\tau` half-Cauchy(5).

    Args:
        x: effects `y` (8,) and their standard errors `sigma` (8,).
        z: `theta` (8,), `mu` () and `tau` () > 0.
    """
    log_effects = norm.logpdf(z["theta"], z["mu"], z["tau"]).sum()
    return _log_prior(z) + log_effects + norm.logpdf(x["y"], z["theta"], x["sigma"]).sum()


def log_joint_noncentered(x, z):
    r"""The same model in standard Gaussian coordinates :math:`t_j = (\theta_j - \mu) / \tau`.

    Args:
        x: effects `y` (8,) and their standard errors `sigma` (8,).
        z: `theta_trans` (8,), `mu` () and `tau` () > 0.
    """
    theta = z["mu"] + z["tau"] * z["theta_trans"]
    log_effects = norm.logpdf(z["theta_trans"]).sum()
    return _log_prior(z) + log_effects + norm.logpdf(x["y"], theta, x["sigma"]).sum()


def data():
    """Returns the estimated coaching effects in eight schools with their standard errors."""
    stored = load("eight_schools")
    return {name: jnp.asarray(stored[name]) for name in ("y", "sigma")}


def _sites(effects):
    return {effects: bbvi.Normal((8,)), "mu": bbvi.Normal(()), "tau": bbvi.LogNormal(())}


def mean_field_centered():
    """Returns an independent Gaussian guide, with tau on the log scale."""
    return bbvi.MeanField(_sites("theta"))


def full_rank_centered():
    """Returns a correlated Gaussian guide, with tau on the log scale."""
    return bbvi.FullRank(_sites("theta"))


def mean_field_noncentered():
    """Returns an independent Gaussian guide, with tau on the log scale."""
    return bbvi.MeanField(_sites("theta_trans"))


def full_rank_noncentered():
    """Returns a correlated Gaussian guide, with tau on the log scale."""
    return bbvi.FullRank(_sites("theta_trans"))


def _interactions(effects):
    return {
        ("mu", "mu"): np.ones((1, 1), bool),
        ("mu", "tau"): np.ones((1, 1), bool),
        ("mu", effects): np.ones((1, 8), bool),
        ("tau", "tau"): np.ones((1, 1), bool),
        ("tau", effects): np.ones((1, 8), bool),
        (effects, effects): np.eye(8, dtype=bool),
    }


def interactions_centered(x):
    """All pairs but two effects: each effect meets mean and deviation in its own prior."""
    del x
    return _interactions("theta")


def interactions_noncentered(x):
    """All pairs but two effects: each effect meets mean and deviation in its own measurement."""
    del x
    return _interactions("theta_trans")


def _reference(effects):
    """Integrates mu and the effects exactly, and tau by quadrature over its prior quantiles.

    Given tau, y_j ~ N(mu, v_j) with v_j = sigma_j^2 + tau^2, so mu is Gaussian, and so is each
    effect given mu: mean = a_j + b_j mu and variance c_j below.
    """
    stored = load("eight_schools")
    y, sigma = stored["y"], stored["sigma"]
    nodes, weights = np.polynomial.legendre.leggauss(400)
    tau = 5.0 * np.tan(np.pi * (nodes + 1.0) / 4.0)  # Quantiles of the half-Cauchy prior.

    variance = sigma**2 + tau[:, None] ** 2
    mu_precision = 1.0 / 25.0 + (1.0 / variance).sum(axis=1)
    mu_mean = (y / variance).sum(axis=1) / mu_precision
    log_likelihood = -0.5 * (
        np.log(2.0 * np.pi * variance).sum(axis=1)
        + np.log(25.0 * mu_precision)
        + (y**2 / variance).sum(axis=1)
        - mu_precision * mu_mean**2
    )
    evidence = (weights / 2.0) @ np.exp(log_likelihood)
    posterior = (weights / 2.0) * np.exp(log_likelihood) / evidence

    shrinkage = sigma**2 / variance
    if effects == "theta":
        a, b, c = y * (1.0 - shrinkage), shrinkage, (1.0 - shrinkage) * sigma**2
    else:
        a, b, c = tau[:, None] * y / variance, -tau[:, None] / variance, shrinkage

    def mixed(means, variances):
        mean = posterior @ means
        return mean, np.sqrt(posterior @ (variances + (means - mean) ** 2))

    effect = mixed(a + b * mu_mean[:, None], c + b**2 / mu_precision[:, None])
    mu, tau = mixed(mu_mean, 1.0 / mu_precision), mixed(tau, 0.0)
    return Reference(
        how="closed form given tau, quadrature over tau",
        log_evidence=float(np.log(evidence)),
        mean={effects: effect[0], "mu": mu[0], "tau": tau[0]},
        sd={effects: effect[1], "mu": mu[1], "tau": tau[1]},
    )


def reference_centered():
    """Integrates tau by quadrature, and all else exactly."""
    return _reference("theta")


def reference_noncentered():
    """Integrates tau by quadrature, and all else exactly."""
    return _reference("theta_trans")


_SOURCE = (
    "Rubin (1981), Estimation in Parallel Randomized Experiments; priors of "
    "eight_schools-eight_schools_noncentered in posteriordb."
)

register(
    Target(
        name="eight_schools_centered",
        log_joint=log_joint_centered,
        data=data,
        guides={"mean_field": mean_field_centered, "full_rank": full_rank_centered},
        reference=reference_centered,
        interactions=interactions_centered,
        source=_SOURCE,
    )
)
register(
    Target(
        name="eight_schools_noncentered",
        log_joint=log_joint_noncentered,
        data=data,
        guides={"mean_field": mean_field_noncentered, "full_rank": full_rank_noncentered},
        reference=reference_noncentered,
        interactions=interactions_noncentered,
        source=_SOURCE,
    )
)
