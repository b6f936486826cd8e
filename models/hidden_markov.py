"""A two-state hidden Markov model of the Nile's flow around 1898: a chain of discrete latents."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Reference, Target, register

NUM_YEARS = 10


def log_joint(x, z):
    r"""A Markov chain of states, each seen through Gaussian noise.

    .. math:: \log p(z_1) + \sum_{t>1} \log P_{z_{t-1} z_t} + \sum_t \log N(y_t; \mu_{z_t}, \sigma)

    Args:
        x: `flow` (T,), `initial` (K,), `transition` (K, K) with rows that sum to one, `means` (K,)
            and `scale` ().
        z: `z` (T,) of integers in 0..K-1.
    """
    states = z["z"]
    log_initial = jnp.log(x["initial"])[states[0]]
    log_transitions = jnp.log(x["transition"])[states[:-1], states[1:]].sum()
    log_emissions = norm.logpdf(x["flow"], x["means"][states], x["scale"]).sum()
    return log_initial + log_transitions + log_emissions


def _arrays(num_years=NUM_YEARS):
    flow = np.array([12.5, 12.6, 12.2, 10.3, 11.0, 7.74, 8.4, 8.74, 6.94, 9.4])
    return {
        "flow": np.resize(flow, num_years),
        "initial": np.array([0.5, 0.5]),
        "transition": np.array([[0.8, 0.2], [0.2, 0.8]]),
        "means": np.array([11.0, 8.5]),
        "scale": np.array(1.3),
    }


def data(num_years=NUM_YEARS):
    """Returns the annual flow at Aswan from 1894 to 1903 in km^3 / 10, and rounded parameters.

    For more than ten years the series is repeated.
    """
    return jax.tree.map(jnp.asarray, _arrays(num_years))


def mean_field(num_years=NUM_YEARS):
    """Returns an independent categorical guide, which misses the persistence of the states."""
    return bbvi.MeanField({"z": bbvi.Categorical(2, (num_years,))})


def interactions(x):
    """A state interacts with the states of the years before and after."""
    year = np.arange(x["flow"].size)
    return {("z", "z"): abs(year[:, None] - year) <= 1}


def reference():
    """Runs the forward-backward recursions.

    Source: Rabiner (1989), A Tutorial on Hidden Markov Models and Selected Applications in Speech
    Recognition.
    """
    from scipy import stats

    x = _arrays()
    likelihood = stats.norm.pdf(x["flow"][:, None], x["means"], x["scale"])
    forward = [x["initial"] * likelihood[0]]
    for row in likelihood[1:]:
        forward.append((forward[-1] @ x["transition"]) * row)
    backward = [np.ones(2)]
    for row in likelihood[:0:-1]:
        backward.append(x["transition"] @ (row * backward[-1]))
    joint = np.array(forward) * np.array(backward[::-1])
    return Reference(
        how="forward-backward recursions",
        log_evidence=float(np.log(forward[-1].sum())),
        probs={"z": joint / joint.sum(axis=1, keepdims=True)},
    )


register(
    Target(
        name="hidden_markov",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        reference=reference,
        interactions=interactions,
        source="Data: Cobb (1978), The Problem of the Nile: Conditional Solution to a Changepoint "
        "Problem.",
    )
)
