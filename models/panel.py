"""Panel data with missing cells: effects of individuals and of periods, and an unknown scale."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Target, register

NUM_INDIVIDUALS = 8
NUM_PERIODS = 6


def log_joint(x, z):
    r"""Two-way effects, measured with Gaussian noise in the observed cells.

    .. math:: \log p(z) + \sum_{(i, t)\ \mathrm{observed}} \log N(y_{it}; a_i + b_t, \sigma)

    The priors are standard Gaussian for all effects and half-normal(1) for the scale.

    Args:
        x: `values` y (N, T), NaN where missing, and `observed` (N, T), boolean.
        z: `individual` a (N,), `period` b (T,) and `scale` () > 0.
    """
    log_prior = (
        norm.logpdf(z["individual"]).sum()
        + norm.logpdf(z["period"]).sum()
        + norm.logpdf(z["scale"])
        + jnp.log(2.0)
    )
    # Values are replaced before the density: the derivative of NaN is NaN, even where not selected.
    values = jnp.where(x["observed"], x["values"], 0.0)
    mean = z["individual"][:, None] + z["period"][None, :]
    return log_prior + jnp.where(x["observed"], norm.logpdf(values, mean, z["scale"]), 0.0).sum()


def data(num_individuals=NUM_INDIVIDUALS, num_periods=NUM_PERIODS):
    """Returns values drawn from the model with scale one half; about a third are missing."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(num_individuals, 1)) + rng.normal(size=num_periods)
    observed = rng.random(mean.shape) < 2.0 / 3.0
    values = np.where(observed, rng.normal(mean, 0.5), np.nan)
    return {"values": jnp.asarray(values), "observed": jnp.asarray(observed)}


def mean_field(num_individuals=NUM_INDIVIDUALS, num_periods=NUM_PERIODS):
    """Returns an independent Gaussian guide, with the scale on the log scale."""
    return bbvi.MeanField(
        {
            "individual": bbvi.Normal((num_individuals,)),
            "period": bbvi.Normal((num_periods,)),
            "scale": bbvi.LogNormal(()),
        }
    )


def interactions(x):
    """Individual and period interact where the cell is observed; the scale with all observed."""
    observed = np.asarray(x["observed"])
    num_individuals, num_periods = observed.shape
    return {
        ("individual", "individual"): np.eye(num_individuals, dtype=bool),
        ("individual", "period"): observed,
        ("individual", "scale"): observed.any(axis=1, keepdims=True),
        ("period", "period"): np.eye(num_periods, dtype=bool),
        ("period", "scale"): observed.any(axis=0)[:, None],
        ("scale", "scale"): np.ones((1, 1), bool),
    }


register(
    Target(
        name="panel",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        interactions=interactions,
        source="Model: two-way random effects, Baltagi (2005), Econometric Analysis of Panel Data. "
        "Data: simulated.",
    )
)
