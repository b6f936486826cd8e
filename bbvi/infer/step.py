"""One optimisation step as a pure function, and the compiled chunk of many steps."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bbvi._optimizers import Optimizer, default_optimizer
from bbvi._tree import named_leaves
from bbvi._types import Data, Key, LogJoint, Params, PyTree, check_key
from bbvi.estimators import Estimate, Estimator, PerSite, default_estimator
from bbvi.guides.base import Guide
from bbvi.objectives import Elbo, Objective
from bbvi.problem import Problem, check_problem
from bbvi.tempering import Tempered, tempered

NonFinite = Literal["raise", "skip", "stop"]

# A chunk is compiled for at most MAX_CHUNK steps and run for any number up to that. Inside it,
# base noise is drawn for blocks of steps at once: generating random numbers dominates a small
# step, and one large call is far cheaper than many small ones.
MAX_CHUNK = 10_000
MAX_BLOCK = 1000
BLOCK_ENTRIES = 1 << 17
RECORD_ENTRIES = 1 << 24


class FitState(NamedTuple):
    """A whole run, resumable: everything the next step needs besides the data.

    Attributes:
      step: steps taken.
      key: key of the run; step t uses ``fold_in(key, t)``, however steps are chunked.
      params: trained parameters.
      opt_state: state of the optimizer.
      estimator_state: state of the estimator (moving averages and the like).
      rate: multiplier of the optimizer's updates, lowered by ``fit`` as the ELBO levels off.
      skipped: steps left out because their loss or gradient was not finite.

    Example:
      >>> import bbvi, jax
      >>> init, _ = bbvi.make_step(lambda x, z: -0.5 * z**2, bbvi.MeanField(bbvi.Normal()))
      >>> int(init(jax.random.key(0)).step)
      0
    """

    step: Array
    key: Key
    params: Params
    opt_state: optax.OptState
    estimator_state: PyTree
    rate: Array
    skipped: Array


class StepInfo(NamedTuple):
    """What one step saw, for ``trace_fn`` and for hand-written loops.

    Attributes:
      loss: the objective's value.
      gradient_norm: Euclidean norm of the gradient over all parameters.
      finite: whether loss and gradient were finite; if not, the parameters were left alone.
      log_weights: ``[S]`` log weights of the draws, or ``[S, C]`` by component of the model.
      params: parameters the gradient was taken at.
      grads: the gradient.

    Example:
      >>> import bbvi
      >>> result = bbvi.fit(
      ...     lambda x, z: -0.5 * z**2,
      ...     bbvi.MeanField(bbvi.Normal()),
      ...     num_steps=50,
      ...     progress=False,
      ...     trace_fn=lambda info: info.params.guide.normal,
      ... )
      >>> result.history.trace.shape
      (50, 2, 1)
    """

    loss: Array
    gradient_norm: Array
    finite: Array
    log_weights: Array
    params: Params
    grads: Params


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """Everything static about a run; hashable, so a valid static argument of compiled code."""

    problem: Problem
    estimator: Estimator | None
    optimizer: Optimizer
    nonfinite: NonFinite = "raise"
    trace_fn: Callable[[StepInfo], PyTree] | None = None

    def resolve(self, params: Params, x: Data) -> Estimator:
        """The estimator in use: the one named, or the default for this model and guide."""
        return self.estimator or default_estimator(self.problem, params, x)

    def init(self, key: Key, x: Data, params: Params) -> FitState:
        """State before the first step, from initial parameters."""
        estimator_state = self.resolve(params, x).init(self.problem, params, x)
        zero = jnp.zeros((), jnp.int32)
        opt_state = self.optimizer.transformation.init(params)
        return FitState(zero, key, params, opt_state, estimator_state, jnp.ones(()), zero)

    def draw(self, state: FitState, step: Array, x: Data) -> PyTree:
        """Randomness of step number ``step``."""
        return self.resolve(state.params, x).draw(jax.random.fold_in(state.key, step), self.problem)

    def estimate(self, state: FitState, x: Data, noise: PyTree) -> tuple[Estimate, PyTree]:
        """The step's gradient, and the estimator's next state."""
        estimator, problem, params = self.resolve(state.params, x), self.problem, state.params
        objective = problem.objective
        if not isinstance(objective, Tempered):
            return estimator.estimate(noise, problem, params, x, state.estimator_state)
        # The power is handed on as a parameter of the model, whose gradient is dropped.
        beta = jnp.asarray(objective.schedule(state.step), state.rate.dtype)
        problem = dataclasses.replace(problem, log_joint=tempered(problem.log_joint))
        params = params._replace(model=(params.model, beta))
        found, next_state = estimator.estimate(noise, problem, params, x, state.estimator_state)
        grads = found.grads._replace(model=found.grads.model[0])
        return found._replace(grads=grads), next_state

    def step(self, state: FitState, x: Data, noise: PyTree) -> tuple[FitState, StepInfo]:
        """One step with given randomness, whatever its loss and gradient are."""
        estimate, estimator_state = self.estimate(state, x, noise)
        updates, opt_state = self.optimizer.transformation.update(
            estimate.grads, state.opt_state, state.params, value=estimate.loss
        )
        updates = jax.tree.map(lambda u: u * state.rate.astype(u.dtype), updates)
        # NaN and infinity both survive a sum of squares, so the norm shows whether the gradient
        # is finite (a norm beyond the largest float does not pass either: that is a divergence).
        # Where nothing reads it, as in an unguarded chunk without a trace, it is not computed.
        squares = [jnp.vdot(g, g) for g in jax.tree.leaves(estimate.grads)]
        gradient_norm = jnp.sqrt(sum(squares, jnp.zeros(())))
        info = StepInfo(
            estimate.loss,
            gradient_norm,
            jnp.isfinite(estimate.loss) & jnp.isfinite(gradient_norm),
            estimate.log_weights,
            state.params,
            estimate.grads,
        )
        next_state = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            estimator_state=estimator_state,
        )
        return next_state, info

    def guarded_step(
        self, state: FitState, x: Data, noise: PyTree, halted: Array
    ) -> tuple[FitState, StepInfo]:
        """One step that leaves parameters as they were when halted or not finite."""
        stepped, info = self.step(state, x, noise)
        applied = info.finite & jnp.logical_not(halted)
        counted = applied | (jnp.logical_not(halted) & (self.nonfinite == "skip"))
        names = ("params", "opt_state", "estimator_state")
        kept = {
            name: jax.tree.map(
                lambda new, old: jnp.where(applied, new, old),
                getattr(stepped, name),
                getattr(state, name),
            )
            for name in names
        }
        skipped = state.skipped + (counted & ~applied)
        return state._replace(step=state.step + counted, skipped=skipped, **kept), info


def as_estimator(estimator: Any) -> Estimator | None:
    """An estimator, a dict of them by site, or None; raise on anything else."""
    if isinstance(estimator, dict):
        return PerSite(estimator)
    if estimator is not None and not isinstance(estimator, Estimator):
        raise TypeError(
            "estimator must be a bbvi.Estimator such as bbvi.Reparameterization(), a dict of them "
            f"by site, or None, got {estimator!r}."
        )
    return estimator


def make_step(
    log_joint: LogJoint,
    guide: Guide,
    *,
    estimator: Estimator | dict[str, Estimator] | None = None,
    objective: Objective | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[Callable[..., FitState], Callable[..., tuple[FitState, StepInfo]]]:
    """The pure pair under ``fit``, for people who write their own loop.

    A step whose loss or gradient is not finite leaves the parameters as they were and says so in
    its info. Both functions work under ``jit``, ``vmap`` and ``scan``, and steps give the same
    numbers as ``fit`` does.

    Args:
      log_joint: ``(x, z) -> []``, or ``(x, z, theta) -> []`` with learned parameters.
      guide: the variational family.
      estimator: gradient estimator; by default a valid one for each site.
      objective: what is minimised; by default ``Elbo()``.
      optimizer: any optax optimizer; by default Adam.

    Returns:
      ``init(key, x, params=None, model_params=None) -> FitState`` and
      ``step(state, x) -> (FitState, StepInfo)``.

    Raises:
      TypeError, ValueError: as ``fit`` does, when ``init`` is first called.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal()})
      >>> init, step = bbvi.make_step(lambda x, z: -0.5 * (z["mu"] - x) ** 2, guide)
      >>> state = init(jax.random.key(0), 1.5)
      >>> state, infos = jax.lax.scan(lambda s, _: step(s, 1.5), state, length=500)
      >>> infos.loss.shape, int(state.step)
      ((500,), 500)

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """
    problem = Problem(log_joint, guide, objective or Elbo())
    chosen = Optimizer.of(default_optimizer() if optimizer is None else optimizer)
    algorithm = Algorithm(problem, as_estimator(estimator), chosen, nonfinite="skip")

    def init(
        key: Key, x: Data = None, params: PyTree = None, model_params: PyTree = None
    ) -> FitState:
        init_key, run_key = jax.random.split(check_key(key))
        full = initial_params(problem, init_key, x, params, model_params)
        check_problem(problem, full, x)
        algorithm.resolve(full, x).validate(problem, full, x)
        return algorithm.init(run_key, x, full)

    def step(state: FitState, x: Data = None) -> tuple[FitState, StepInfo]:
        noise = algorithm.draw(state, state.step, x)
        return algorithm.guarded_step(state, x, noise, jnp.zeros((), bool))

    return init, step


def initial_params(
    problem: Problem, key: Key, x: Data, guide_params: PyTree, model_params: PyTree
) -> Params:
    """Parameters to start from: the guide's own, or the given ones after a check of their form."""
    own = jax.eval_shape(problem.guide.init, key, x)
    if guide_params is None:
        return _arrays(problem.init(key, x, model_params))
    wanted = {n: leaf.shape for n, leaf in named_leaves(own, "guide").items()}
    got = {n: jnp.shape(leaf) for n, leaf in named_leaves(guide_params, "guide").items()}
    is_same = jax.tree.structure(own) == jax.tree.structure(guide_params)  # type: ignore[operator]
    if got != wanted or not is_same:
        raise ValueError(
            f"init_params do not fit the guide: got {got}, expected {wanted}; make them with "
            "guide.params_at(z, scale) or guide.init(key, x)."
        )
    return _arrays(Params(guide_params, model_params))


