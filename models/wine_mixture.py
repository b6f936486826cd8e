"""A Gaussian mixture of Italian wines with unknown means, written in five ways."""

import importlib.util

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Target, register

NUM_DATA = 30
NUM_COMPONENTS = 3
NUM_FEATURES = 4
PRIOR_SD = 2.0


def log_joint_gather(x, z):
    r"""A mixture of Gaussians of unit scale; each assignment selects a mean.

    .. math:: \sum_{kd} \log N(\mu_{kd}; 0, 2) + \sum_n \log \pi_{c_n}
              + \sum_{nd} \log N(y_{nd}; \mu_{c_n d}, 1)

    Args:
        x: `measurements` (N, D) and `weights` (K,).
        z: means `mu` (K, D) and assignments `c` (N,) of integers in 0..K-1.
    """
    mu, c = z["mu"], z["c"]
    log_prior = norm.logpdf(mu, 0.0, PRIOR_SD).sum() + jnp.log(x["weights"])[c].sum()
    return log_prior + norm.logpdf(x["measurements"], mu[c]).sum()


def log_joint_one_hot(x, z):
    """The same density; assignments select by a product with their indicators."""
    mu = z["mu"]
    indicators = jax.nn.one_hot(z["c"], mu.shape[0], dtype=mu.dtype)
    log_prior = norm.logpdf(mu, 0.0, PRIOR_SD).sum() + (indicators @ jnp.log(x["weights"])).sum()
    return log_prior + norm.logpdf(x["measurements"], indicators @ mu).sum()


def log_joint_vmap(x, z):
    """The same density; written for one wine and mapped over all."""
    mu, log_weights = z["mu"], jnp.log(x["weights"])

    def log_term(measurements, c):
        return log_weights[c] + norm.logpdf(measurements, mu[c]).sum()

    log_prior = norm.logpdf(mu, 0.0, PRIOR_SD).sum()
    return log_prior + jax.vmap(log_term)(x["measurements"], z["c"]).sum()


def log_joint_distrax(x, z):
    """The same density, with the distributions of distrax."""
    mu, c = z["mu"], z["c"]
    with jax.numpy_rank_promotion("allow"):  # distrax relies on it
        log_prior = distrax.Normal(0.0, PRIOR_SD).log_prob(mu).sum()
        log_assignments = distrax.Categorical(probs=x["weights"]).log_prob(c).sum()
        wines = distrax.Independent(distrax.Normal(mu[c], 1.0), reinterpreted_batch_ndims=1)
        return log_prior + log_assignments + wines.log_prob(x["measurements"]).sum()


def log_joint_numpyro(x, z):
    """The same density, with the distributions of NumPyro."""
    from numpyro import distributions as dist

    mu, c = z["mu"], z["c"]
    log_prior = dist.Normal(0.0, PRIOR_SD).log_prob(mu).sum()
    log_assignments = dist.Categorical(probs=x["weights"]).log_prob(c).sum()
    wines = dist.Normal(mu[c], 1.0).to_event(1)
    return log_prior + log_assignments + wines.log_prob(x["measurements"]).sum()


def data(num_data=NUM_DATA, num_components=NUM_COMPONENTS, num_features=NUM_FEATURES):
    """Returns standardised measurements of wines in random order, and decreasing weights.

    For more than 178 wines the table is repeated.
    """
    from sklearn import datasets

    wines = datasets.load_wine().data[:, :num_features]
    wines = np.random.default_rng(0).permutation((wines - wines.mean(axis=0)) / wines.std(axis=0))
    weights = np.arange(num_components, 0.0, -1.0)
    return {
        "measurements": jnp.asarray(np.resize(wines, (num_data, wines.shape[1]))),
        "weights": jnp.asarray(weights / weights.sum()),
    }


def mean_field(num_data=NUM_DATA, num_components=NUM_COMPONENTS, num_features=NUM_FEATURES):
    """Returns an independent Gaussian and categorical guide."""
    return bbvi.MeanField(
        {
            "mu": bbvi.Normal((num_components, num_features)),
            "c": bbvi.Categorical(num_components, (num_data,)),
        }
    )


def interactions(x):
    """An assignment interacts with all means, as it may select any; no other pair does.

    Given the assignments, each measurement reads one mean, so no two means share a term.
    """
    (num_data, num_features), num_components = x["measurements"].shape, x["weights"].size
    return {
        ("c", "c"): np.eye(num_data, dtype=bool),
        ("c", "mu"): np.ones((num_data, num_components * num_features), bool),
        ("mu", "mu"): np.eye(num_components * num_features, dtype=bool),
    }


def _register(writing, log_joint):
    register(
        Target(
            name=f"wine_mixture_{writing}",
            log_joint=log_joint,
            data=data,
            guides={"mean_field": mean_field},
            interactions=interactions,
            source="Data: Forina, Leardi, Armanino and Lanteri (1988), PARVUS: An Extendable "
            "Package for Data Exploration, Classification and Correlation, as shipped with "
            "scikit-learn.",
        )
    )


_register("gather", log_joint_gather)
_register("one_hot", log_joint_one_hot)
_register("vmap", log_joint_vmap)
_register("distrax", log_joint_distrax)
if importlib.util.find_spec("numpyro"):  # A development dependency.
    _register("numpyro", log_joint_numpyro)
