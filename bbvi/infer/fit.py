"""``fit``: checks what it is given, runs the loop, and judges what came out."""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bbvi._optimizers import Optimizer
from bbvi._tree import abstract
from bbvi._types import Data, Key, LogJoint, Params, PyTree, check_key
from bbvi.estimators import Estimator, default_estimator
from bbvi.estimators.base import check_pathwise, check_site_weights
from bbvi.guides.base import Guide
from bbvi.infer.automatic import choose_optimizer, choose_start
from bbvi.infer.checkpoint import Checkpoint, open_store
from bbvi.infer.chunk import start
from bbvi.infer.draws import select_params
from bbvi.infer.ladder import Auto, climb
from bbvi.infer.loop import Loop, Progress, final_status
from bbvi.infer.nonfinite import explain_nonfinite
from bbvi.infer.options import (
    check_auto,
    check_batches,
    check_callbacks,
    check_optimizer,
    check_options,
    check_resume,
    check_resume_params,
)
from bbvi.infer.placement import check_same, place
from bbvi.infer.restarts import Restarts, compare_restarts
from bbvi.infer.result import FitResult, History
from bbvi.infer.step import (
    Algorithm,
    FitState,
    NonFinite,
    StepInfo,
    as_estimator,
    initial_params,
)
from bbvi.infer.stopping import Plateau, trend
from bbvi.infer.streams import source_of
from bbvi.objectives import Elbo, Objective
from bbvi.problem import Problem, check_problem
from bbvi.refinement import free_point, free_problem
from bbvi.tempering import Tempered

MAX_STEPS = 100_000


class NonFiniteError(FloatingPointError):
    """A step's loss or gradient was not finite.

    Attributes:
      result: the ``FitResult`` up to the last good state.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> guide = bbvi.MeanField({"tau": bbvi.Normal()})
      >>> try:
      ...     bbvi.fit(lambda x, z: jnp.log(z["tau"]), guide, num_steps=10, progress=False)
      ... except bbvi.NonFiniteError as error:
      ...     error.result.status
      'nonfinite'
    """

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result


