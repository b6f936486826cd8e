"""What an estimator is: an unbiased (or honestly biased) gradient of the objective."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
from jax import Array

from bbvi._types import Data, Key, Params, PyTree
from bbvi.problem import Problem


class Estimate(NamedTuple):
    """What an estimator returns at a step.

    Attributes:
      loss: the objective's value (never the surrogate's), a scalar.
      grads: gradient of the loss, with the structure of ``Params``.
      log_weights: log p - log q of the draws (with a closed-form entropy, its stand-in), ``[S]``,
        or ``[S, C]`` where each component of the model has its own.

    Example:
      >>> import bbvi, jax
      >>> problem = bbvi.Problem(lambda x, z: -0.5 * z**2, bbvi.MeanField(bbvi.Normal()))
      >>> params, estimator = problem.init(jax.random.key(0), None), bbvi.Reparameterization(4)
      >>> noise = estimator.draw(jax.random.key(1), problem)
      >>> estimate, _ = estimator.estimate(noise, problem, params, None, ())
      >>> bool(estimate.loss == -estimate.log_weights.mean())
      True
    """

    loss: Array
    grads: Params
    log_weights: Array


class Cost(NamedTuple):
    """What a step evaluates of ``log_joint``.

    A gradient with respect to learned parameters only is not counted: it comes with every fit of
    them.

    Attributes:
      values: evaluations of it alone.
      gradients: evaluations together with the gradient in the latents.

    Example:
      >>> import bbvi
      >>> bbvi.ScoreFunction(8).cost, bbvi.Reparameterization(4).cost
      (Cost(values=8, gradients=0), Cost(values=0, gradients=4))
    """

    values: int = 0
    gradients: int = 0


@dataclasses.dataclass(frozen=True)
class Estimator(abc.ABC):
    """How the gradient of the objective is estimated: configuration only, compared by value.

    Attributes:
      num_samples: S, draws from the guide per step.
      is_biased: whether the expected gradient is another than the objective's. Such an estimator
        is a ``BiasedEstimator``, so that its ``repr`` says so wherever it is reported.
      takes_site_weights: whether it heeds ``problem.site_weights``, as minibatches need for models
        with both global and local latents.
      is_pathwise: whether the gradient passes through the draws. True unless a class says
        otherwise, so that one that does not think of discrete latents is refused them.

    Example:
      >>> import dataclasses, bbvi, jax
      >>> @dataclasses.dataclass(frozen=True)
      ... class ZerothOrder(bbvi.Estimator):
      ...     "Always zero: a placeholder that shows the form."
      ...
      ...     def estimate(self, noise, problem, params, x, state):
      ...         z, log_q = problem.sample_and_log_q(noise, params, x)
      ...         log_weights = problem.log_p(params, x, z) - log_q
      ...         grads = jax.tree.map(lambda leaf: 0.0 * leaf, params)
      ...         return bbvi.Estimate(problem.objective(log_weights), grads, log_weights), state
      >>> ZerothOrder(num_samples=3)
      ZerothOrder(num_samples=3)
    """

    num_samples: int = 1
    is_pathwise: ClassVar[bool] = True
    is_biased: ClassVar[bool] = False
    takes_site_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.num_samples, int) or self.num_samples < 1:
            raise ValueError(
                f"{type(self).__name__} num_samples must be an int >= 1, got {self.num_samples!r}."
            )

    @property
    def cost(self) -> Cost:
        """Evaluations of ``log_joint`` per step."""
        return Cost(gradients=self.num_samples) if self.is_pathwise else Cost(self.num_samples)

    def cost_for(self, problem: Problem, params: Params, x: Data) -> Cost:
        """Evaluations of ``log_joint`` per step, where they depend on the problem."""
        del problem, params, x
        return self.cost

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        """Raise if the estimator is invalid for this model, guide or objective.

        Called once before compiling, with arrays or their shapes.
        """
        check_groups(self, problem)
        if self.is_pathwise:
            check_pathwise(problem, params, x, [site.name for site in problem.guide.sites()])

    def init(self, problem: Problem, params: Params, x: Data) -> PyTree:
        """State before the first step."""
        del problem, params, x
        return ()

    def draw(self, key: Key, problem: Problem) -> PyTree:
        """The step's randomness: base noise of ``num_samples`` draws unless overridden.

        It must not depend on the parameters: the engine draws it for many steps at once.
        """
        return problem.base_noise(key, self.num_samples)

    @abc.abstractmethod
    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        """Loss, gradients and log weights of one step, and the next state."""


class BiasedEstimator(Estimator):
    """An estimator whose expected gradient is not the objective's; its ``repr`` says so.

    Subclasses are dataclasses with ``repr=False``, so that this ``repr`` is theirs.

    Example:
      >>> import bbvi
      >>> bbvi.StraightThrough(4)
      StraightThrough(num_samples=4) [biased]

    References:
      Mohamed, Rosca, Figurnov and Mnih (2020), Monte Carlo Gradient Estimation in Machine Learning.
    """

    is_biased: ClassVar[bool] = True

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
        mark = " [biased]" if self.is_biased else ""
        return f"{type(self).__name__}({', '.join(shown)}){mark}"


class SurrogateEstimator(Estimator):
    """An estimator whose gradient is the automatic derivative of one scalar.

    A subclass writes ``surrogate`` only; see ``VarGrad`` for one in ten lines.

    Example:
      >>> import dataclasses, bbvi, jax, jax.numpy as jnp
      >>> @dataclasses.dataclass(frozen=True)
      ... class Pathwise(bbvi.SurrogateEstimator):
      ...     def surrogate(self, noise, problem, params, x, state):
      ...         z, log_q = problem.sample_and_log_q(noise, params, x)
      ...         log_weights = problem.log_p(params, x, z) - log_q
      ...         return -jnp.mean(log_weights), (log_weights, state)
      >>> problem = bbvi.Problem(lambda x, z: -0.5 * (z - 3.0) ** 2, bbvi.MeanField(bbvi.Normal()))
      >>> params = problem.init(jax.random.key(0), None)
      >>> estimator = Pathwise(num_samples=4)
      >>> noise = estimator.draw(jax.random.key(1), problem)
      >>> estimate, _ = estimator.estimate(noise, problem, params, None, ())
      >>> estimate.log_weights.shape
      (4,)

    References:
      Schulman, Heess, Weber and Abbeel (2015), Gradient Estimation Using Stochastic Computation
      Graphs.
    """

    @abc.abstractmethod
    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        """``(scalar whose gradient is the estimate, (log_weights, next state))``."""

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        def scalar(params: Params) -> tuple[Array, tuple[Array, PyTree]]:
            return self.surrogate(noise, problem, params, x, state)

        (_, (log_weights, state)), grads = jax.value_and_grad(scalar, has_aux=True)(params)
        log_weights = jax.lax.stop_gradient(log_weights)
        return Estimate(problem.objective(log_weights), grads, log_weights), state


def check_groups(estimator: Any, problem: Problem) -> None:
    """Raise unless the objective's group size divides the number of draws."""
    if estimator.num_samples % problem.objective.group_size:
        raise ValueError(
            f"{problem.objective!r} takes draws in groups of {problem.objective.group_size}, but "
            f"{type(estimator).__name__} draws num_samples={estimator.num_samples}: use a multiple."
        )


