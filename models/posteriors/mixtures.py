"""Mixtures whose discrete latents are summed out: of independent data, and along a chain."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.scipy.stats import beta, norm

from bbvi.supports import ordered, positive, simplex, unit_interval
from models.posteriors.stored import register_posterior


def low_dim_gauss_mix(x, z):
    r"""A mixture of two Gaussians, whose means are in order.

    .. math::
        \log p(z) + \sum_n
        \log\big(\theta N(y_n; \mu_1, \sigma_1) + (1 - \theta) N(y_n; \mu_2, \sigma_2)\big)

    The priors are N(0, 2) for each mean, left unnormalised on ordered pairs, half-normal(2) for
    each deviation, and Beta(5, 5) for the weight :math:`\theta` of the first.

    Args:
        x: `y` (1000,).
        z: `mu` (2,) in order, `sigma` (2,) positive and `theta` () between zero and one.
    """
    log_weights = jnp.stack([jnp.log(z["theta"]), jnp.log1p(-z["theta"])])
    log_likelihood = norm.logpdf(x["y"][:, None], z["mu"][None], z["sigma"][None])
    return (
        norm.logpdf(z["mu"], 0.0, 2.0).sum()
        + (norm.logpdf(z["sigma"], 0.0, 2.0) + jnp.log(2.0)).sum()
        + beta.logpdf(z["theta"], 5.0, 5.0)
        + logsumexp(log_weights[None] + log_likelihood, axis=1).sum()
    )


def hmm_example(x, z):
    r"""A hidden Markov chain of two states, seen through standard Gaussian noise.

    .. math::
        \log p(z) + \log \sum_s \prod_t N(y_t; \mu_{s_t}, 1) \prod_{t>1} \theta_{s_{t-1} s_t}

    The sum over paths is that of the forward algorithm. No distribution weighs the first state.
    The priors are N(3, 1) and N(10, 1) for the means, left unnormalised on ordered pairs, and
    uniform for both rows of the transition matrix.

    Args:
        x: `y` (100,).
        z: rows `theta1` (2,) and `theta2` (2,) of the transition matrix, and `mu` (2,) in order.
    """
    log_transition = jnp.log(jnp.stack([z["theta1"], z["theta2"]]))
    log_emission = norm.logpdf(x["y"][:, None], z["mu"][None], 1.0)

    def step(log_forward, log_emitted):
        joint = log_forward[:, None] + log_transition
        return logsumexp(joint, axis=0) + log_emitted, None

    log_forward, _ = jax.lax.scan(step, log_emission[0], log_emission[1:])
    return norm.logpdf(z["mu"], jnp.array([3.0, 10.0])).sum() + logsumexp(log_forward)


register_posterior(
    "low_dim_gauss_mix",
    low_dim_gauss_mix,
    {"mu": ((2,), ordered), "sigma": ((2,), positive), "theta": ((), unit_interval)},
    posteriordb="low_dim_gauss_mix-low_dim_gauss_mix",
)
register_posterior(
    "hmm_example",
    hmm_example,
    {"theta1": ((2,), simplex), "theta2": ((2,), simplex), "mu": ((2,), ordered)},
    posteriordb="hmm_example-hmm_example",
)
