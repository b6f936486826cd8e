"""An epidemic simulated in NumPy: a log joint that JAX can call but not differentiate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, xlogy
from jax.scipy.stats import expon, norm

import bbvi
from models import quadrature
from models.registry import Reference, Target, register

LATENTS = ("infection_rate", "recovery_rate", "inverse_dispersion")


def simulate(infection_rate, recovery_rate, num_pupils, *, num_days, steps_per_day=10):
    r"""Solves the SIR equations from one infected pupil, by the classical Runge-Kutta method.

    .. math:: \dot S = -\beta S I / N, \quad \dot I = \beta S I / N - \gamma I

    Args:
        infection_rate: beta per day, any shape.
        recovery_rate: gamma per day, the same shape.
        num_pupils: N, the same shape.
        num_days: How many days to simulate.
        steps_per_day: Steps of the solver in a day.

    Returns:
        The number infected at the end of each day, with a last axis of days.
    """
    beta, gamma, size = np.broadcast_arrays(infection_rate, recovery_rate, num_pupils)

    def slope(state):
        susceptible, infected = state
        infections = beta * susceptible * infected / size
        return np.stack([-infections, infections - gamma * infected])

    step = 1.0 / steps_per_day
    state = np.stack([size - 1.0, np.ones_like(size)])
    daily = []
    for _ in range(num_days):
        for _ in range(steps_per_day):
            first = slope(state)
            second = slope(state + 0.5 * step * first)
            third = slope(state + 0.5 * step * second)
            fourth = slope(state + step * third)
            state = state + step / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)
        daily.append(state[1])
    return np.stack(daily, axis=-1)


def simulate_in_jax(infection_rate, recovery_rate, num_pupils, *, num_days):
    """Calls `simulate` from JAX in float64, and returns the dtype of the infection rate.

    All that the simulator reads is an argument that it treats elementwise, so under `jax.vmap` all
    arguments are broadcast to the batch ("broadcast_all") and the batch is one call.
    """
    infection_rate = jnp.asarray(infection_rate)
    result = jax.ShapeDtypeStruct((*infection_rate.shape, num_days), infection_rate.dtype)

    def host(*arrays):
        arrays = (np.asarray(array, np.float64) for array in arrays)
        return simulate(*arrays, num_days=num_days).astype(result.dtype)

    return jax.pure_callback(
        host, result, infection_rate, recovery_rate, num_pupils, vmap_method="broadcast_all"
    )


def log_joint(x, z):
    r"""A simulated epidemic, counted with negative binomial noise.

    .. math:: \log p(z) + \sum_t \log \mathrm{NegBin}(y_t; I_t(\beta, \gamma), 1 / \kappa)

    The mean is the simulated :math:`I_t`, the variance :math:`I_t + \kappa I_t^2`. The priors are
    :math:`\beta \sim N(2, 1)` and :math:`\gamma \sim N(0.4, 0.5)`, both cut at zero, and
    Exponential(5) for :math:`\kappa`.

    Args:
        x: `in_bed` (14,) pupils, one count a day, out of `num_pupils` ().
        z: `infection_rate` (), `recovery_rate` () and `inverse_dispersion` (), all positive.
    """
    beta, gamma, kappa = z["infection_rate"], z["recovery_rate"], z["inverse_dispersion"]
    log_prior = (
        norm.logpdf(beta, 2.0, 1.0)
        - norm.logcdf(2.0)
        + norm.logpdf(gamma, 0.4, 0.5)
        - norm.logcdf(0.8)
        + expon.logpdf(kappa, scale=0.2)
    )
    counts = x["in_bed"]
    infected = simulate_in_jax(beta, gamma, x["num_pupils"], num_days=counts.shape[0])
    size = 1.0 / kappa
    log_choose = gammaln(counts + size) - gammaln(size) - gammaln(counts + 1.0)
    odds = kappa * infected
    log_likelihood = log_choose + xlogy(counts, odds) - (counts + size) * jnp.log1p(odds)
    return log_prior + log_likelihood.sum()


def _arrays():
    in_bed = [3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4]
    return {"in_bed": np.array(in_bed, float), "num_pupils": np.array(763.0)}


def data():
    """Returns the boys confined to bed on 14 days of January and February 1978, out of 763."""
    return jax.tree.map(jnp.asarray, _arrays())


def mean_field():
    """Returns an independent log-normal guide."""
    return bbvi.MeanField(_sites())


def full_rank():
    """Returns a correlated log-normal guide."""
    return bbvi.FullRank(_sites())


def _sites():
    return {name: bbvi.LogNormal(()) for name in LATENTS}


def interactions(x):
    """All pairs: the density of a count reads both rates and the dispersion."""
    del x
    pairs = itertools.combinations_with_replacement(sorted(LATENTS), 2)
    return {pair: np.ones((1, 1), bool) for pair in pairs}


@functools.cache
def reference():
    """Integrates the logs of the three latents by quadrature."""
    from scipy import stats

    x = _arrays()

    def log_density(points):
        beta, gamma, kappa = np.exp(points).T
        infected = simulate(beta, gamma, x["num_pupils"], num_days=14)
        size = 1.0 / kappa[:, None]
        log_likelihood = stats.nbinom.logpmf(x["in_bed"], size, size / (size + infected))
        log_prior = (
            stats.truncnorm.logpdf(beta, -2.0, np.inf, loc=2.0, scale=1.0)
            + stats.truncnorm.logpdf(gamma, -0.8, np.inf, loc=0.4, scale=0.5)
            + stats.expon.logpdf(kappa, scale=0.2)
        )
        return log_prior + log_likelihood.sum(axis=1) + points.sum(axis=1)

    guess = np.log([1.7, 0.5, 0.1])
    log_evidence, points, weights = quadrature.adaptive_gauss_hermite(
        log_density, guess, np.diag([0.05, 0.1, 0.5]) ** 2, num_nodes=20
    )
    mean, sd = quadrature.moments(np.exp(points), weights)
    return Reference(
        how="adaptive Gauss-Hermite quadrature",
        log_evidence=log_evidence,
        mean=dict(zip(LATENTS, mean, strict=True)),
        sd=dict(zip(LATENTS, sd, strict=True)),
    )


register(
    Target(
        name="sir_influenza",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field, "full_rank": full_rank},
        reference=reference,
        interactions=interactions,
        source="Data: Anonymous (1978), Influenza in a Boarding School, British Medical Journal. "
        "Model: Grinsztajn, Semenova, Margossian and Riou (2021), Bayesian Workflow for Disease "
        "Transmission Modeling in Stan.",
        differentiable=False,
    )
)
