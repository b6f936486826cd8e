"""One optimisation step as a pure function."""

from __future__ import annotations

import dataclasses
import functools
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
from bbvi.infer.batching import Batching
from bbvi.infer.placement import Placement
from bbvi.objectives import Elbo, Objective
from bbvi.problem import Problem, check_problem
from bbvi.refinement import free_point, free_problem
from bbvi.tempering import Tempered, tempered

NonFinite = Literal["raise", "skip", "stop"]


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
      log_weights: ``[S]`` log weights of the draws, or ``[S, C]`` by component of the model; of
        the batch alone, where there are batches.
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
    """Everything static about a run; hashable, so a valid static argument of compiled code.

    With minibatches the problem is that of one batch, and what is called x is a ``Feed``. Of
    parameters that have a row for each datum a step reads and writes those of its batch, each with
    an optimizer state of its own: rows that are not in the batch do not move.
    """

    problem: Problem
    estimator: Estimator | None
    optimizer: Optimizer
    nonfinite: NonFinite = "raise"
    trace_fn: Callable[[StepInfo], PyTree] | None = None
    batching: Batching | None = None
    placement: Placement | None = None

    @property
    def free(self) -> Problem:
        """What estimators work on: the problem, with refined parameters as free ones."""
        return free_problem(self.problem)

    def resolve(self, params: Params, x: Data) -> Estimator:
        """The estimator in use: the one named, or the default for this model and guide."""
        return self.estimator or default_estimator(self.free, params, x)

    def init(self, key: Key, x: Data, params: Params) -> FitState:
        """State before the first step, from initial parameters."""
        zero = jnp.zeros((), jnp.int32)
        transformation = self.optimizer.transformation
        if self._has_rows(params):
            shared, rows = self._split(params)
            opt_state = transformation.init(shared), jax.vmap(transformation.init)(rows)
        else:
            opt_state = transformation.init(params)
        state = FitState(zero, key, params, opt_state, (), jnp.ones(()), zero)
        view, x = self.view(state, x)[:2]
        point = free_point(self.problem, view.params, x)
        estimator_state = self.resolve(point, x).init(self.free, point, x)
        return self.placed(state._replace(estimator_state=estimator_state))

    def placed(self, state: FitState) -> FitState:
        """The state where it lies between steps."""
        return state if self.placement is None else self.placement.state(state)

    def draw(self, state: FitState, step: Array, x: Data) -> PyTree:
        """Randomness of step number ``step``."""
        return self.resolve(state.params, x).draw(jax.random.fold_in(state.key, step), self.free)

    def _split(self, params: Params) -> tuple[Params, Params]:
        """Parameters that all data share, and those with a row for each datum."""
        shared, rows = self.problem.guide.split_rows(params.guide)
        return Params(shared, params.model), Params(rows, ())

    def _has_rows(self, params: Params) -> bool:
        return self.batching is not None and bool(jax.tree.leaves(self._split(params)[1]))

    def view(self, state: FitState, x: Data) -> tuple[FitState, Data, Array | None]:
        """State and data as the step's batch has them, and the numbers of its rows."""
        if self.batching is None:
            return state, x, None
        x, numbers = self.batching.take(x, state.step)
        place = (lambda leaf: leaf) if self.placement is None else self.placement.rows
        x = self.batching.map_rows(place, x)
        if not self._has_rows(state.params):
            return state, x, None
        shared, rows = self._split(state.params)
        rows, row_states = jax.tree.map(
            lambda leaf: place(leaf[numbers]), (rows, state.opt_state[1])
        )
        guide = self.problem.guide.join_rows(shared.guide, rows.guide)
        view = state._replace(
            params=Params(guide, shared.model), opt_state=(state.opt_state[0], row_states)
        )
        return view, x, numbers

    def _put_back(self, state: FitState, view: FitState, numbers: Array | None) -> FitState:
        """The whole state, with what the batch made of its part."""
        if numbers is None:
            return view

        def put(whole: PyTree, part: PyTree) -> PyTree:
            part = part if self.placement is None else self.placement.everywhere(part)
            return jax.tree.map(
                lambda leaf, rows: leaf.at[numbers].set(rows, unique_indices=True), whole, part
            )

        shared, rows = self._split(view.params)
        rows = put(self._split(state.params)[1], rows)
        guide = self.problem.guide.join_rows(shared.guide, rows.guide)
        opt_state = view.opt_state[0], put(state.opt_state[1], view.opt_state[1])
        return view._replace(params=Params(guide, shared.model), opt_state=opt_state)

    def _update(self, grads: Params, state: FitState, loss: Array) -> tuple[Params, PyTree]:
        """What the optimizer adds to the parameters, and its next state."""
        # An optimizer of phases goes by the run's step: states of rows count only their own. One
        # whose steps are not linear in their length wants to know what they will be multiplied by.
        update = functools.partial(
            self.optimizer.transformation.update,
            value=loss,
            fit_step=state.step,
            fit_rate=state.rate,
        )
        if not self._has_rows(state.params):
            return update(grads, state.opt_state, state.params)

        (grads, row_grads), (params, rows) = self._split(grads), self._split(state.params)
        shared, shared_state = update(grads, state.opt_state[0], params)
        rows, row_states = jax.vmap(update)(row_grads, state.opt_state[1], rows)
        guide = self.problem.guide.join_rows(shared.guide, rows.guide)
        return Params(guide, shared.model), (shared_state, row_states)

    def estimate(self, state: FitState, x: Data, noise: PyTree) -> tuple[Estimate, PyTree]:
        """The step's gradient for its batch x, and the estimator's next state."""
        found, next_state = self._estimate(state, x, noise)
        if self.batching is not None:
            scale = self.batching.scale
            grads = jax.tree.map(lambda g: scale * g, found.grads)
            found = found._replace(loss=scale * found.loss, grads=grads)
        return found, next_state

    def _estimate(self, state: FitState, x: Data, noise: PyTree) -> tuple[Estimate, PyTree]:
        if self.problem.guide.refinement is None:
            return self._estimate_at(state, state.params, x, noise)
        point, pullback = jax.vjp(lambda p: free_point(self.problem, p, x), state.params)
        found, next_state = self._estimate_at(state, point, x, noise)
        return found._replace(grads=pullback(found.grads)[0]), next_state

    def _estimate_at(
        self, state: FitState, params: Params, x: Data, noise: PyTree
    ) -> tuple[Estimate, PyTree]:
        estimator, problem = self.resolve(params, x), self.free
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
        view, x, numbers = self.view(state, x)
        stepped, info = self._step(view, x, noise)
        return self._put_back(state, stepped, numbers), info

    def _step(self, state: FitState, x: Data, noise: PyTree) -> tuple[FitState, StepInfo]:
        estimate, estimator_state = self.estimate(state, x, noise)
        updates, opt_state = self._update(estimate.grads, state, estimate.loss)
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
        view, x, numbers = self.view(state, x)
        stepped, info = self._step(view, x, noise)
        applied = info.finite & jnp.logical_not(halted)
        counted = applied | (jnp.logical_not(halted) & (self.nonfinite == "skip"))
        names = ("params", "opt_state", "estimator_state")
        kept = {
            name: jax.tree.map(
                lambda new, old: jnp.where(applied, new, old),
                getattr(stepped, name),
                getattr(view, name),
            )
            for name in names
        }
        skipped = state.skipped + (counted & ~applied)
        view = view._replace(step=state.step + counted, skipped=skipped, **kept)
        return self._put_back(state, view, numbers), info


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
    numbers as those of ``fit`` with the same optimizer.

    Args:
      log_joint: ``(x, z) -> []``, or ``(x, z, theta) -> []`` with learned parameters.
      guide: the variational family.
      estimator: gradient estimator; by default a valid one for each site.
      objective: what is minimised; by default ``Elbo()``.
      optimizer: any optax optimizer; by default Adam at 0.05. For Gaussian guides
        ``natural_gradient(guide)`` is better: it is what ``fit`` takes.

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
        point = free_point(problem, full, x)
        check_problem(algorithm.free, point, x)
        algorithm.resolve(point, x).validate(algorithm.free, point, x)
        return algorithm.init(run_key, x, full)

    def step(state: FitState, x: Data = None) -> tuple[FitState, StepInfo]:
        given: Any = state
        if not isinstance(given, FitState):
            got = type(given).__name__
            raise TypeError(f"step takes (state, x), with a state from init or step, got a {got}.")
        noise = algorithm.draw(state, state.step, x)
        return algorithm.guarded_step(state, x, noise, jnp.zeros((), bool))

    return init, step


def initial_params(
    problem: Problem, key: Key, x: Data, guide_params: PyTree, model_params: PyTree
) -> Params:
    """Parameters to start from: the guide's own, or the given ones after a check of their form."""
    own = jax.eval_shape(problem.guide.init, key, x)
    for name, leaf in named_leaves(model_params, "model_params").items():
        try:
            jnp.result_type(leaf)
        except TypeError as error:
            raise TypeError(
                f"model_params must hold arrays of real numbers, got {leaf!r} for '{name}'."
            ) from error
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
