"""What ``fit`` does where nothing is named: the optimizer, and where the guide starts."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bbvi._optimizers import default_optimizer
from bbvi._types import Data, Key, Params, PyTree
from bbvi.estimators import Estimator, PerSite, Reparameterization, Stratified
from bbvi.guides import FullRank, MeanField, Mixture, NormalizingFlow, VectorGuide
from bbvi.infer.compiling import jit
from bbvi.infer.stopping import Plateau
from bbvi.natural_gradient import in_local_coordinates, natural_gradient
from bbvi.objectives import Elbo
from bbvi.problem import Problem

MAX_NATURAL = 256  # beyond, products of D x D matrices would be most of a full-rank step
NUM_STARTS = 4
NOISE_STEPS = 32  # whose noise comes again and again
BLOCK_STEPS = 2 * NOISE_STEPS  # of which losses are compared
MIN_BLOCKS, MAX_BLOCKS = 4, 32
LEVEL = 0.5  # nats from block to block that are no progress
LAST_RATE = 0.25  # at which runs end, for less noise in where they do
NUM_SAMPLES = 8
MAX_FULL = 64  # beyond, a full covariance takes too many steps for a short run
START = math.log(0.1)  # log deviations at the start, of guides too
WIDTH = 2.0  # starts are uniform on (-2, 2) in unconstrained space, as Stan's are
FLOW_RATE = 0.01  # of Adam for the couplings of a flow: at 0.05 they oscillate
MAX_NOVELTY = 10.0  # nats: a mode with less than e^-10 of the mass is not worth a component


def choose_optimizer(
    problem: Problem, estimator: Estimator, *, has_batches: bool
) -> tuple[optax.GradientTransformation, Plateau | None]:
    """Natural gradient where its noise is small: pathwise, of an ELBO of all data; else Adam.

    A flow gets Adam in coordinates relative to q, since far from a Gaussian the natural gradient of
    its Gaussian part is no longer a step to take.

    Returns:
      The optimizer, and when to lower its rate, where that is not as late as when to stop: a step
      that knows how the latents are correlated is done in some 1 / rate steps, and mean field soon
      after where a full covariance was found before it.
    """
    guide = problem.guide
    family = _family(guide)
    is_pathwise = isinstance(estimator, Reparameterization | Stratified)
    if isinstance(estimator, PerSite) and isinstance(guide, MeanField):
        by_site = dict(estimator.estimators)
        normal = [by_site[name] for name, _ in guide.layout.sites]
        is_pathwise = all(isinstance(one, Reparameterization) for one in normal)
    is_large = isinstance(family, FullRank) and family.layout.size > MAX_NATURAL
    is_suited = is_pathwise and guide.has_natural_gradient and not is_large
    if isinstance(family, NormalizingFlow):
        return in_local_coordinates(guide, flow_optimizer()), None
    if has_batches or not (is_suited and problem.objective.is_mean):
        return default_optimizer(), None
    lowering = None
    if isinstance(guide, FullRank):
        lowering = Plateau(tolerance=0.3, min_steps=300)
    elif isinstance(guide, MeanField) and guide.layout.size <= MAX_FULL:
        lowering = Plateau(tolerance=0.2, min_steps=500)
    return natural_gradient(guide), lowering


def flow_optimizer() -> optax.GradientTransformation:
    """Adam at a rate that a flow's couplings bear, with rare long gradients cut.

    At ten nats a unit, a gradient is that of a draw far out, not of the bound.
    """
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(FLOW_RATE))


def choose_start(
    problem: Problem, estimator: Estimator, key: Key, params: Params, x: Data, num_restarts: int
) -> Params:
    """Where short runs lead to from the parameters, if there can be any; of every restart."""
    if not can_scout(problem, estimator):
        return params
    if num_restarts == 1:
        return scout(problem, key, params, x).params
    runs = [jax.tree.map(operator.itemgetter(run), params) for run in range(num_restarts)]
    keys = jax.random.split(key, num_restarts)
    found = [scout(problem, key, one, x).params for key, one in zip(keys, runs, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def can_scout(problem: Problem, estimator: Estimator) -> bool:
    """Whether ``scout`` can be used: all sites normal, all gradients pathwise."""
    guide = _family(problem.guide)
    by = Stratified if isinstance(problem.guide, Mixture) else Reparameterization
    if not isinstance(guide, MeanField | VectorGuide):
        return False
    is_normal = len(guide.layout.sites) == len(guide.families)
    # Not when the ELBO is annealed: a start near a mode is what that is to prevent.
    is_elbo = problem.objective == Elbo()
    return is_normal and isinstance(estimator, by) and is_elbo


class Scouted(NamedTuple):
    """Where to start, and how many steps the runs took that found it."""

    params: Params
    num_steps: Array


def scout(problem: Problem, key: Key, params: Params, x: Data) -> Scouted:
    """Parameters to start from: those of the best of a few short runs.

    A Gaussian finds location and scale in some hundred steps of natural gradient, whatever their
    units: one of full rank, which strays into fewer lesser modes, or in many dimensions a
    mean-field one. All runs have the same noise, so that they can be compared; it has mean zero
    and covariance one, so that on a Gaussian posterior it is as good as all noise there is. They
    go on for as long as the best gets better. The components of a ``Mixture`` start where
    different runs ended.

    Args:
      problem: one that ``can_scout``.
      key: of starts and noise.
      params: returned as they are where no run ends with a finite loss.
      x: data.
    """
    # NumPy's random numbers: compiling JAX's would take longer than everything else here.
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    guide: Any = problem.guide
    size = _family(guide).layout.size
    num_components = guide.num_components if isinstance(guide, Mixture) else 1
    num_starts = max(NUM_STARTS, num_components)
    starts = generator.uniform(-WIDTH, WIDTH, (num_starts, size))
    starts[0] *= 0.05  # where the guide itself would start
    noise = generator.standard_normal((NOISE_STEPS * NUM_SAMPLES, size))
    noise -= noise.mean(axis=0)
    if size <= MAX_FULL:
        noise = np.linalg.solve(np.linalg.cholesky(noise.T @ noise / len(noise)), noise.T).T
    else:
        noise /= noise.std(axis=0)
    noise = noise.reshape(NOISE_STEPS, NUM_SAMPLES, size)
    return Scouted(*_scout(problem, jnp.asarray(starts), jnp.asarray(noise), params, x))


class Search(NamedTuple):
    """Short runs under way: where each is, its mean loss in the last block, and their rate."""

    runs: PyTree
    losses: Array
    rate: Array
    num_blocks: Array
    is_done: Array


def _family(guide: Any) -> Any:
    """The guide that parameters are found for: that of a mixture's components."""
    return guide.guide if isinstance(guide, Mixture) else guide