def check_site_weights(estimator: Estimator, problem: Problem) -> None:
    """Raise where the sites count differently in the bound and the estimator cannot heed it."""
    if problem.site_weights and not estimator.takes_site_weights:
        raise ValueError(
            f"{type(estimator).__name__} does not take minibatches of a model with both shared and "
            "local latents, where log q of the shared ones counts less; use Reparameterization, "
            "ScoreFunction or LocalExpectation, or a dict of them by site."
        )


def check_elbo(estimator: Any, problem: Problem) -> None:
    """Raise unless the objective is the ELBO."""
    if not problem.objective.is_mean:
        raise ValueError(
            f"{type(estimator).__name__} estimates the gradient of bbvi.Elbo() only, got "
            f"{problem.objective!r}; leave estimator unset for one that suits it."
        )


def check_pathwise(problem: Problem, params: Params, x: Data, sites: list[str]) -> None:
    """Raise unless draws of these sites and the log joint at them are differentiable."""
    usable = problem.pathwise_leaves(params, x)
    for site in problem.guide.sites():
        if site.name not in sites:
            continue
        cure = (
            f"Use ScoreFunction for it, estimator={{'{site.name}': bbvi.ScoreFunction(), ...}}, or "
            "leave estimator unset."
        )
        if not site.reparameterized:
            raise ValueError(
                f"site '{site.name}' ({site.family}) is not reparameterizable: its pathwise "
                f"gradient would be silently zero. {cure}"
            )
        bad = [leaf for leaf in site.leaves if not usable.get(leaf, True)]
        if bad:
            raise ValueError(
                f"log_joint is not differentiable in latent '{bad[0]}' (a callback, a loop without "
                "a reverse rule, or a derivative that is zero everywhere), so site "
                f"'{site.name}' cannot have a pathwise gradient. {cure}"
            )
