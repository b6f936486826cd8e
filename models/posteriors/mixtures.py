"""Mixtures whose discrete latents are summed out: of independent data, and along a chain."""

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, logsumexp
from jax.scipy.stats import beta, expon, norm

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


def log_likelihood_of_chain(transition, log_emission):
    r"""Sums out the path of a hidden Markov chain, by the forward algorithm.

    .. math:: \log \sum_s \prod_t p(y_t | s_t) \prod_{t>1} \theta_{s_{t-1} s_t}

    No distribution weighs the first state.

    Args:
        transition: Probabilities (K, K), rows sum to one.
        log_emission: log p(y_t | s) of each time and state (T, K).
    """
    log_transition = jnp.log(transition)

    def step(log_forward, log_emitted):
        joint = log_forward[:, None] + log_transition
        return logsumexp(joint, axis=0) + log_emitted, None

    log_forward, _ = jax.lax.scan(step, log_emission[0], log_emission[1:])
    return logsumexp(log_forward)


def hmm_example(x, z):
    r"""A hidden Markov chain of two states, seen through standard Gaussian noise.

    .. math::
        \log p(z) + \log \sum_s \prod_t N(y_t; \mu_{s_t}, 1) \prod_{t>1} \theta_{s_{t-1} s_t}

    The priors are N(3, 1) and N(10, 1) for the means, left unnormalised on ordered pairs, and
    uniform for both rows of the transition matrix.

    Args:
        x: `y` (100,).
        z: rows `theta1` (2,) and `theta2` (2,) of the transition matrix, and `mu` (2,) in order.
    """
    log_emission = norm.logpdf(x["y"][:, None], z["mu"][None], 1.0)
    log_prior = norm.logpdf(z["mu"], jnp.array([3.0, 10.0])).sum()
    transition = jnp.stack([z["theta1"], z["theta2"]])
    return log_prior + log_likelihood_of_chain(transition, log_emission)


def _log_prior_of_drive(x, z, phi, lambda_):
    """What both models of a basketball player's drives share."""
    alpha, means = x["alpha"], jnp.array([0.0, 3.0])
    log_theta = jnp.log(jnp.stack([z["theta1"], z["theta2"]]))
    return (
        ((alpha - 1.0) * log_theta).sum()
        + (gammaln(alpha.sum(axis=1)) - gammaln(alpha).sum(axis=1)).sum()
        + norm.logpdf(phi, means).sum()
        + norm.logpdf(lambda_, means).sum()
    )


def hmm_drive_0(x, z):
    r"""Whether a basketball player drives to the hoop, a hidden chain with exponential emissions.

    .. math::
        \log p(z) + \log \sum_s \prod_t \mathrm{Exp}(u_t; \phi_{s_t})
        \mathrm{Exp}(v_t; \lambda_{s_t}) \prod_{t>1} \theta_{s_{t-1} s_t}

    The priors are Dirichlet for the rows of the transition matrix and N(0, 1) and N(3, 1) for the
    rates :math:`\phi` and :math:`\lambda` of either state, left unnormalised on ordered positive
    pairs. Latents are the first rate and what the second adds, a change with determinant one.

    Args:
        x: inverse speed `u` (416,), distance to the hoop `v` (416,) and `alpha` (2, 2), the
            concentrations of the priors of both rows.
        z: rows `theta1` (2,) and `theta2` (2,) of the transition matrix, and `phi_steps` (2,) and
            `lambda_steps` (2,), positive, whose cumulative sums are the rates.
    """
    phi, lambda_ = jnp.cumsum(z["phi_steps"]), jnp.cumsum(z["lambda_steps"])
    log_emission = expon.logpdf(x["u"][:, None], scale=1.0 / phi[None])
    log_emission += expon.logpdf(x["v"][:, None], scale=1.0 / lambda_[None])
    transition = jnp.stack([z["theta1"], z["theta2"]])
    log_prior = _log_prior_of_drive(x, z, phi, lambda_)
    return log_prior + log_likelihood_of_chain(transition, log_emission)


def hmm_drive_1(x, z):
    r"""Whether a basketball player drives to the hoop, a hidden chain with normal emissions.

    .. math::
        \log p(z) + \log \sum_s \prod_t N(u_t; \phi_{s_t}, \tau) N(v_t; \lambda_{s_t}, \rho)
        \prod_{t>1} \theta_{s_{t-1} s_t}

    The priors are Dirichlet for the rows of the transition matrix and N(0, 1) and N(3, 1) for the
    means :math:`\phi` and :math:`\lambda` of either state, left unnormalised on ordered pairs.

    Args:
        x: log inverse speed `u` (416,), log distance to the hoop `v` (416,), their deviations
            `tau` () and `rho` (), and `alpha` (2, 2), the concentrations of the priors of both
            rows.
        z: rows `theta1` (2,) and `theta2` (2,) of the transition matrix, and `phi` (2,) and
            `lambda` (2,) in order.
    """
    log_emission = norm.logpdf(x["u"][:, None], z["phi"][None], x["tau"])
    log_emission += norm.logpdf(x["v"][:, None], z["lambda"][None], x["rho"])
    transition = jnp.stack([z["theta1"], z["theta2"]])
    log_prior = _log_prior_of_drive(x, z, z["phi"], z["lambda"])
    return log_prior + log_likelihood_of_chain(transition, log_emission)


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
register_posterior(
    "hmm_drive_0",
    hmm_drive_0,
    {
        "theta1": ((2,), simplex),
        "theta2": ((2,), simplex),
        "phi_steps": ((2,), positive),
        "lambda_steps": ((2,), positive),
    },
    posteriordb="bball_drive_event_0-hmm_drive_0",
)
register_posterior(
    "hmm_drive_1",
    hmm_drive_1,
    {
        "theta1": ((2,), simplex),
        "theta2": ((2,), simplex),
        "phi": ((2,), ordered),
        "lambda": ((2,), ordered),
    },
    posteriordb="bball_drive_event_1-hmm_drive_1",
)
