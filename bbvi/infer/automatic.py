"""What ``fit`` does where nothing is named: the optimizer, and where the guide starts."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bbvi._optimizers import default_optimizer
from bbvi._types import Data, Key, Params, PyTree
from bbvi.estimators import Estimator, PerSite, Reparameterization
from bbvi.guides import FullRank, LowRank, MeanField
from bbvi.infer.stopping import Plateau
from bbvi.natural_gradient import natural_gradient
from bbvi.objectives import Elbo
from bbvi.problem import Problem

MAX_NATURAL = 256  # beyond, products of D x D matrices would be most of a full-rank step
NUM_STARTS = 4
NUM_STEPS = 200
NOISE_STEPS = 32  # whose noise comes again and again
NUM_SAMPLES = 8
MAX_FULL = 32  # beyond, the noise of a full covariance is too much for a short run
START = math.log(0.1)  # log deviations at the start, of guides too
WIDTH = 2.0  # starts are uniform on (-2, 2) in unconstrained space, as Stan's are


def choose_optimizer(
    problem: Problem, estimator: Estimator, *, has_batches: bool
) -> tuple[optax.GradientTransformation, Plateau | None]:
    """Natural gradient where its noise is small: pathwise, of an ELBO of all data; else Adam.

    Returns:
      The optimizer, and when to lower its rate, where that is not as late as when to stop: a step
      that knows how the latents are correlated is done in some 1 / rate steps.
    """
    guide = problem.guide
    is_pathwise = isinstance(estimator, Reparameterization)
    if isinstance(estimator, PerSite) and isinstance(guide, MeanField):
        by_site = dict(estimator.estimators)
        normal = [by_site[name] for name, _ in guide.layout.sites]
        is_pathwise = all(isinstance(one, Reparameterization) for one in normal)
    is_large = isinstance(guide, FullRank) and guide.layout.size > MAX_NATURAL
    is_suited = is_pathwise and guide.has_natural_gradient and not is_large
    if has_batches or not (is_suited and problem.objective.is_mean):
        return default_optimizer(), None
    lowering = Plateau(tolerance=0.3, min_steps=300) if isinstance(guide, FullRank) else None
    return natural_gradient(guide), lowering


def choose_start(
    problem: Problem, estimator: Estimator, key: Key, params: Params, x: Data, num_restarts: int
) -> Params:
    """Where short runs lead to from the parameters, if there can be any; of every restart."""
    if not can_scout(problem, estimator):
        return params
    if num_restarts == 1:
        return scout(problem, key, params, x)
    runs = [jax.tree.map(operator.itemgetter(run), params) for run in range(num_restarts)]
    keys = jax.random.split(key, num_restarts)
    found = [scout(problem, key, one, x) for key, one in zip(keys, runs, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def can_scout(problem: Problem, estimator: Estimator) -> bool:
    """Whether ``scout`` can be used: all sites normal, all gradients pathwise."""
    guide = problem.guide
    if not isinstance(guide, MeanField | FullRank | LowRank):
        return False
    is_normal = len(guide.layout.sites) == len(guide.families)
    # Not when the ELBO is annealed: a start near a mode is what that is to prevent.
    is_elbo = problem.objective == Elbo()
    return is_normal and isinstance(estimator, Reparameterization) and is_elbo


def scout(problem: Problem, key: Key, params: Params, x: Data) -> Params:
    """Parameters to start from: those of the best of a few short runs.

    A Gaussian finds location and scale in some hundred steps of natural gradient, whatever their
    units: one of full rank, which strays into fewer lesser modes, or in many dimensions a
    mean-field one. All runs have the same noise, so that they can be compared.

    Args:
      problem: one that ``can_scout``.
      key: of starts and noise.
      params: returned as they are where no run ends with a finite loss.
      x: data.
    """
    # NumPy's random numbers: compiling JAX's would take longer than everything else here.
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    size = problem.guide.layout.size  # type: ignore[attr-defined]
    starts = generator.uniform(-WIDTH, WIDTH, (NUM_STARTS, size))
    starts[0] *= 0.05  # where the guide itself would start
    noise = generator.standard_normal((NOISE_STEPS, NUM_SAMPLES, size))
    return _scout(problem, jnp.asarray(starts), jnp.asarray(noise), params, x)


@functools.partial(jax.jit, static_argnames="problem")
def _scout(problem: Problem, starts: Array, noise: Array, params: Params, x: Data) -> Params:
    guide: Any = problem.guide
    family = FullRank if guide.layout.size <= MAX_FULL else MeanField
    simple: Any = family(jax.tree.unflatten(guide.treedef, guide.families))
    short = Problem(problem.log_joint, simple, problem.objective)
    estimator, optimizer = Reparameterization(NUM_SAMPLES), natural_gradient(simple)

    def run(start: Array) -> tuple[PyTree, Array]:
        first = params._replace(guide=simple.from_mean_field(start, jnp.full_like(start, START)))

        def step(params: Params, index: Array) -> tuple[Params, Array]:
            draws: PyTree = noise[index % NOISE_STEPS]
            draws = draws if isinstance(simple, FullRank) else (draws, {})
            found, _ = estimator.estimate(draws, short, params, x, ())
            updates, _ = optimizer.update(found.grads, optimizer.init(params), params)
            moved = optax.apply_updates(params.guide, updates.guide)
            finite = [jnp.isfinite(leaf).all() for leaf in (found.loss, *jax.tree.leaves(moved))]
            is_finite = jnp.stack(finite).all()
            kept = jax.tree.map(functools.partial(jnp.where, is_finite), moved, params.guide)
            return params._replace(guide=kept), jnp.where(is_finite, found.loss, jnp.inf)

        last, losses = jax.lax.scan(step, first, jnp.arange(NUM_STEPS))
        return last.guide, losses[-NOISE_STEPS:].mean()

    ends, losses = jax.vmap(run)(starts)
    best = jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], ends)
    if not isinstance(guide, type(simple)):
        best = guide.from_mean_field(*simple.mean_field(best))
    is_found = jnp.isfinite(losses).any()
    kept = jax.tree.map(functools.partial(jnp.where, is_found), best, params.guide)
    return params._replace(guide=kept)