@jit("problem")
def _scout(
    problem: Problem, starts: Array, noise: Array, params: Params, x: Data
) -> tuple[Params, Array]:
    guide: Any = problem.guide
    wanted = _family(guide)
    kind = FullRank if wanted.layout.size <= MAX_FULL else MeanField
    simple: Any = kind(jax.tree.unflatten(wanted.treedef, wanted.families))
    short = Problem(problem.log_joint, simple, problem.objective)
    estimator, optimizer = Reparameterization(NUM_SAMPLES), natural_gradient(simple)

    def begin(u: Array) -> tuple[PyTree, PyTree]:
        at = simple.from_mean_field(u, jnp.full_like(u, START))
        return at, optimizer.init(params._replace(guide=at))

    def run_block(run: tuple[PyTree, PyTree], rate: Array) -> tuple[tuple[PyTree, PyTree], Array]:
        def step(run: tuple[PyTree, PyTree], index: Array) -> tuple[Any, Array]:
            at, opt_state = run
            draws: PyTree = noise[index % NOISE_STEPS]
            draws = draws if isinstance(simple, FullRank) else (draws, {})
            here = params._replace(guide=at)
            found, _ = estimator.estimate(draws, short, here, x, ())
            updates, opt_state = optimizer.update(found.grads, opt_state, here, fit_rate=rate)
            moved = optax.apply_updates(at, jax.tree.map(lambda u: rate * u, updates.guide))
            finite = [jnp.isfinite(leaf).all() for leaf in (found.loss, *jax.tree.leaves(moved))]
            is_finite = jnp.stack(finite).all()
            kept = functools.partial(jnp.where, is_finite)
            loss = jnp.where(is_finite, found.loss, jnp.inf)
            return jax.tree.map(kept, (moved, opt_state), run), loss

        run, losses = jax.lax.scan(step, run, jnp.arange(BLOCK_STEPS))
        return run, losses.mean()

    def take_block(state: Search) -> Search:
        runs, losses = jax.vmap(run_block, in_axes=(0, None))(state.runs, state.rate)
        is_better = losses.min() < state.losses.min() - LEVEL
        is_level = ~is_better & (state.num_blocks + 1 >= MIN_BLOCKS)
        rate = jnp.where(is_level, LAST_RATE, state.rate)
        return Search(runs, losses, rate, state.num_blocks + 1, is_level & (state.rate < 1))

    def is_going_on(state: Search) -> Array:
        return ~state.is_done & (state.num_blocks < MAX_BLOCKS)

    firsts = jax.vmap(begin)(starts)
    unknown = jnp.full(len(starts), jnp.inf, starts.dtype)
    search = Search(firsts, unknown, jnp.ones((), starts.dtype), jnp.int32(0), jnp.zeros((), bool))
    search = jax.lax.while_loop(is_going_on, take_block, search)
    (ends, _), losses = search.runs, search.losses
    if isinstance(guide, Mixture):
        found = _components(guide, simple, ends, losses, noise[0])
    else:
        found = _converted(
            wanted, simple, jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], ends)
        )
    is_found = jnp.isfinite(losses).any()
    kept = jax.tree.map(functools.partial(jnp.where, is_found), found, params.guide)
    return params._replace(guide=kept), len(starts) * BLOCK_STEPS * search.num_blocks


