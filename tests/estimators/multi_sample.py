"""Problems for bounds of several draws, with every outcome of the draws or a quadrature of them."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bbvi
from tests.estimators.oracles import gauss_hermite


class Given(bbvi.MeanField):
    """A mean field whose noise is the draw itself, so that a test can choose it."""

    def base_noise(self, key):
        params_key, noise_key = jax.random.split(key)
        return super().sample(super().base_noise(noise_key), self.init(params_key, None), None)

    def sample(self, noise, params, x):
        return noise


@dataclasses.dataclass(frozen=True)
class Enumerable:
    """A problem with discrete latents, and what is written down by hand about it.

    Attributes:
      make: problem from an objective.
      params: point of evaluation.
      values: all values of one draw, a pytree of ``[V, ...]``.
      log_terms: ``(params, z)`` to the log joint and log q ``[C]`` of one draw by component.
    """

    make: Callable[[bbvi.Objective], bbvi.Problem]
    params: bbvi.Params
    values: Any
    log_terms: Callable[[bbvi.Params, Any], tuple[jax.Array, jax.Array]]

    def outcomes(self, num_samples):
        """All outcomes ``[N, S, ...]`` of that many draws."""
        count = len(jax.tree.leaves(self.values)[0])
        rows = np.array(list(itertools.product(range(count), repeat=num_samples)))
        return jax.tree.map(lambda leaf: leaf[rows], self.values)

    def by_draw(self, params, outcomes):
        """Log joints and log densities ``[N, S, C]``."""
        one = jax.vmap(lambda z: self.log_terms(params, z))
        return jax.vmap(one)(outcomes)

    def probabilities(self, params, outcomes):
        log_q = jax.jit(self.by_draw)(params, outcomes)[1]
        return np.exp(log_q.sum(axis=(1, 2)))

    def expected_loss(self, params, objective, num_samples):
        """The expected loss of so many draws, and with it its gradient."""
        outcomes = self.outcomes(num_samples)
        log_p, log_q = self.by_draw(params, outcomes)
        losses = jax.vmap(objective)(log_p - log_q)
        return jnp.sum(jnp.exp(log_q.sum(axis=(1, 2))) * losses)

    def exact_gradient(self, objective, num_samples):
        gradient = jax.jit(jax.grad(lambda p: self.expected_loss(p, objective, num_samples)))
        return ravel_pytree(gradient(self.params))[0]

    def moments(self, estimator, objective):
        """Exact mean and variance of an estimator's gradient, over all outcomes of its draws."""
        problem = self.make(objective)
        estimator.validate(problem, self.params, None)
        outcomes = self.outcomes(estimator.num_samples)
        weights = np.asarray(self.probabilities(self.params, outcomes))
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
        gradients = all_gradients(estimator, problem, self.params, outcomes)
        mean = weights @ gradients
        return mean, weights @ (gradients - mean) ** 2


def all_gradients(estimator, problem, params, noise, x=None):
    """Gradients ``[N, P]`` from noise ``[N, S, ...]``."""

    def one(noise):
        return ravel_pytree(estimator.estimate(noise, problem, params, x, ())[0].grads)[0]

    return np.asarray(jax.jit(jax.vmap(one))(noise))


def log_bernoulli(b, logits):
    return jnp.where(b == 1, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))


def coupled():
    """Two Bernoullis that share a term, with learned theta: one component."""

    def log_joint(x, z, theta):
        b = z["b"].astype(theta.dtype)
        return b @ theta + 1.5 * b[0] * b[1] - jnp.logaddexp(theta.sum(), 0.0)

    def log_terms(params, z):
        logits = params.guide.families["b"]["logits"]
        log_q = log_bernoulli(z["b"], logits).sum()
        return log_joint(None, z, params.model)[None], log_q[None]

    guide = Given({"b": bbvi.Bernoulli((2,))})
    phi = guide.init(jax.random.key(0), None)
    phi = phi._replace(families={"b": {"logits": jnp.array([0.4, -1.1])}})
    values = {"b": jnp.array(list(itertools.product([0, 1], repeat=2)))}
    return Enumerable(
        lambda objective: bbvi.Problem(log_joint, guide, objective),
        bbvi.Params(phi, jnp.array([0.7, -0.4])),
        values,
        log_terms,
    )


def separate():
    """Two Bernoullis that share theta but no term, and a term without latents: two components."""
    slopes = np.array([1.3, -2.0])

    def terms(z, theta):
        return jnp.sin(theta + slopes * z["b"]) + theta * z["b"]

    def log_joint(x, z, theta):
        return terms(z, theta).sum() - jnp.logaddexp(theta, 0.0)

    def log_terms(params, z):
        theta = params.model
        log_p = terms(z, theta) - jnp.array([1, 0]) * jnp.logaddexp(theta, 0.0)
        return log_p, log_bernoulli(z["b"], params.guide.families["b"]["logits"])

    guide = Given({"b": bbvi.Bernoulli((2,))})
    phi = guide.init(jax.random.key(0), None)
    phi = phi._replace(families={"b": {"logits": jnp.array([0.4, -1.1])}})
    values = {"b": jnp.array(list(itertools.product([0, 1], repeat=2)))}
    return Enumerable(
        lambda objective: bbvi.Problem(log_joint, guide, objective),
        bbvi.Params(phi, jnp.array(0.6)),
        values,
        log_terms,
    )


