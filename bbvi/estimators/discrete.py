"""What estimators for discrete latents share: draws, learning signals, gradients in the logits."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._random import draw_flat
from bbvi._tree import named_leaves
from bbvi._types import Data, Key, Latents, LogJoint, Params, PyTree, Site
from bbvi.dependence.components import (
    Components,
    component_sums,
    find_components,
    local_sums,
)
from bbvi.estimators.base import Cost, Estimate, Estimator, check_elbo, check_groups
from bbvi.problem import Problem, over_draws

BySite: TypeAlias = dict[str, Array]


class Evaluation(NamedTuple):
    """The log joint at S draws.

    Attributes:
      log_p: ``[S, C]``, by component of the model.
      model_grads: gradient of minus the mean log joint in the learned parameters.
      slopes: by site, derivatives in the latents at each draw; empty unless asked for.
      blankets: by site, sums ``[S, *blocks]`` of the terms that read a block; likewise.
    """

    log_p: Array
    model_grads: PyTree
    slopes: BySite
    blankets: BySite


class LogitGradient(NamedTuple):
    """What a discrete estimator returns at a step.

    Attributes:
      ascent: gradient of the ELBO in the logits of each site.
      log_weights: ``[S, C]`` log p - log q of the draws, by component.
      model_grads: gradient of the loss in the learned parameters.
    """

    ascent: BySite
    log_weights: Array
    model_grads: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteModel:
    """A log joint of discrete sites at given data and learned parameters.

    ``indices`` are draws as numbers 0..K-1, ``{site: [S, *blocks]}``; ``values`` are what
    ``log_joint`` gets: the same, or one-hot vectors, or anything between for a relaxed draw.

    Attributes:
      log_joint: ``(x, z, *args) -> []``.
      sites: the discrete sites, which cover all of z.
      shapes: shapes and dtypes of one draw z.
      x: data.
      args: learned parameters: none or one pytree.
      is_relaxed: whether ``log_joint`` is also evaluated between the values.
    """

    log_joint: LogJoint
    sites: tuple[Site, ...]
    shapes: Latents
    x: Data
    args: tuple[PyTree, ...]
    is_relaxed: bool

    @functools.cached_property
    def components(self) -> Components | None:
        """Parts of the model that share no term; None for one that cannot be divided."""
        find = functools.partial(find_components, self.log_joint, self.sites, self.x)
        hard = find(self.shapes, *self.args)
        # Integer and real latents make different programs, which must divide alike.
        is_whole = self.is_relaxed and not hard.is_same(find(as_floats(self.shapes), *self.args))
        return None if is_whole or hard.num_components == 1 else hard

    def values(self, indices: BySite) -> BySite:
        """Draws as ``log_joint`` gets them."""
        return {
            site.name: jax.nn.one_hot(indices[site.name], site.shape[-1], dtype=_floating())
            if site.shape and site.event_ndims
            else indices[site.name].astype(jnp.int32)
            for site in self.sites
        }

    def latents(self, values: BySite) -> Latents:
        """The pytree of latents ``[S, ...]``."""
        by_leaf = {site.leaves[0]: values[site.name] for site in self.sites}
        names = named_leaves(self.shapes, "latents")
        return jax.tree.unflatten(jax.tree.structure(self.shapes), [by_leaf[n] for n in names])

    def log_p(self, values: BySite, args: tuple[PyTree, ...]) -> Array:
        """The log joint by component ``[S, C]``, differentiable in real values and ``args``."""
        z = self.latents(values)
        if self.components is None:
            return over_draws(lambda draw: self.log_joint(self.x, draw, *args), z)[:, None]
        return over_draws(
            lambda draw: component_sums(self.log_joint, self.sites, self.x, draw, *args), z
        )

    def evaluate(
        self, values: BySite, *, with_slopes: bool = False, with_blankets: bool = False
    ) -> Evaluation:
        """The log joint at draws, and its derivatives; one pass forward and one back."""
        if with_slopes:
            values = as_floats(values)

        def total(values: BySite, args: tuple[PyTree, ...]) -> tuple[Array, tuple[Array, BySite]]:
            if not with_blankets:
                log_p = self.log_p(values, args)
                return jnp.sum(log_p), (log_p, {})
            log_p, blankets = over_draws(
                lambda draw: local_sums(self.log_joint, self.sites, self.x, draw, *args),
                self.latents(values),
            )
            return jnp.sum(log_p), (log_p, blankets)

        slopes: BySite = {}
        if with_slopes:
            (slopes, by_args), aux = jax.grad(total, argnums=(0, 1), has_aux=True)(
                values, self.args
            )
        else:
            by_args, aux = jax.grad(total, argnums=1, has_aux=True)(values, self.args)
        num_samples = len(aux[0])
        model_grads = jax.tree.map(lambda leaf: -leaf / num_samples, by_args)
        return Evaluation(aux[0], model_grads[0] if self.args else None, slopes, aux[1])

    def total(self, by_block: BySite) -> Array:
        """Sums ``[S, C]`` over the blocks of each component of values ``{site: [S, *blocks]}``."""
        if self.components is not None:
            return over_draws(self.components.total, by_block)
        return sum(
            (jnp.sum(leaf, axis=range(1, leaf.ndim)) for leaf in by_block.values()), jnp.zeros(())
        )[:, None]

    def spread(self, by_component: Array) -> BySite:
        """For each block its component's value: ``{site: [S, *blocks]}`` from ``[S, C]``."""
        if self.components is not None:
            return over_draws(self.components.spread, by_component)
        return {
            site.name: jnp.broadcast_to(
                by_component.reshape(-1, *[1 for _ in site.block_shape]),
                (len(by_component), *site.block_shape),
            )
            for site in self.sites
        }


