"""Problems whose gradients, and variances of gradient estimates, are known exactly."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bbvi

# Target Z N(m, t^2) and guide N(mu, s^2) with parameters (mu, log s).
LOG_Z, M, T, MU, S = 0.7, 0.3, 1.2, 1.0, 0.8
# One Bernoulli(THETA) with f(b) = (b - LEVEL)^2 and parameter logit THETA.
THETA, LEVEL = 0.3, 0.45


def gauss_hermite(num_nodes=100):
    """Nodes and weights that integrate against the standard normal density."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return nodes, weights / weights.sum()


def gaussian_problem(loc=MU, scale=S, objective=None):
    """Log joint log Z + log N(z; m, t^2): its evidence is Z."""

    def log_joint(x, z):
        return LOG_Z + jax.scipy.stats.norm.logpdf(z["z"], M, T)

    guide = bbvi.MeanField({"z": bbvi.Normal()})
    params = bbvi.Params(guide.params_at({"z": jnp.asarray(loc)}, scale))
    return bbvi.Problem(log_joint, guide, objective or bbvi.Elbo()), params


def gaussian_signal(loc=MU, scale=S):
    """Coefficients of log p - log q = a0 + a1 e + a2 e^2 at z = loc + scale e."""
    d, ratio = loc - M, scale**2 / T**2
    a0 = LOG_Z + math.log(scale / T) - d**2 / (2 * T**2)
    return a0, -d * scale / T**2, (1 - ratio) / 2


def estimate(estimator, problem, params, noise, x=None):
    """The first step's estimate, compiled."""

    def first(params, noise):
        state = estimator.init(problem, params, x)
        return estimator.estimate(noise, problem, params, x, state)[0]

    return jax.jit(first)(params, noise)


def signal_problem(f, guide, guide_params):
    """A problem whose log weight is ``f(z)`` at the given parameters.

    The log joint is f plus the log density of the guide FROZEN at those parameters. It cancels
    the guide's own there, so that the score-function estimate is that of E[f], f times the score:
    the textbook setting in which variances are known.
    """

    def log_joint(x, z):
        return f(z) + guide.log_prob(guide_params, None, z)

    return bbvi.Problem(log_joint, guide), bbvi.Params(guide_params)


def normal_signal_problem(f, loc, scale):
    """``signal_problem`` for one normal latent."""
    guide = bbvi.MeanField({"z": bbvi.Normal()})
    params = guide.params_at({"z": jnp.asarray(loc)}, scale)
    return signal_problem(lambda z: f(z["z"]), guide, params)


def bernoulli_signal_problem():
    """``signal_problem`` for one Bernoulli latent and f(b) = (b - LEVEL)^2."""
    guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
    init = guide.init(jax.random.key(0), None)
    logit = jnp.asarray(math.log(THETA / (1 - THETA)))
    params = init._replace(families={"b": {"logits": logit}})
    return signal_problem(lambda z: (z["b"] - LEVEL) ** 2, guide, params)


def leave_one_out_variance(f, score, weights, num_samples):
    """Variance of the leave-one-out score-function gradient, for any integrand and family.

    [mu22 - (S-2)/(S-1) mu11^2 + mu20 mu02 / (S-1)] / S, with the central co-moments mu_ab of the
    signal f and the score.
    """
    f = f - weights @ f
    mu22, mu11 = weights @ (f**2 * score**2), weights @ (f * score)
    mu20, mu02 = weights @ f**2, weights @ score**2
    rest = mu20 * mu02 / (num_samples - 1)
    return (mu22 - (num_samples - 2) / (num_samples - 1) * mu11**2 + rest) / num_samples


def check_variance(gradients, exact, power=0.15, num_errors=4.5):
    """Raise unless sample variances equal the exact ones within their standard errors.

    The error of a variance comes from the fourth central moment; it must also be small, so that
    a variance wrong by the share ``power`` could not pass.
    """
    gradients, exact = np.asarray(gradients, np.float64), np.asarray(exact, np.float64)
    assert gradients.shape[1:] == exact.shape
    centred = gradients - gradients.mean(axis=0)
    variance = (centred**2).mean(axis=0)
    error = np.sqrt(((centred**4).mean(axis=0) - variance**2) / len(gradients))
    assert (num_errors * error <= power * exact).all(), f"no power: {error} against {exact}"
    off = np.abs(variance - exact) / error
    assert (off <= num_errors).all(), f"variance {variance}, exact {exact}: off by {off} errors"


def enumerated_gradient(problem, params, x):
    """Gradient of the loss at a guide of one discrete site, by enumeration of all its values."""
    (site,) = problem.guide.sites()
    shape = problem.block_shapes(params, x)[site.name]
    grid = itertools.product(range(site.num_values), repeat=math.prod(shape))
    z = {site.name: jnp.array(list(grid)).reshape(-1, *shape)}

    def loss(params):
        log_q = problem.log_q(params, x, z)
        return -jnp.sum(jnp.exp(log_q) * (problem.log_p(params, x, z) - log_q))

    return ravel_pytree(jax.jit(jax.grad(loss))(params))[0]


def cells(*thresholds):
    """Midpoints and lengths of the pieces of [0, 1] between thresholds, ``[P]`` each.

    A function of a uniform that changes only at the thresholds has its exact expectation there.
    """
    edges = np.sort([0.0, 1.0, *thresholds])
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)


def pieces(num_nodes, *thresholds):
    """Gauss-Legendre nodes and weights on [0, 1], placed between thresholds: for a function of a
    uniform that is smooth between them."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    middles, lengths = cells(*thresholds)
    at = middles[:, None] + lengths[:, None] * nodes / 2
    return at.ravel(), (lengths[:, None] * weights / 2).ravel()


def tensor_moments(function, rules):
    """Mean and variance of ``function(u)``, any pytree, over independent uniforms u ``[n]``.

    Args:
      function: of one vector of uniforms.
      rules: for each uniform its nodes and weights, as ``cells`` and ``pieces`` give them.
    """
    grid = np.stack([g.ravel() for g in np.meshgrid(*[r[0] for r in rules], indexing="ij")], 1)
    weight = functools.reduce(np.multiply.outer, [r[1] for r in rules]).ravel()
    values = jax.jit(jax.vmap(lambda u: ravel_pytree(function(u))[0]))(jnp.asarray(grid))
    mean = weight @ np.asarray(values)
    return mean, weight @ (np.asarray(values) - mean) ** 2
