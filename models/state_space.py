"""The local level model of the Nile's flow: a Gaussian random walk, seen with noise."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Reference, Target, register

NUM_YEARS = 20


def log_joint_scan(x, z):
    r"""A random walk from an unknown start, and noisy measurements; summed up by a scan.

    .. math:: \log N(s_0; m, v) + \sum_{t=1}^T \log N(s_t; s_{t-1}, w) + \log N(y_t; s_t, r)

    Args:
        x: `flow` y (T,), `initial_mean` m (), and deviations `initial_sd` v (), `walk_sd` w () and
            `noise_sd` r ().
        z: states `s` (T,) and the start `s0` ().
    """

    def step(carry, inputs):
        previous, total = carry
        state, flow = inputs
        total += norm.logpdf(state, previous, x["walk_sd"])
        total += norm.logpdf(flow, state, x["noise_sd"])
        return (state, total), None

    log_start = norm.logpdf(z["s0"], x["initial_mean"], x["initial_sd"])
    (_, total), _ = jax.lax.scan(step, (z["s0"], log_start), (z["s"], x["flow"]))
    return total


def log_joint_loop(x, z):
    """The same density, summed up by a Python loop."""
    previous = z["s0"]
    total = norm.logpdf(previous, x["initial_mean"], x["initial_sd"])
    for t in range(z["s"].shape[0]):
        state = z["s"][t]
        total += norm.logpdf(state, previous, x["walk_sd"])
        total += norm.logpdf(x["flow"][t], state, x["noise_sd"])
        previous = state
    return total


def _arrays(num_years=NUM_YEARS):
    flow = [11.20, 11.60, 9.63, 12.10, 11.60, 11.60, 8.13, 12.30, 13.70, 11.40]
    flow += [9.95, 9.35, 11.10, 9.94, 10.20, 9.60, 11.80, 7.99, 9.58, 11.40]
    return {
        "flow": np.resize(flow, num_years),
        "initial_mean": np.array(10.0),
        "initial_sd": np.array(2.0),
        "walk_sd": np.array(0.383),
        "noise_sd": np.array(1.229),
    }


def data(num_years=NUM_YEARS):
    """Returns the annual flow at Aswan from 1871 to 1890 in km^3 / 10, and fitted deviations.

    The deviations are the maximum likelihood estimates of Durbin and Koopman (2012), Time Series
    Analysis by State Space Methods. For more than 20 years the series is repeated.
    """
    return jax.tree.map(jnp.asarray, _arrays(num_years))


def mean_field(num_years=NUM_YEARS):
    """Returns an independent Gaussian guide: right means, too small deviations."""
    return bbvi.MeanField({"s": bbvi.Normal((num_years,)), "s0": bbvi.Normal(())})


def interactions(x):
    """A state interacts with the states before and after it, the first one with the start."""
    year = np.arange(x["flow"].size)
    return {
        ("s", "s"): abs(year[:, None] - year) <= 1,
        ("s", "s0"): year[:, None] == 0,
        ("s0", "s0"): np.ones((1, 1), bool),
    }


def reference():
    r"""Solves the linear Gaussian model.

    The posterior of :math:`(s_0, \dots, s_T)` is Gaussian with a tridiagonal precision A. At its
    mean, log p(s | y) is :math:`\frac12 \log|A| - \frac{T + 1}2 \log 2\pi`; the log evidence is
    log p(y, s) less that.
    """
    from scipy import stats

    x = _arrays()
    y, num_years = x["flow"], x["flow"].size
    steps = np.eye(num_years, num_years + 1, 1) - np.eye(num_years, num_years + 1)
    seen = np.repeat([x["initial_sd"], x["noise_sd"]], [1, num_years]) ** -2.0
    precision = np.diag(seen) + steps.T @ steps / x["walk_sd"] ** 2
    mean = np.linalg.solve(precision, seen * np.append(x["initial_mean"], y))
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    log_joint = (
        stats.norm.logpdf(mean[0], x["initial_mean"], x["initial_sd"])
        + stats.norm.logpdf(steps @ mean, 0.0, x["walk_sd"]).sum()
        + stats.norm.logpdf(y, mean[1:], x["noise_sd"]).sum()
    )
    log_posterior = 0.5 * (np.linalg.slogdet(precision)[1] - mean.size * np.log(2.0 * np.pi))
    return Reference(
        how="closed form",
        log_evidence=float(log_joint - log_posterior),
        mean={"s": mean[1:], "s0": mean[0]},
        sd={"s": sd[1:], "s0": sd[0]},
    )


def _register(writing, log_joint):
    register(
        Target(
            name=f"state_space_{writing}",
            log_joint=log_joint,
            data=data,
            guides={"mean_field": mean_field},
            reference=reference,
            interactions=interactions,
            source="Data: Cobb (1978), The Problem of the Nile: Conditional Solution to a "
            "Changepoint Problem.",
        )
    )


_register("scan", log_joint_scan)
_register("loop", log_joint_loop)
