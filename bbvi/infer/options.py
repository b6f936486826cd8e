"""Options of ``fit``: refused where they are wrong, with what was got and what was expected."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp

from bbvi._checks import is_count
from bbvi._optimizers import Optimizer
from bbvi._types import Data, Params, PyTree
from bbvi.infer.loader import Loader
from bbvi.infer.step import FitState, NonFinite
from bbvi.infer.stopping import Plateau
from bbvi.problem import Problem

RESUME = (
    "init_state does not fit this call: guide, model_params, estimator, optimizer and "
    "num_restarts must be those of the run it came from."
)


def check_options(
    num_steps: Any, num_restarts: Any, nonfinite: Any, trace_fn: Any, stopping: Any, init_state: Any
) -> None:
    """Raise unless each of these is what ``fit`` takes."""
    for name, value in (("num_steps", num_steps), ("num_restarts", num_restarts)):
        if value is not None and not is_count(value):
            raise ValueError(f"{name} must be an int >= 1, got {value!r}.")
    if nonfinite not in get_args(NonFinite):
        raise ValueError(f"nonfinite must be one of {get_args(NonFinite)}, got {nonfinite!r}.")
    if trace_fn is not None and not callable(trace_fn):
        raise TypeError(f"trace_fn must be a function of StepInfo, got {trace_fn!r}.")
    if stopping is not None and not isinstance(stopping, Plateau):
        raise TypeError(f"stopping must be a bbvi.Plateau, got {stopping!r}.")
    if init_state is not None and not isinstance(init_state, FitState):
        got = type(init_state).__name__
        raise TypeError(f"init_state must be the .state of a result, result.state, got a {got}.")


def check_auto(x: Data, **options: Any) -> None:
    """Raise if ``Auto`` is given batches, or what it chooses by itself."""
    if isinstance(x, Loader):
        raise ValueError(
            "Auto compares guides on all data at once, got a Loader of batches; name a guide such "
            "as bbvi.FullRank(sites)."
        )
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"Auto chooses {', '.join(given)} by itself, for every guide it tries: leave them out, "
            "or name a guide such as bbvi.FullRank(sites)."
        )


def check_batches(batch_size: Any, num_epochs: Any, num_steps: Any, x: Any) -> None:
    """Raise unless batches and epochs are counts, and say how long to run in one way."""
    for name, value in (("batch_size", batch_size), ("num_epochs", num_epochs)):
        if value is not None and not is_count(value):
            raise ValueError(f"{name} must be an int >= 1, got {value!r}.")
    if num_epochs is not None and batch_size is None and not isinstance(x, Loader):
        raise ValueError("num_epochs counts passes over batches of the data: give batch_size too.")
    if num_epochs is not None and num_steps is not None:
        raise ValueError(
            f"num_steps={num_steps} and num_epochs={num_epochs} both say how long to run: give one."
        )


def check_callbacks(callbacks: Any) -> None:
    """Raise unless they are a sequence of functions."""
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks must be a sequence of functions, got {callbacks!r}.")
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions of Progress, got {callback!r}.")


@functools.lru_cache(maxsize=1024)
def check_optimizer(optimizer: Optimizer, treedef: Any, shapes: tuple[Any, ...]) -> None:
    """Raise an error that names the optimizer if it fails on parameters of these shapes."""
    transformation = optimizer.transformation

    def update(params: Params) -> PyTree:
        of_fit = {"fit_step": jnp.zeros((), jnp.int32), "fit_rate": jnp.ones(())}
        extra = {"value": jnp.zeros(()), **of_fit}
        return transformation.update(params, transformation.init(params), params, **extra)

    try:
        jax.eval_shape(update, jax.tree.unflatten(treedef, shapes))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"optimizer fails on the parameters to be trained: {error} Check what it was made "
            "with: a learning rate must be a number, or a function of the step."
        ) from error


def check_resume_params(problem: Problem, params: Params, x: Data, restarts: int) -> None:
    """Raise unless the guide's parameters in a state to continue from have the guide's shapes."""
    lead = (restarts,) if restarts > 1 else ()
    own = jax.eval_shape(lambda: problem.guide.init(jax.random.key(0), x))
    wanted = jax.tree.map(lambda leaf: (*lead, *leaf.shape), own)
    if jax.tree.map(jnp.shape, params.guide) != wanted:
        raise ValueError(RESUME)


def check_resume(given: FitState, fresh: FitState) -> None:
    """Raise unless a state to continue from fits this model, guide, estimator and optimizer."""
    if jax.tree.map(jnp.shape, given) != jax.tree.map(jnp.shape, fresh):
        raise ValueError(RESUME)