@dataclasses.dataclass(frozen=True)
class DiscreteEstimator(Estimator):
    """An estimator for guides whose sites are all discrete, written in terms of their logits.

    A subclass writes ``logit_gradient``; the guide's parameters, those of an amortized network
    among them, get theirs by the chain rule. Sites are Bernoulli, with one logit per entry, or
    categorical, with K.

    Attributes:
      is_binary: whether it is for Bernoulli sites only.
      is_relaxed: whether it evaluates ``log_joint``, or its derivative, at real values of the
        latents, so that it must be a differentiable function of them.

    Example:
      >>> import bbvi
      >>> issubclass(bbvi.DisArm, bbvi.estimators.DiscreteEstimator)
      True
    """

    is_pathwise: ClassVar[bool] = False
    is_binary: ClassVar[bool] = True
    is_relaxed: ClassVar[bool] = False

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)
        check_groups(self, problem)
        check_discrete(self, problem, params, x, problem.guide.sites())
        self.check_model(discrete_model(self, problem, params, x))

    def cost_for(self, problem: Problem, params: Params, x: Data) -> Cost:
        return self.cost_of(discrete_model(self, problem, params, x))

    def cost_of(self, model: DiscreteModel) -> Cost:
        """Evaluations per step, where they depend on the discrete sites."""
        del model
        return self.cost

    def check_model(self, model: DiscreteModel) -> None:
        """Raise if the log joint is one that the estimator is not for."""
        del model

    def draw(self, key: Key, problem: Problem) -> PyTree:
        return self.draw_sites(key, problem.guide.sites())

    def draw_sites(self, key: Key, sites: tuple[Site, ...]) -> PyTree:
        """The step's randomness: by default uniforms ``{site: [S, *blocks]}``."""
        keys = jax.random.split(key, len(sites))
        return {
            site.name: draw_flat(jax.random.uniform, k, (self.num_samples, *site.block_shape))
            for site, k in zip(sites, keys, strict=True)
        }

    def init(self, problem: Problem, params: Params, x: Data) -> PyTree:
        logits = jax.eval_shape(problem.guide.logits, params.guide, x)
        return self.init_logits(discrete_model(self, problem, params, x), logits)

    def init_logits(self, model: DiscreteModel, logits: BySite) -> PyTree:
        """State before the first step, from the shapes of the logits."""
        del model, logits
        return ()

    @abc.abstractmethod
    def logit_gradient(
        self, noise: PyTree, model: DiscreteModel, logits: BySite, state: PyTree
    ) -> tuple[LogitGradient, PyTree]:
        """Gradient of the ELBO in the logits, and the next state."""

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        logits, pullback = jax.vjp(lambda phi: problem.guide.logits(phi, x), params.guide)
        model = discrete_model(self, problem, params, x)
        step, state = self.logit_gradient(noise, model, logits, state)
        (grads,) = pullback(jax.tree.map(jnp.negative, step.ascent))
        loss = problem.objective(step.log_weights)
        log_weights = jnp.sum(step.log_weights, axis=1)
        return Estimate(loss, Params(grads, step.model_grads), log_weights), state