def _arrays(params: Params) -> Params:
    """Parameters as arrays of a definite type: a weakly typed one would compile the loop twice."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)


@functools.partial(jax.jit, static_argnames=("algorithm", "is_batched"))
def start(algorithm: Algorithm, key: Key, x: Data, params: Params, *, is_batched: bool) -> FitState:
    """State before the first step; with restarts, keys and parameters have a leading axis."""
    init = functools.partial(algorithm.init, x=x)
    return jax.vmap(init)(key, params=params) if is_batched else init(key, params=params)


@functools.partial(jax.jit, static_argnames=("algorithm", "is_batched", "is_guarded"))
def run_chunk(
    algorithm: Algorithm,
    state: FitState,
    x: Data,
    num_steps: Array,
    *,
    is_batched: bool,
    is_guarded: bool,
) -> tuple[FitState, Array, tuple[Array, PyTree]]:
    """Run ``num_steps``, at most the product of ``chunk_shape``, as one program.

    Checking every step before applying it costs up to a quarter of a step (the gradient must be
    written out and reduced first), so a chunk first runs unguarded. Only if a loss or the final
    parameters are not finite, which every bad gradient leads to, is it run again, guarded, from
    the state it began with; that is why that state is not donated. Steps have their own keys: the
    second run repeats the first.

    Args:
      algorithm: what to run.
      state: where from.
      x: data.
      num_steps: traced, so that any number runs without compiling again.
      is_batched: whether the state has a leading axis of restarts.
      is_guarded: whether a step that is not finite leaves the state as it was; unless the policy
        is to skip it, the state then stays so for the rest of the chunk.

    Returns:
      The state; whether all losses and its parameters are finite; and per step, padded to the
      chunk's length, losses and outputs of ``trace_fn``.
    """
    run = functools.partial(_run_chunk, algorithm, x=x, num_steps=num_steps, is_guarded=is_guarded)
    return jax.vmap(run)(state) if is_batched else run(state)


def _run_chunk(
    algorithm: Algorithm, state: FitState, *, x: Data, num_steps: Array, is_guarded: bool
) -> tuple[FitState, Array, tuple[Array, PyTree]]:
    first = state.step
    num_blocks, block = chunk_shape(algorithm, state, x)

    def take(carry: tuple[FitState, Array], noise: PyTree) -> tuple[Any, Any]:
        state, halted = carry
        if is_guarded:
            state, info = algorithm.guarded_step(state, x, noise, halted)
            halted = halted | (~info.finite & (algorithm.nonfinite != "skip"))
        else:
            state, info = algorithm.step(state, x, noise)
        traced = () if algorithm.trace_fn is None else algorithm.trace_fn(info)
        return (state, halted), (info.loss, traced)

    def run_block(carry: Any, start: Array) -> tuple[Any, Any]:
        steps = start + jnp.arange(block)
        noise = jax.vmap(lambda i: algorithm.draw(carry[0], first + i, x))(steps)

        def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
            index, noise = inputs
            # Masks the steps past the end; and on CPU the step compiles into a tighter program
            # inside a branch than as a bare loop body.
            return _when(index < num_steps, take, carry, noise)

        return jax.lax.scan(body, carry, (steps, noise))

    def maybe_block(carry: Any, start: Array) -> tuple[Any, Any]:
        return _when(start < num_steps, run_block, carry, start)

    starts = block * jnp.arange(num_blocks)
    (state, _), outputs = jax.lax.scan(maybe_block, (state, jnp.zeros((), bool)), starts)
    losses, traces = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)
    finite = [jnp.isfinite(leaf).all() for leaf in (losses, *jax.tree.leaves(state.params))]
    return state, jnp.stack(finite).all(), (losses, traces)


def _when(condition: Array, run: Callable[..., Any], carry: Any, inputs: Any) -> tuple[Any, Any]:
    """``run(carry, inputs)`` if the condition holds, else the carry as it is and zero outputs."""
    _, outputs = jax.eval_shape(run, carry, inputs)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), outputs)
    return jax.lax.cond(condition, run, lambda carry, _: (carry, blank), carry, inputs)


def chunk_shape(algorithm: Algorithm, state: FitState, x: Data) -> tuple[int, int]:
    """Blocks per chunk and steps per block, for ONE run (no axis of restarts).

    A block's noise should stay in the processor's cache; a chunk's records in a sane memory.
    """
    noise = jax.eval_shape(lambda: algorithm.draw(state, jnp.zeros((), jnp.int32), x))
    records = jax.eval_shape(
        lambda n: algorithm.trace_fn and algorithm.trace_fn(algorithm.step(state, x, n)[1]), noise
    )
    block = max(1, min(MAX_BLOCK, BLOCK_ENTRIES // max(_entries(noise), 1)))
    block = max(1, min(block, RECORD_ENTRIES // max(_entries(records), 1)))
    num_blocks = RECORD_ENTRIES // (block * max(_entries(records), 1))
    return max(1, min(num_blocks, MAX_CHUNK // block)), block


def _entries(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
