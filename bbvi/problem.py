"""The static half of a fit: model, guide and objective; and the checks made before compiling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._log_joint import trace_log_joint
from bbvi._tree import is_floating, named_leaves
from bbvi._types import Data, Key, Latents, LogJoint, Params, PyTree
from bbvi.dependence.components import Components, component_sums, find_components
from bbvi.factors import FactorizedLogJoint
from bbvi.guides.base import Guide
from bbvi.objectives import Elbo, Objective


def over_draws(function: Callable[[PyTree], PyTree], draws: PyTree) -> PyTree:
    """``vmap`` of a function of one draw; a single draw is not batched.

    On CPU a log joint over ``[1, N]`` compiles to a program half as fast as one over ``[N]``.
    """
    if jax.tree.leaves(draws)[0].shape[0] > 1:
        return jax.vmap(function)(draws)
    single = function(jax.tree.map(lambda leaf: leaf[0], draws))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], single)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Model, guide and objective, with the batched calls estimators are written in.

    Hashable and compared by value, so that it is a static argument of compiled functions.

    Attributes:
      log_joint: ``(x, z) -> []`` or, with learned parameters, ``(x, z, theta) -> []``.
      guide: the variational family.
      objective: what is minimised.
      site_weights: what log q of a site counts in the bound, where that is not one; see
        ``bbvi.infer.batching``.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> problem = bbvi.Problem(lambda x, z: -0.5 * z**2, bbvi.MeanField(bbvi.Normal()))
      >>> params = problem.init(jax.random.key(0), None)
      >>> noise = problem.base_noise(jax.random.key(1), 5)
      >>> problem.log_p(params, None, problem.sample(noise, params, None)).shape
      (5,)
    """

    log_joint: LogJoint
    guide: Guide
    objective: Objective = dataclasses.field(default_factory=Elbo)
    site_weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not callable(self.log_joint):
            raise TypeError(
                f"log_joint must be a function, log_joint(x, z) -> scalar, got {self.log_joint!r}."
            )
        if not isinstance(self.guide, Guide):
            raise TypeError(
                "guide must be a bbvi.Guide such as bbvi.MeanField({...}), or bbvi.Auto({...}) for "
                f"fit to choose one, got {self.guide!r}."
            )
        if not isinstance(self.objective, Objective):
            raise TypeError(f"objective must be a bbvi.Objective, got {self.objective!r}.")

    def init(self, key: Key, x: Data, model_params: PyTree = None) -> Params:
        """Initial parameters of the guide, beside the given ones of the model."""
        return Params(self.guide.init(key, x), model_params)

    def base_noise(self, key: Key, num_samples: int) -> PyTree:
        """Base noise of ``num_samples`` draws: every leaf ``[S, ...]``."""
        return jax.vmap(self.guide.base_noise)(jax.random.split(key, num_samples))

    def sample(self, noise: PyTree, params: Params, x: Data) -> Latents:
        """Draws ``[S, ...]`` from the guide."""
        return over_draws(lambda n: self.guide.sample(n, params.guide, x), noise)

    def sample_and_log_q(self, noise: PyTree, params: Params, x: Data) -> tuple[Latents, Array]:
        """Draws ``[S, ...]`` and their log densities ``[S]``."""
        if self.site_weights:
            z = self.sample(noise, params, x)
            return z, self.log_q(params, x, z)
        return over_draws(lambda n: self.guide.sample_and_log_prob(n, params.guide, x), noise)

    def sample_and_entropy(self, noise: PyTree, params: Params, x: Data) -> tuple[Latents, Array]:
        """Draws ``[S, ...]`` and ``[S]`` scalars whose expectation is the entropy of q."""
        if self.site_weights:
            z = self.sample(noise, params, x)
            by_site = over_draws(lambda d: self.guide.site_entropies(params.guide, x, d), z)
            return z, sum(self.weighted(by_site).values(), jnp.zeros(()))
        return over_draws(lambda n: self.guide.sample_and_entropy(n, params.guide, x), noise)

    def log_q(self, params: Params, x: Data, z: Latents) -> Array:
        """Log densities ``[S]`` of draws ``[S, ...]`` under the guide."""
        if self.site_weights:
            by_site = over_draws(lambda d: self.guide.site_log_probs(params.guide, x, d), z)
            weighted = self.weighted(by_site).values()
            return sum((jnp.sum(w, axis=range(1, w.ndim)) for w in weighted), jnp.zeros(()))
        return over_draws(lambda draw: self.guide.log_prob(params.guide, x, draw), z)

    def weighted(self, by_site: dict[str, Array]) -> dict[str, Array]:
        """Log densities or entropies by site as they count in the bound."""
        weights = dict(self.site_weights)
        return {
            name: weights[name] * leaf if name in weights else leaf
            for name, leaf in by_site.items()
        }

    def log_p(self, params: Params, x: Data, z: Latents) -> Array:
        """Log joint ``[S]`` at draws ``[S, ...]``."""
        return over_draws(lambda draw: self.log_joint(x, draw, *self.model_args(params)), z)

    def components(self, params: Params, x: Data) -> Components:
        """The parts of the model that share no term, such as the data of a batch."""
        z, args = self.draw_shapes(params, x), self.model_args(params)
        return find_components(self.log_joint, self.guide.sites(), x, z, *args)

    def by_component(self, params: Params, x: Data, z: Latents) -> tuple[Array, Array]:
        """Log joints and log densities ``[S, C]`` of draws, for each component of the model.

        The latents of different components are independent under the posterior, so each has its
        own importance weights. Summed over C they are ``log_p`` and ``log_q``; terms that read no
        latent are shared out evenly.
        """
        components = self.components(params, x)
        if components.num_components == 1:
            return self.log_p(params, x, z)[:, None], self.log_q(params, x, z)[:, None]
        sites, args = self.guide.sites(), self.model_args(params)

        def one(draw: Latents) -> tuple[Array, Array]:
            log_q = self.guide.site_log_probs(params.guide, x, draw)
            return component_sums(self.log_joint, sites, x, draw, *args), components.total(log_q)

        return over_draws(one, z)

    @staticmethod
    def model_args(params: Params) -> tuple[PyTree, ...]:
        """The third argument of ``log_joint``, when it has one."""
        return () if params.model is None else (params.model,)

    def draw_shapes(self, params: Params, x: Data) -> Latents:
        """Shapes and dtypes of one draw, without computing anything."""

        def draw(key: Key, params: Params, x: Data) -> Latents:
            return self.guide.sample(self.guide.base_noise(key), params.guide, x)

        return jax.eval_shape(draw, jax.random.key(0), params, x)

    def block_shapes(self, params: Params, x: Data) -> dict[str, tuple[int, ...]]:
        """Shape of the independent blocks of each site of the guide."""
        z = self.draw_shapes(params, x)
        log_probs = jax.eval_shape(self.guide.site_log_probs, params.guide, x, z)
        return {name: leaf.shape for name, leaf in log_probs.items()}

    def pathwise_leaves(self, params: Params, x: Data) -> dict[str, bool]:
        """For each latent leaf, whether ``log_joint`` has a usable derivative in it.

        False for integer latents, for functions JAX cannot differentiate (``jax.pure_callback``,
        ``while_loop``) and where the derivative is identically zero although the latent is read
        (``jnp.round``, comparisons): a pathwise gradient there would fail or be silently wrong.
        """
        return self._usable_derivatives(params, x, self.draw_shapes(params, x))

    def relaxed_leaves(self, params: Params, x: Data) -> dict[str, bool]:
        """The same where integer latents are given as real numbers, at values between theirs."""
        z = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype if is_floating(leaf) else jnp.zeros(()).dtype
            ),
            self.draw_shapes(params, x),
        )
        return self._usable_derivatives(params, x, z)

    def _usable_derivatives(self, params: Params, x: Data, z: Latents) -> dict[str, bool]:
        leaves, treedef = jax.tree.flatten(z)
        floating = [is_floating(leaf) for leaf in leaves]
        names = list(named_leaves(z, "latents"))
        if not any(floating):
            return dict.fromkeys(names, False)

        def value(active: list[Array], x: Data, params: Params) -> Array:
            replaced = iter(active)
            full = [
                next(replaced) if is_active else jnp.zeros(leaf.shape, leaf.dtype)
                for is_active, leaf in zip(floating, leaves, strict=True)
            ]
            return self.log_joint(x, jax.tree.unflatten(treedef, full), *self.model_args(params))

        active = [leaf for ok, leaf in zip(floating, leaves, strict=True) if ok]
        try:
            jaxpr = jax.make_jaxpr(jax.grad(value))(active, x, params).jaxpr
        except (ValueError, TypeError, NotImplementedError):
            return dict.fromkeys(names, False)
        usable = iter([not _is_zero(out, jaxpr) for out in jaxpr.outvars])
        return {
            name: next(usable) if ok else False for name, ok in zip(names, floating, strict=True)
        }