def discrete_model(
    estimator: DiscreteEstimator, problem: Problem, params: Params, x: Data
) -> DiscreteModel:
    """The log joint of a problem whose sites are all discrete."""
    shapes, args = problem.draw_shapes(params, x), problem.model_args(params)
    is_relaxed = type(estimator).is_relaxed
    return DiscreteModel(problem.log_joint, problem.guide.sites(), shapes, x, args, is_relaxed)


def check_discrete(
    estimator: DiscreteEstimator,
    problem: Problem,
    params: Params,
    x: Data,
    sites: tuple[Site, ...],
) -> None:
    """Raise unless these sites are discrete, and of the kind that the estimator is for."""
    name = type(estimator).__name__
    for site in sites:
        if not site.num_values:
            raise ValueError(
                f"{name} is for discrete latents, but site '{site.name}' ({site.family}) is not "
                f"one; with both kinds use bbvi.Mixed(bbvi.Reparameterization(...), {name}(...))."
            )
    logits = jax.eval_shape(problem.guide.logits, params.guide, x)
    for site in sites:
        is_binary = logits[site.name].shape == site.block_shape
        if type(estimator).is_binary and not is_binary:
            raise ValueError(
                f"{name} is for Bernoulli sites, but site '{site.name}' ({site.family}) has "
                f"{site.num_values} logits per entry; use ScoreFunction, LocalExpectation or "
                "StickBreaking."
            )
        if type(estimator).is_relaxed and not is_binary and not site.event_ndims:
            raise ValueError(
                f"{name} evaluates log_joint between the values, but site '{site.name}' "
                f"({site.family}) draws category numbers, which have nothing "
                "between them; use bbvi.OneHotCategorical and write log_joint in terms of its "
                "one-hot vectors, or use ScoreFunction."
            )
    if type(estimator).is_relaxed:
        usable = problem.relaxed_leaves(params, x)
        for site in sites:
            if not usable[site.leaves[0]]:
                raise ValueError(
                    f"{name} needs a log_joint that is differentiable in latent '{site.name}' "
                    "between its values, and this one is not (it fails at real values, or its "
                    "derivative is zero: == and astype(int) have none). Write it with products "
                    "such as b * f1 + (1 - b) * f0, or use DisArm, Arms or ScoreFunction."
                )


def log_probs(logits: BySite, indices: BySite) -> BySite:
    """Log probabilities ``{site: [S, *blocks]}`` of draws."""
    found = {}
    for name, index in indices.items():
        eta = logits[name][None]
        if eta.ndim == index.ndim:
            found[name] = index * eta - jax.nn.softplus(eta)
        else:
            each = jnp.broadcast_to(jax.nn.log_softmax(eta), (*index.shape, eta.shape[-1]))
            found[name] = jnp.take_along_axis(each, index[..., None], axis=-1)[..., 0]
    return found


def scores(logits: BySite, indices: BySite) -> BySite:
    """Derivatives of ``log_probs`` in the logits, ``{site: [S, *blocks]}`` or ``[..., K]``."""
    found = {}
    for name, index in indices.items():
        eta = logits[name][None]
        if eta.ndim == index.ndim:
            found[name] = index - jax.nn.sigmoid(eta)
        else:
            found[name] = jax.nn.one_hot(index, eta.shape[-1], dtype=eta.dtype) - jax.nn.softmax(
                eta
            )
    return found


def draw_indices(logits: BySite, uniforms: BySite) -> BySite:
    """Draws ``{site: [S, *blocks]}`` by inverse transform of uniforms of that shape."""
    found = {}
    for name, u in uniforms.items():
        eta = logits[name][None]
        if eta.ndim == u.ndim:
            found[name] = (u < jax.nn.sigmoid(eta)).astype(jnp.int32)
        else:
            cumulative = jnp.cumsum(jax.nn.softmax(eta), axis=-1)[..., :-1]
            found[name] = jnp.sum(u[..., None] >= cumulative, axis=-1, dtype=jnp.int32)
    return found


def as_floats(tree: PyTree) -> PyTree:
    """Arrays, or shapes, of integers as ones of the default float type."""

    def convert(leaf: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, _floating())
        return leaf.astype(_floating())

    return jax.tree.map(convert, tree)


def _floating() -> jnp.dtype:
    return jnp.zeros(()).dtype  # float32, or float64 when x64 is on