def nested():
    """A categorical and, in a dict in a tuple, a Bernoulli: one component, no theta."""
    table = np.array([[0.3, -1.0], [1.2, 0.5], [-0.4, 0.9]])

    def log_joint(x, z):
        c, rest = z
        return jnp.asarray(table)[c, rest["b"]]

    def log_terms(params, z):
        c, rest = z
        families = params.guide.families
        log_q = jax.nn.log_softmax(families["0"]["logits"])[c]
        log_q += log_bernoulli(rest["b"], families["1.b"]["logits"])
        return log_joint(None, z)[None], log_q[None]

    guide = Given((bbvi.Categorical(3), {"b": bbvi.Bernoulli()}))
    phi = guide.init(jax.random.key(0), None)
    logits = {"0": {"logits": jnp.array([0.2, -0.3, 0.5])}, "1.b": {"logits": jnp.asarray(-0.8)}}
    grid = np.array(list(itertools.product(range(3), range(2))))
    return Enumerable(
        lambda objective: bbvi.Problem(log_joint, guide, objective),
        bbvi.Params(phi._replace(families=logits)),
        (jnp.asarray(grid[:, 0]), {"b": jnp.asarray(grid[:, 1])}),
        log_terms,
    )


ENUMERABLE = {"coupled": coupled, "separate": separate, "nested": nested}


# One normal: the guide N(0.3, 0.9^2), the target exp(0.4) N(theta, 1.2^2) with theta = 0.
LOC, SCALE, WIDTH, LOG_EVIDENCE = 0.3, 0.9, 1.2, 0.4


def normal(objective, loc=LOC, scale=SCALE):
    """One normal latent and a learned mean; parameters ravel to (location, log scale, theta)."""

    def log_joint(x, z, theta):
        return LOG_EVIDENCE + jax.scipy.stats.norm.logpdf(z["z"], theta, WIDTH)

    guide = bbvi.MeanField({"z": bbvi.Normal()})
    params = bbvi.Params(guide.params_at({"z": jnp.asarray(loc)}, scale), jnp.asarray(0.0))
    return bbvi.Problem(log_joint, guide, objective), params


def normal_noise(num_samples, num_nodes=60):
    """A product of Gauss-Hermite rules for the draws: noise ``[N, S, ...]`` and weights ``[N]``."""
    nodes, weights = gauss_hermite(num_nodes)
    grid = np.stack(np.meshgrid(*[nodes] * num_samples, indexing="ij"), axis=-1)
    products = weights
    for _ in range(num_samples - 1):
        products = np.multiply.outer(products, weights)
    return (jnp.asarray(grid.reshape(-1, num_samples, 1)), {}), products.ravel()


def normal_moments(estimator, objective, **guide):
    """Exact mean and variance of an estimator's gradient for ``normal``."""
    problem, params = normal(objective, **guide)
    estimator.validate(problem, params, None)
    noise, weights = normal_noise(estimator.num_samples)
    gradients = all_gradients(estimator, problem, params, noise)
    mean = weights @ gradients
    return mean, weights @ (gradients - mean) ** 2


def check_components_are_separate(estimator, objective):
    """A problem of three unconnected latents is three problems, draw for draw."""
    targets, scales = np.array([0.5, -1.0, 2.0]), np.array([1.2, 0.7, 2.0])
    locs = np.array([0.1, 0.3, -0.4])

    def log_joint(x, z):
        means, widths = x
        return jnp.sum(-0.5 * ((z["z"] - means) / widths) ** 2 - 0.1 * jnp.cos(z["z"]))

    def gradient(at, shape):
        guide = bbvi.MeanField({"z": bbvi.Normal(shape)})
        problem = bbvi.Problem(log_joint, guide, objective)
        params = bbvi.Params(guide.params_at({"z": jnp.asarray(locs[at])}, 0.8))
        x = jnp.asarray(targets[at]), jnp.asarray(scales[at])
        estimator.validate(problem, params, x)
        noise = jnp.asarray(draws[:, at]).reshape(estimator.num_samples, -1), {}
        estimate = jax.jit(lambda n: estimator.estimate(n, problem, params, x, ())[0])(noise)
        assert estimate.log_weights.shape == (estimator.num_samples, *(shape or (1,)))
        return np.asarray(estimate.grads.guide.normal), estimate.loss

    draws = np.random.default_rng(0).normal(size=(estimator.num_samples, 3))
    together, loss = gradient(np.arange(3), (3,))
    alone = [gradient(i, ()) for i in range(3)]
    np.testing.assert_allclose(together, np.hstack([g for g, _ in alone]), rtol=1e-9)
    np.testing.assert_allclose(loss, sum(value for _, value in alone), rtol=1e-9)


def check_steps(estimator, problem, params):
    """jit is eager, vmap over noise is a loop, the loss is the objective's, dtypes are kept."""
    estimator.validate(problem, params, None)
    keys = jax.random.split(jax.random.key(3), 2)
    noise = jax.vmap(lambda key: estimator.draw(key, problem))(keys)

    def step(noise):
        return estimator.estimate(noise, problem, params, None, ())[0]

    together = jax.jit(jax.vmap(step))(noise)
    eager = step(jax.tree.map(lambda leaf: leaf[0], noise))
    compiled = jax.jit(step)(jax.tree.map(lambda leaf: leaf[1], noise))
    for i, one in enumerate((eager, compiled)):
        for got, wanted in zip(jax.tree.leaves(together), jax.tree.leaves(one), strict=True):
            assert got.dtype == wanted.dtype == jnp.float32
            np.testing.assert_allclose(got[i], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.loss, problem.objective(one.log_weights), rtol=1e-6)
