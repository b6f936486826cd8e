"""Checks of estimators that use slopes of a log joint of discrete latents between their values."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.discrete import discrete_model
from tests.estimators.coupled import exact_moments
from tests.estimators.oracles import THETA, cells, signal_problem


def curved_problem(logits=(0.4, -0.8, 1.1), curvature=1.0):
    """Three coupled Bernoullis and a learned theta; not linear in any latent between its values."""

    def log_joint(x, z, theta):
        b = z["b"].astype(theta.dtype)
        total = jnp.dot(theta, b)
        rest = 0.4 * b[0] * b[1] - jnp.logaddexp(theta.sum(), 0.0)
        return total + curvature * (0.3 * total**3 + jnp.cos(2.0 * total)) + rest

    problem = bbvi.Problem(log_joint, bbvi.MeanField({"b": bbvi.Bernoulli((3,))}))
    params = problem.init(jax.random.key(0), None, jnp.array([0.7, -0.9, 1.2]))
    families = {"b": {"logits": jnp.array(logits)}}
    return problem, params._replace(guide=params.guide._replace(families=families))


def one_hot_problem():
    """Two coupled one-hot categoricals of three values, and a learned theta."""

    def log_joint(x, z, theta):
        first, second = z["c"]
        total = theta @ first - 0.6 * theta @ second
        return total + (first @ second) ** 2 + jnp.sin(2 * total)

    guide = bbvi.MeanField({"c": bbvi.OneHotCategorical(3, (2,))})
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(1), None, jnp.array([0.7, -0.9, 1.6]))
    logits = jnp.array([[0.3, -0.5, 0.9], [-0.2, 0.8, 0.1]])
    return problem, params._replace(guide=params.guide._replace(families={"c": {"logits": logits}}))


def linear_problem():
    """A linear log joint of two one-hot categoricals and two Bernoullis, in one component."""
    guide = bbvi.MeanField({"c": bbvi.OneHotCategorical(3, (2,)), "b": bbvi.Bernoulli((2,))})
    weights = jnp.array([[0.5, -1.0, 0.2], [1.5, 0.3, -0.4]])

    def log_joint(x, z):
        total = jnp.sum(weights * z["c"]) + z["b"][0] - 2.0 * z["b"][1] + 9.0
        return jnp.sqrt(total**2)  # which hides that it is a sum

    problem = bbvi.Problem(log_joint, guide)
    return problem, problem.init(jax.random.key(0), None)


def enumerate_draws(problem, params, x=None):
    """All values of the latents, each leaf ``[N, ...]``."""
    model = discrete_model(bbvi.DoubleCv(2), problem, params, x)
    sizes = [math.prod(site.block_shape) for site in model.sites]
    ranges = [
        range(s.num_values) for s, n in zip(model.sites, sizes, strict=True) for _ in range(n)
    ]
    table = jnp.array(list(itertools.product(*ranges)))
    parts = jnp.split(table, np.cumsum(sizes)[:-1], axis=1)
    indices = {
        site.name: part.reshape(-1, *site.block_shape)
        for site, part in zip(model.sites, parts, strict=True)
    }
    return model.latents(model.values(indices))


def exact_gradient(problem, params, x=None):
    """Gradient of the loss, by enumeration, as one vector."""
    z = enumerate_draws(problem, params, x)

    def loss(params):
        log_q = problem.log_q(params, x, z)
        return -jnp.sum(jnp.exp(log_q) * (problem.log_p(params, x, z) - log_q))

    return ravel_pytree(jax.jit(jax.grad(loss))(params))[0]


def uniform_quadrature(estimator, problem, params, x):
    """Rules that are exact for draws by inverse transform of uniforms, and their noise."""
    logits = problem.guide.logits(params.guide, x)
    noise = estimator.draw(jax.random.key(0), problem)
    rules = []
    for name in sorted(noise):
        u, eta = noise[name], logits[name]
        if eta.ndim == u.ndim - 1:
            thresholds = np.asarray(jax.nn.sigmoid(eta))[..., None]
        else:
            thresholds = np.asarray(jnp.cumsum(jax.nn.softmax(eta), axis=-1))[..., :-1]
        thresholds = thresholds.reshape(-1, thresholds.shape[-1])
        rules += [cells(*row) for row in np.tile(thresholds, (len(u), 1))]
    return rules, ravel_pytree(noise)[1]


def adapt(estimator, problem, params, x=None, steps=1000, key=None):
    """The state after so many steps at one point."""

    def step(state, key):
        noise = estimator.draw(key, problem)
        return estimator.estimate(noise, problem, params, x, state)[1], None

    keys = jax.random.split(jax.random.key(1) if key is None else key, steps)
    return jax.lax.scan(step, estimator.init(problem, params, x), keys)[0]


def gradients_at(estimator, problem, params, state, replicates, x=None):
    """Replicates ``[R, P]`` from a given state."""

    def one(key, state):
        noise = estimator.draw(key, problem)
        return ravel_pytree(estimator.estimate(noise, problem, params, x, state)[0].grads)[0]

    def run(keys, state):
        return jax.lax.map(lambda key: one(key, state), keys, batch_size=1000)

    return jax.jit(run)(jax.random.split(jax.random.key(1), replicates), state)


def check_learned(estimator, problem, params, *, is_full_worse):
    """Raise unless what is learned is as good as the better of coefficients 0 and -1, the full one.

    On average over 32 fits that stay at one point; variances are quadratic in the coefficient.
    """

    def variance(alpha):
        moments = exact_moments(estimator, uniform_quadrature, problem, params, alpha=alpha)
        return moments[1][:3].sum()  # of the logits, not of theta

    def learned(key):
        (coefficient,) = adapt(estimator, problem, params, key=key).values()
        return coefficient.value(-1.0)

    keys = jax.random.split(jax.random.key(2), 32)
    alphas = jax.jit(lambda keys: jax.lax.map(learned, keys))(keys)
    full, none, opposite = (variance(alpha) for alpha in (-1.0, 0.0, 1.0))
    parabola = np.polyfit([-1.0, 0.0, 1.0], [full, none, opposite], 2)
    assert np.polyval(parabola, np.asarray(alphas)).mean() <= 1.03 * min(none, full)
    assert (full > 1.04 * none) if is_full_worse else (full < none / 1.1)


def check_refused(estimator):
    """Raise unless the estimator refuses what a first-order one cannot do, with a clear error."""
    name = type(estimator).__name__
    for log_joint, family, objective, message in (
        (lambda x, z: -jnp.sum(z["z"] ** 2), bbvi.Normal(), bbvi.Elbo(), "is for discrete latents"),
        (
            lambda x, z: jnp.where(z["z"] == 1, 0.5, -0.3),
            bbvi.Bernoulli(),
            bbvi.Elbo(),
            "needs a log_joint that is differentiable in latent 'z' between its values",
        ),
        (
            lambda x, z: 0.5 * z["z"],
            bbvi.Bernoulli(),
            bbvi.Iwae(estimator.num_samples),
            "estimates the gradient of bbvi.Elbo() only",
        ),
    ):
        check_one_refused(estimator, log_joint, family, f"{name} {message}", objective)
    message = (
        f"{name} is for Bernoulli sites, but site 'z' (Categorical) has 3 logits"
        if estimator.is_binary
        else f"{name} evaluates log_joint between the values, but site 'z' (Categorical) draws"
    )
    check_one_refused(estimator, lambda x, z: 0.5 * z["z"], bbvi.Categorical(3), message)


def check_one_refused(estimator, log_joint, family, message, objective=None):
    guide = bbvi.MeanField({"z": family})
    problem = bbvi.Problem(log_joint, guide, objective or bbvi.Elbo())
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=re.escape(message)):
        estimator.validate(problem, params, None)


# Biased estimators.


def step_problem(curve):
    """f(b) = curve(b) of one Bernoulli, at THETA."""
    guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
    families = {"b": {"logits": jnp.log(THETA / (1 - THETA))}}
    params = guide.init(jax.random.key(0), None)._replace(families=families)
    return signal_problem(lambda z: curve(z["b"]), guide, params)


def quadratic_problem():
    """One-hot categoricals and Bernoullis under a log joint that is quadratic in all of them."""
    guide = bbvi.MeanField((bbvi.OneHotCategorical(3, (2,)), {"b": bbvi.Bernoulli((2,))}))

    def log_joint(x, z, theta):
        flat = ravel_pytree((z[0], 1.0 * z[1]["b"]))[0]
        table = jnp.cos(jnp.arange(flat.size**2, dtype=flat.dtype)).reshape(flat.size, -1)
        return flat @ table @ flat + theta * jnp.sum(flat) - theta**2

    problem = bbvi.Problem(log_joint, guide)
    return problem, problem.init(jax.random.key(2), None, jnp.asarray(0.7))


def signal_at(problem, params):
    """Values and slopes of f = log p - log q at a draw; q is held fixed."""

    def f(z):
        (model,) = problem.model_args(params)
        return problem.log_joint(None, z, model) - problem.guide.log_prob(params.guide, None, z)

    return jax.value_and_grad(f)


def exact_loss(problem, params):
    """Minus the ELBO, by enumeration."""
    z = enumerate_draws(problem, params)
    log_q = problem.log_q(params, None, z)
    return -jnp.sum(jnp.exp(log_q) * (problem.log_p(params, None, z) - log_q))