def _converted(guide: Any, simple: Any, params: PyTree) -> PyTree:
    """Parameters of the guide from those of a simple Gaussian."""
    if isinstance(guide, type(simple)):
        return params
    if isinstance(guide, NormalizingFlow) and isinstance(simple, FullRank):
        return guide.from_full_rank(params)
    return guide.from_mean_field(*simple.mean_field(params))


def _components(guide: Mixture, simple: Any, ends: PyTree, losses: Array, noise: Array) -> PyTree:
    """A mixture of the ends of runs: the best, then those of most mass far from any before.

    A run that ended at a mode taken already gives a component too, moved aside so that it can
    become another; its mass is shared.
    """
    locations, log_scales = jax.vmap(simple.mean_field)(ends)
    apart = (locations[:, None] - locations[None]) * jnp.exp(-log_scales)[None]
    # What the log density of run j falls by from its own location to that of run i.
    novelty = jnp.minimum(0.5 * jnp.sum(apart**2, axis=-1), MAX_NOVELTY)
    elbos = jnp.where(jnp.isfinite(losses), -losses, -jnp.inf)
    nearest = jnp.full_like(losses, MAX_NOVELTY)
    chosen: list[Array] = []
    components, logits = [], []
    for k in range(guide.num_components):
        best = jnp.argmax(elbos + nearest)
        is_taken = nearest[best] < 1
        nearest = jnp.minimum(nearest, novelty[:, best])
        loc, log_scale = locations[best], log_scales[best]
        end = jax.tree.map(lambda leaf: leaf[best], ends)  # noqa: B023
        aside = simple.from_mean_field(loc + 0.5 * jnp.exp(log_scale) * noise[k], log_scale)
        pick = functools.partial(jnp.where, is_taken)
        components.append(_converted(guide.guide, simple, jax.tree.map(pick, aside, end)))
        logits.append(elbos[best])
        chosen.append(best)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *components)
    picked = jnp.stack(chosen)
    is_shared = novelty[picked][:, picked] < 1
    shared = jnp.stack(logits) - jnp.log(jnp.sum(is_shared, axis=1))
    return {"logits": jax.nn.log_softmax(shared), "components": stacked}