def fit(
    log_joint: LogJoint,
    guide: Guide | Auto,
    x: Data = None,
    *,
    key: Key | None = None,
    estimator: Estimator | dict[str, Estimator] | None = None,
    objective: Objective | None = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    num_epochs: int | None = None,
    stopping: Plateau | None = None,
    model_params: PyTree = None,
    init_params: PyTree = None,
    init_state: FitState | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    num_restarts: int = 1,
    mesh: Mesh | None = None,
    trace_fn: Callable[[StepInfo], PyTree] | None = None,
    callbacks: Sequence[Callable[[Progress], bool | None]] = (),
    nonfinite: NonFinite = "raise",
    throw: bool = True,
    progress: bool = True,
) -> FitResult:
    r"""Fit q(z; phi) to the posterior p(z | x) by maximising the ELBO.

    .. math:: \max_\phi E_{q(z; \phi)}[\log p(x, z) - \log q(z; \phi)]

    With nothing else given: each site gets a valid low-variance estimator. Normal sites that are
    differentiated pathwise take steps of natural gradient (``natural_gradient``), so that units do
    not matter, and a guide of nothing else starts from the best of a few short runs. Everything
    else, and anything in batches or of full rank in more than 256 dimensions, is left to Adam at
    0.05. The rate falls by 4 each time the ELBO levels off, and the run ends when it has levelled
    off at the smallest rate. The steps run as compiled chunks; a second call with an equal
    configuration and shapes compiles nothing.

    Args:
      log_joint: ``(x, z) -> []``, pure, for ONE draw z; ``(x, z, theta)`` with ``model_params``.
      guide: the variational family; its latents have the structure of z. ``Auto(sites)`` tries
        richer and richer ones.
      x: data, any pytree of arrays, passed to ``log_joint`` as it is; or a ``Loader`` of batches.
      key: typed key, ``jax.random.key(0)`` by default.
      estimator: gradient estimator, or a dict of them by site.
      objective: what is minimised, ``Elbo()`` by default.
      optimizer: any optax optimizer; it is run as it is, without lowering its rate.
      num_steps: steps to take. Without it, the run stops by ``stopping``, at 100,000 at most.
      batch_size: rows of x in a step, other ones every time: all rows once an epoch, in a random
        order that follows from ``key``. ``log_joint`` stays the function of data of any number of
        rows: its terms of the data are found and scaled by N/B. Latents of each datum are those
        of ``Local`` and ``Amortized`` guides. Arrays that are ``numpy.memmap`` stay on disk.
      num_epochs: in place of ``num_steps``, how often all batches are gone through, N // B each
        time.
      stopping: the stopping rule; with ``num_steps`` given, none unless one is named.
      model_params: initial theta of a learned model (any pytree of floating arrays).
      init_params: where the guide starts, from ``guide.params_at(z, scale)``; by default the
        best of a few short runs or, with an optimizer that is named, its own small random start.
      init_state: ``result.state`` of an earlier fit, to continue it; it is left usable.
      checkpoint: a folder, or a ``Checkpoint``, to save the run in as it goes. Where the folder
        holds this run already, it is continued.
      num_restarts: independent runs from different keys, compiled as one; the best is returned
        and their agreement reported.
      mesh: devices to spread the run over: rows of x, and of the parameters of ``Local`` guides,
        over its axis ``data``, draws over its axis ``samples``. The numbers are those of one
        device, up to rounding. Of several processes all must make the same call; see
        docs/devices.md.
      trace_fn: what to record at every step besides the loss, a function of ``StepInfo`` such as
        ``lambda info: info.gradient_norm``; it is compiled.
      callbacks: called between chunks with a ``Progress``; one that returns True stops the run.
      nonfinite: when a loss or gradient is not finite: ``"raise"`` an error, ``"skip"`` the step
        and count it, or ``"stop"`` and return what there is.
      throw: False returns a result with status ``nonfinite`` where an error would be raised.
      progress: show a bar with the ELBO, the norm of the gradient in longer runs, and the time
        left: at most, where the run stops by itself.

    Returns:
      A ``FitResult``; print it for the verdict.

    Raises:
      TypeError, ValueError: an argument is wrong; the message says what was got and expected.
      NonFiniteError: a step was not finite (with ``nonfinite="raise"`` and ``throw``); its
        ``result`` holds the last good state.
      Exception: whatever a callback, or Python code called by the model, raised; a ``result``
        with the last good state is attached to it.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):
      ...     return norm.logpdf(z["mu"], 0.0, 10.0) + norm.logpdf(x, z["mu"], 1.0).sum()
      >>> x = jnp.array([1.8, 2.2, 2.0, 2.4])
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal()})
      >>> result = bbvi.fit(log_joint, guide, x, key=jax.random.key(0), progress=False)
      >>> round(result.summary()["mu"]["mean"], 1)
      2.1

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """
    began = time.perf_counter()
    if isinstance(guide, Auto):
        check_auto(
            x,
            estimator=estimator,
            objective=objective,
            optimizer=optimizer,
            batch_size=batch_size,
            num_epochs=num_epochs,
            init_params=init_params,
            init_state=init_state,
            checkpoint=checkpoint,
            num_restarts=num_restarts if num_restarts != 1 else None,
            mesh=mesh,
        )
        run = functools.partial(
            fit,
            num_steps=num_steps,
            stopping=stopping,
            trace_fn=trace_fn,
            callbacks=callbacks,
            nonfinite=nonfinite,
            progress=progress,
        )
        key = check_key(jax.random.key(0) if key is None else key)
        return climb(run, log_joint, guide, x, key, model_params, throw=throw)
    check_options(num_steps, num_restarts, nonfinite, trace_fn, stopping, init_state)
    check_batches(batch_size, num_epochs, num_steps, x)
    check_callbacks(callbacks)
    checkpoint = None if checkpoint is None else Checkpoint.of(checkpoint)
    if init_state is not None and init_params is not None:
        raise ValueError("init_state and init_params both say where to start: give one.")
    named = None if optimizer is None else Optimizer.of(optimizer)
    problem, is_batched = Problem(log_joint, guide, objective or Elbo()), num_restarts > 1
    keys = jax.random.split(check_key(jax.random.key(0) if key is None else key), 4)
    run_keys = jax.random.split(keys[1], num_restarts) if is_batched else keys[1]
    order_key = run_keys if init_state is None else init_state.key
    placement = None
    if mesh is not None:
        placement, x = place(mesh, problem, x, batch_size)
    small, source = source_of(problem, x, batch_size, order_key)
    batching, few = source.batching, source.few
    if num_epochs is not None and batching is not None:
        num_steps = num_epochs * batching.steps_per_epoch
    if init_state is None:
        params = _initial(problem, keys[0], few, init_params, model_params, num_restarts)
    else:
        check_resume_params(problem, init_state.params, few, num_restarts)
        if placement is not None:
            init_state = placement.put(init_state, is_batched=is_batched)
        params = init_state.params

    one = jax.tree.map(lambda leaf: leaf[0], params) if is_batched else params
    if batching is not None:
        one = select_params(small, one, jnp.arange(batching.batch_size))
    resolved = _prepare(small, as_estimator(estimator), *abstract((one, few)))
    has_batches = batching is not None
    if placement is not None:
        placement.check_samples(resolved)
        if placement.is_shared:
            check_same("what fit was given", (keys, params))
    own, lowering = choose_optimizer(problem, resolved, has_batches=has_batches)
    chosen = named or Optimizer.of(own)
    if named is None and init_state is None and init_params is None and not has_batches:
        params = choose_start(problem, resolved, keys[3], params, source.x, num_restarts)
    if named is not None and not has_batches:
        check_optimizer(named, *abstract(one))
    algorithm = Algorithm(small, resolved, chosen, nonfinite, trace_fn, batching, placement)

    begin = 0 if init_state is None else int(np.max(init_state.step))
    state = start(algorithm, run_keys, source.feed(begin, 1)[0], params, is_batched=is_batched)
    if init_state is not None:
        check_resume(init_state, state)
        state = init_state

    rule = stopping if stopping or num_steps else Plateau()
    total, annealing = num_steps or MAX_STEPS, 0
    if isinstance(problem.objective, Tempered):
        annealing = problem.objective.num_annealing_steps(int(np.max(state.step)), total)
    lowering = None if named else lowering or rule or Plateau()
    loop = Loop(algorithm, source, total, rule, lowering, is_batched, annealing)
    position = loop.begin(state)
    if checkpoint is not None:
        store = loop.store = open_store(checkpoint, problem, algorithm, source, state, one)
        position = store.latest() or position
        if placement is not None:
            saved = placement.put(position.state, is_batched=is_batched)
            position = position._replace(state=saved)
    restarts: Restarts | None = None
    best: Any = ...
    detail = ""
    with source:
        status, state, record, since = loop.run(position, callbacks, progress=progress)
        if is_batched:
            restarts = None if loop.error else compare_restarts(small, source, keys[2], state)
            best = restarts.best if restarts else 0
        state, history = jax.tree.map(lambda leaf: leaf[best], (state, History(*record)))
        if status == "nonfinite":
            detail = explain_nonfinite(algorithm, state, source.feed(int(state.step), 1)[0])
    tail = history.loss[since:]
    tail = tail[np.isfinite(tail)]  # without the steps that were skipped
    if loop.error is not None:
        detail = "ended by " + traceback.format_exception_only(loop.error)[0].splitlines()[-1]
    result = FitResult(
        status=final_status(status, history.loss[annealing:], tail),
        state=state,
        history=history,
        trend=trend(tail) if len(tail) >= 8 else None,
        problem=problem,
        estimator=resolved,
        x=source.x,
        seconds=time.perf_counter() - began,
        restarts=restarts,
        detail=detail,
        batch_problem=small,
        source=source,
        algorithm=None if has_batches else algorithm,
    )
    if status == "nonfinite" and nonfinite == "raise" and throw:
        raise NonFiniteError(
            f"{detail}\n  state  The last good state is in this error's .result; nonfinite='skip' "
            "leaves such steps out.",
            result,
        )
    if loop.error is not None and throw:
        # Any exception can carry the result, as NonFiniteError does.
        loop.error.result = result  # type: ignore[attr-defined]
        loop.error.add_note(
            f"The fit ended at step {int(state.step)}; it is in this exception's .result."
        )
        raise loop.error
    return result


@functools.lru_cache(maxsize=1024)
def _prepare(
    problem: Problem, estimator: Estimator | None, treedef: Any, shapes: tuple[Any, ...]
) -> Estimator:
    """Check everything that shapes decide and choose the estimator; once per configuration."""
    params, x = jax.tree.unflatten(treedef, shapes)
    if problem.guide.refinement is not None:
        params = jax.eval_shape(functools.partial(free_point, problem), params, x)
        problem = free_problem(problem)
        local = [site.name for site in problem.guide.sites() if site.is_local]
        check_pathwise(problem, params, x, local)
    check_problem(problem, params, x)
    resolved = estimator or default_estimator(problem, params, x)
    check_site_weights(resolved, problem)
    resolved.validate(problem, params, x)
    return resolved


def _initial(
    problem: Problem, key: Key, x: Data, guide_params: PyTree, model_params: PyTree, restarts: int
) -> Params:
    """Parameters to start from; with restarts, from a key each, on a leading axis."""

    def make(key: Key) -> Params:
        return initial_params(problem, key, x, guide_params, model_params)

    return make(key) if restarts == 1 else jax.vmap(make)(jax.random.split(key, restarts))