def _is_zero(var: Any, jaxpr: Any) -> bool:
    """Whether an output of a jaxpr is symbolically zero: a literal 0, or a broadcast of one."""
    if hasattr(var, "val"):
        return bool(np.all(np.asarray(var.val) == 0))
    for equation in jaxpr.eqns:
        if var in equation.outvars:
            is_copy = equation.primitive.name in ("broadcast_in_dim", "convert_element_type")
            return is_copy and _is_zero(equation.invars[0], jaxpr)
    return False


def check_problem(problem: Problem, params: Params, x: Data) -> None:
    """Raise an error that names what is wrong with model, guide, parameters or data.

    Traces shapes only; costs one trace of ``log_joint`` and no compilation.
    """
    for name, leaf in named_leaves(x, "x").items():
        if 0 in np.shape(leaf):
            raise ValueError(f"data '{name}' is empty (shape {np.shape(leaf)}).")
    for part, tree in (("guide", params.guide), ("model_params", params.model)):
        for name, leaf in named_leaves(tree, part).items():
            if "batch_stats" in name.split("."):
                raise ValueError(
                    f"{part} holds statistics of batch normalisation ('{name}'): they would be "
                    "trained as parameters instead of updated. Use layer or group normalisation, "
                    "which keep no state."
                )
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise TypeError(
                    f"{part} parameter '{name}' has dtype {jnp.result_type(leaf)}; only "
                    "floating-point parameters can be trained. Convert it with jnp.asarray(..., "
                    "float), or close over it in log_joint if it is a constant."
                )
    z = problem.draw_shapes(params, x)
    _check_log_joint(problem, params, x, z)
    if isinstance(problem.log_joint, FactorizedLogJoint):
        problem.log_joint.check_scopes(x, z, *problem.model_args(params))


def _check_log_joint(problem: Problem, params: Params, x: Data, z: Latents) -> None:
    closed = trace_log_joint(problem.log_joint, x, z, *problem.model_args(params))
    unread = _unread(closed.jaxpr, list(named_leaves(z, "latents")))
    if unread:
        raise ValueError(
            f"log_joint never reads latent {', '.join(map(repr, unread))}: its posterior would be "
            "flat. Remove it from the guide or add its prior to log_joint."
        )


def _unread(jaxpr: Any, names: list[str]) -> list[str]:
    """Names of the inputs the output cannot depend on, by walking the equations backwards."""
    needed = {var for var in jaxpr.outvars if not hasattr(var, "val")}
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(var for var in equation.invars if not hasattr(var, "val"))
    return [name for name, var in zip(names, jaxpr.invars, strict=False) if var not in needed]
