"""Conformance checks for estimators and guides: what our own tests use, open to yours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from bbvi._tree import named_leaves
from bbvi._types import Data, Key, Latents, Params
from bbvi.estimators import Estimator
from bbvi.guides import Bernoulli, Guide, MeanField, Normal, Site
from bbvi.problem import Problem

BATCH = 1000
# Base noise may be a key, and a check makes one draw in many ways.
_keys_may_repeat = jax.debug_key_reuse(False)  # noqa: FBT003
FALSE_ALARM = 1e-6  # chance that a correct estimator fails a whole check


def replicate_gradients(
    key: Key, estimator: Estimator, problem: Problem, params: Params, x: Data, replicates: int
) -> Array:
    """Independent gradient estimates at one point.

    Args:
      key: typed key.
      estimator: what to run, from its initial state.
      problem: model, guide and objective.
      params: point of evaluation.
      x: data.
      replicates: R.

    Returns:
      Gradients ``[R, P]``, the parameters raveled as ``jax.flatten_util.ravel_pytree`` does.

    Example:
      >>> import bbvi, jax
      >>> from bbvi.testing import replicate_gradients
      >>> problem = bbvi.Problem(lambda x, z: -0.5 * z**2, bbvi.MeanField(bbvi.Normal()))
      >>> params = problem.init(jax.random.key(0), None)
      >>> key = jax.random.key(1)
      >>> replicate_gradients(key, bbvi.Reparameterization(2), problem, params, None, 10).shape
      (10, 2)
    """
    state = estimator.init(problem, params, x)

    def one(key: Key) -> Array:
        noise = estimator.draw(key, problem)
        return ravel_pytree(estimator.estimate(noise, problem, params, x, state)[0].grads)[0]

    # In batches, to bound the memory.
    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=BATCH))
    return run(jax.random.split(key, replicates))


def check_mean(gradients: Array, exact: Array, *, power: float = 0.1) -> None:
    r"""Raise unless the mean of replicates equals the exact gradient, and the test could tell.

    Per coordinate :math:`|\bar g - g| \le z s / \sqrt R`, with z for a family-wise false alarm of
    1e-6; and :math:`z s / \sqrt R` at most ``power`` times the largest entry of the exact
    gradient, so that a bias of that size could not pass.

    Args:
      gradients: replicates ``[R, P]``.
      exact: exact gradient ``[P]``.
      power: half-width allowed, as a share of the largest exact entry.

    Raises:
      AssertionError: a coordinate is off, or the test has too little power.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bbvi.testing import check_mean
      >>> check_mean(1.0 + jax.random.normal(jax.random.key(0), (10_000, 1)), jnp.ones(1))
    """
    replicates, target = np.asarray(gradients, np.float64), np.asarray(exact, np.float64)
    z = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * target.size))
    width = z * replicates.std(axis=0, ddof=1) / math.sqrt(len(replicates))
    # Rounding in the arithmetic of the estimate itself, where it has no variance.
    slack = 1e-5 * (1 + np.abs(target))
    error = np.abs(replicates.mean(axis=0) - target)
    worst = int(np.argmax(error - width))
    assert (error <= width + slack).all(), (
        f"biased: coordinate {worst} has mean {replicates.mean(axis=0)[worst]:.5g} over "
        f"{len(replicates)} replicates, exact {target[worst]:.5g}, tolerance {width[worst]:.2g}"
    )
    scale = np.abs(target).max()
    assert width.max() <= power * scale, (
        f"no power: half-width {width.max():.3g} against a largest exact gradient of {scale:.3g}; "
        "use more replicates"
    )


def exact_bernoulli_gradient(problem: Problem, params: Params, x: Data) -> Params:
    """Gradient of the loss by enumerating every value of a guide of Bernoulli sites.

    Args:
      problem: ELBO problem whose guide is a ``MeanField`` of ``Bernoulli`` sites.
      params: point of evaluation.
      x: data.

    Returns:
      The exact gradient, with the structure of ``params``.

    Example:
      >>> import bbvi, jax
      >>> from bbvi.testing import exact_bernoulli_gradient
      >>> guide = bbvi.MeanField({"b": bbvi.Bernoulli((2,))})
      >>> problem = bbvi.Problem(lambda x, z: 1.0 * z["b"].sum(), guide)
      >>> params = problem.init(jax.random.key(0), None)
      >>> exact_bernoulli_gradient(problem, params, None).guide.families["b"]["logits"].shape
      (2,)
    """
    shapes, treedef = jax.tree.flatten(problem.draw_shapes(params, x))
    total = sum(math.prod(shape.shape) for shape in shapes)
    table = jnp.array(list(itertools.product([0, 1], repeat=total)), jnp.int32)

    def unravel(row: Array) -> Any:
        parts = jnp.split(row, np.cumsum([math.prod(s.shape) for s in shapes])[:-1])
        return jax.tree.unflatten(
            treedef, [p.reshape(s.shape) for p, s in zip(parts, shapes, strict=True)]
        )

    z = jax.vmap(unravel)(table)

    def loss(params: Params) -> Array:
        log_q = problem.log_q(params, x, z)
        return -jnp.sum(jnp.exp(log_q) * (problem.log_p(params, x, z) - log_q))

    return jax.jit(jax.grad(loss))(params)


def bernoulli_problem() -> tuple[Problem, Params]:
    """Three coupled Bernoulli latents with a learned field theta: enumerable, not factorized."""

    def log_joint(x: Data, z: Any, theta: Array) -> Array:
        b = z["b"].astype(theta.dtype)
        return (
            jnp.dot(theta, b)
            + 1.5 * b[0] * b[1]
            - 2.0 * b[1] * b[2]
            - jnp.logaddexp(theta.sum(), 0.0)
        )

    problem = Problem(log_joint, MeanField({"b": Bernoulli((3,))}))
    params = problem.init(jax.random.key(0), None, jnp.array([0.7, -0.4, 0.9]))
    return problem, params


def normal_problem() -> tuple[Problem, Params, Callable[[Params], Array]]:
    """One normal latent under a quadratic log joint with a learned mean; its exact loss."""

    def log_joint(x: Data, z: Any, theta: Array) -> Array:
        return 0.7 - 0.5 * ((z["z"] - theta) / 1.2) ** 2 - jnp.log(1.2)

    guide = MeanField({"z": Normal()})
    problem = Problem(log_joint, guide)
    params = Params(guide.params_at({"z": jnp.array(1.0)}, 0.8), jnp.array(0.3))

    def loss(params: Params) -> Array:
        loc, log_scale = params.guide.normal[:, 0]
        second_moment = (loc - params.model) ** 2 + jnp.exp(2 * log_scale)
        entropy = log_scale + 0.5 * jnp.log(2 * jnp.pi * jnp.e)
        return -(0.7 - 0.5 * second_moment / 1.44 - jnp.log(1.2) + entropy)

    return problem, params, loss


def check_estimator(estimator: Estimator, *, replicates: int = 20_000) -> None:
    """Raise unless an estimator of the ELBO's gradient is unbiased and well behaved.

    On every built-in target the estimator accepts (three coupled Bernoullis, enumerated; one
    normal, closed form), each with a learned model parameter: the mean of replicate gradients
    equals the exact one; the loss is minus the mean log weight; jit changes nothing; equal
    configurations are equal and hash alike.

    Args:
      estimator: what to check.
      replicates: gradients drawn per target.

    Raises:
      AssertionError: it is biased, inconsistent, or no target accepts it.

    Example:
      >>> import bbvi
      >>> from bbvi.testing import check_estimator
      >>> check_estimator(bbvi.VarGrad(8))

    References:
      Mohamed, Rosca, Figurnov and Mnih (2020), Monte Carlo Gradient Estimation in Machine Learning.
    """
    bernoulli, at_bernoulli = bernoulli_problem()
    normal, at_normal, normal_loss = normal_problem()
    exact_normal = jax.grad(normal_loss)(at_normal)
    exact_bernoulli = exact_bernoulli_gradient(bernoulli, at_bernoulli, None)
    accepted, refusals = 0, []
    for problem, params, exact in (
        (bernoulli, at_bernoulli, exact_bernoulli),
        (normal, at_normal, exact_normal),
    ):
        try:
            estimator.validate(problem, params, None)
        except ValueError as error:
            refusals.append(str(error))
            continue
        accepted += 1
        gradients = replicate_gradients(
            jax.random.key(1), estimator, problem, params, None, replicates
        )
        check_mean(gradients, ravel_pytree(exact)[0])
        _check_step(estimator, problem, params)
    assert accepted, f"no target accepts {estimator!r}: {refusals}"
    assert hash(estimator) == hash(estimator), "an estimator must be hashable"


@_keys_may_repeat
def _check_step(estimator: Estimator, problem: Problem, params: Params) -> None:
    noise = estimator.draw(jax.random.key(2), problem)
    state = estimator.init(problem, params, None)

    def step(noise: Any, params: Params) -> Any:
        return estimator.estimate(noise, problem, params, None, state)

    eager, compiled = step(noise, params), jax.jit(step)(noise, params)
    np.testing.assert_allclose(
        ravel_pytree(eager)[0], ravel_pytree(compiled)[0], rtol=1e-4, atol=1e-5
    )
    estimate = eager[0]
    shapes = jax.tree.map(jnp.shape, estimate.grads), jax.tree.map(jnp.shape, params)
    assert shapes[0] == shapes[1], f"gradient shapes {shapes[0]}, parameters {shapes[1]}"
    np.testing.assert_allclose(
        estimate.loss, problem.objective(estimate.log_weights), rtol=1e-5, atol=1e-5
    )


@_keys_may_repeat
def check_guide(guide: Guide, x: Data = None, *, num_samples: int = 10_000) -> None:
    """Raise unless a guide's parts agree with each other.

    Draws have finite log density; ``sample_and_log_prob`` repeats ``sample`` and ``log_prob``;
    site terms sum to the whole; ``sample_and_entropy`` has the mean of minus log q; the score has
    mean zero, which no density with a wrong normaliser in its parameters satisfies; and, where
    the guide says it is reparameterized, gradients do flow through a draw.

    Args:
      guide: what to check, at its own initial parameters.
      x: data the guide may depend on.
      num_samples: draws for the Monte Carlo checks.

    Raises:
      AssertionError: two parts disagree.

    Example:
      >>> import bbvi
      >>> from bbvi.testing import check_guide
      >>> check_guide(bbvi.MeanField({"a": bbvi.Gamma((2,)), "c": bbvi.Categorical(3)}))

    References:
      Cook, Gelman and Rubin (2006), Validation of Software for Bayesian Models.
    """
    problem = Problem(lambda x, z: jnp.zeros(()), guide)
    params = problem.init(jax.random.key(0), x)
    noise = problem.base_noise(jax.random.key(1), num_samples)

    # Two programs, not one: log densities are those of draws written out, as a user has them.
    @jax.jit
    def draw(noise: Any, params: Params) -> Any:
        def total(params: Params) -> Array:
            leaves = jax.tree.leaves(problem.sample(noise, params, x))
            return sum((jnp.sum(jnp.sin(leaf + 1.0)) for leaf in leaves), jnp.zeros(()))

        moved = ravel_pytree(jax.grad(total)(params))[0] if guide.reparameterized else None
        _, entropy = problem.sample_and_entropy(noise, params, x)
        separate = problem.sample(noise, params, x)
        return problem.sample_and_log_q(noise, params, x), separate, entropy, moved

    @jax.jit
    def evaluate(params: Params, z: Latents) -> Any:
        def score(latents: Latents) -> Array:
            grads = jax.grad(lambda phi: guide.log_prob(phi, x, latents))(params.guide)
            return ravel_pytree(grads)[0]

        by_site = jax.vmap(lambda latents: guide.site_log_probs(params.guide, x, latents))(z)
        return problem.log_q(params, x, z), by_site, jax.vmap(score)(z)

    (z, log_q), separate, entropy, moved = draw(noise, params)
    log_q_of_z, by_site, score = evaluate(params, z)
    for got, wanted in zip(jax.tree.leaves(z), jax.tree.leaves(separate), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert bool(jnp.isfinite(log_q).all()), "log density of the guide's own draws is not finite"
    np.testing.assert_allclose(log_q, log_q_of_z, rtol=2e-3, atol=2e-3)
    names = {site.name for site in guide.sites()}
    assert set(by_site) == names, f"log densities of {set(by_site)} for sites {names}"
    for site in guide.sites():
        blocks = () if site.event_ndims is None else block_shape(z, site)
        got = by_site[site.name].shape[1:]
        assert got == blocks, f"log densities of '{site.name}' have shape {got}, expected {blocks}"
    total_log_q = sum(jnp.sum(leaf.reshape(num_samples, -1), 1) for leaf in by_site.values())
    np.testing.assert_allclose(total_log_q, log_q, rtol=2e-3, atol=2e-3)
    assert set(guide.site_params(params.guide)) == names, "site_params does not name every site"
    check_zero_mean(np.asarray(entropy + log_q)[:, None], "entropy and minus log density")
    check_zero_mean(np.asarray(score), "score")
    if guide.reparameterized:
        assert float(jnp.abs(moved).max()) > 0, "reparameterized, but draws have no gradient"


def block_shape(z: Latents, site: Site) -> tuple[int, ...]:
    """Shape of the independent blocks of a site of one leaf, from draws ``[S, ...]``."""
    shape = named_leaves(z, "latents")[site.leaves[0]].shape[1:]
    return tuple(shape[: len(shape) - (site.event_ndims or 0)])


def check_zero_mean(values: np.ndarray, what: str) -> None:
    """Raise unless every column of ``values [S, P]`` has mean zero within its standard error."""
    values = np.asarray(values, np.float64)
    z = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * values.shape[1]))
    width = z * values.std(axis=0, ddof=1) / math.sqrt(len(values)) + 1e-3
    error = np.abs(values.mean(axis=0))
    worst = int(np.argmax(error - width))
    assert (error <= width).all(), (
        f"{what}: mean {values.mean(axis=0)[worst]:.4g} in coordinate {worst}, which should be 0 "
        f"within {width[worst]:.2g}"
    )
