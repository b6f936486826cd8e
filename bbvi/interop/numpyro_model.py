"""Models written in NumPyro, as a log joint, its sites and its data."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi import supports
from bbvi._log_joint import VALUE_ERRORS
from bbvi._tree import named_leaves
from bbvi._types import Data, Latents, LogJoint
from bbvi.dependence.jaxprs import is_literal
from bbvi.guides.families import Bernoulli, Categorical, Family, Normal, VonMises


class ImportedModel(NamedTuple):
    """What ``fit`` takes, from a model of another library.

    Attributes:
      log_joint: ``(x, z) -> []`` of constrained latents, pure.
      sites: a family for every latent, by name: what ``MeanField`` and other guides take.
      x: the data.
    """

    log_joint: LogJoint
    sites: dict[str, Family]
    x: Data


def from_numpyro(model: Callable[..., Any], *args: Any, **kwargs: Any) -> ImportedModel:
    r"""A NumPyro model as log joint, sites and data, ready for ``fit``.

    ``log_joint(x, z)`` is ``numpyro.infer.util.log_density`` of the model at the constrained
    values z of its latent sites, observed sites, factors, masks and scales included. Every latent
    gets a family on its support: a normal through a bijector, ``VonMises`` on the circle,
    ``Bernoulli`` or ``Categorical`` where it is discrete. Deterministic sites are left to
    ``numpyro.infer.Predictive(model, posterior_samples=result.sample(key, 1000))``.

    Args:
      model: function with NumPyro primitives, or a handler around one.
      *args: arguments of the model.
      **kwargs: arguments of the model by name. Arrays among all arguments are the data x, by the
        name of the argument; everything else, such as numbers of groups, stays as it is. To keep
        arrays out of x, as where the model needs their values in Python, close over them:
        ``functools.partial(model, group)``.

    Returns:
      ``(log_joint, sites, x)``. An equal call gives an equal ``log_joint``, for which ``fit``
      compiles nothing anew; so do other data in x.

    Raises:
      ImportError: NumPyro is not installed.
      ValueError, TypeError: a site cannot be translated, named with what would do instead: a
        support without a bijector or with infinitely many discrete values, bounds that depend on
        other latents, learned parameters, subsampling plates; a model that needs the value of an
        array in Python.

    Example:
      >>> import bbvi, jax.numpy as jnp, numpyro
      >>> import numpyro.distributions as dist
      >>> def model(y):
      ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
      ...     sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
      ...     numpyro.sample("y", dist.Normal(mu, sigma), obs=y)
      >>> log_joint, sites, x = bbvi.interop.from_numpyro(model, jnp.array([1.8, 2.2, 2.0, 2.4]))
      >>> sites
      {'mu': Normal(shape=(), support=real), 'sigma': Normal(shape=(), support=positive)}
      >>> result = bbvi.fit(log_joint, bbvi.FullRank(sites), x, progress=False)
      >>> round(result.summary()["mu"]["mean"], 1)
      2.1

    References:
      Phan, Pradhan and Jankowiak (2019), Composable Effects for Flexible and Accelerated
      Probabilistic Programming in NumPyro.
    """
    if importlib.util.find_spec("numpyro") is None:
        raise ImportError("from_numpyro needs NumPyro: pip install 'bbvi[interop]'.")
    arguments = inspect.signature(model).bind(*args, **kwargs).arguments
    treedef: Any = jax.tree.structure(dict(arguments))
    leaves = jax.tree.leaves(dict(arguments))
    is_data = [isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves]
    constants = [None if data else leaf for data, leaf in zip(is_data, leaves, strict=True)]
    arrays = [leaf if data else None for data, leaf in zip(is_data, leaves, strict=True)]
    for name, leaf in named_leaves(dict(arguments), "model").items():
        if not isinstance(leaf, np.ndarray | jax.Array | Hashable):
            raise TypeError(
                f"argument '{name}' of the model is a {type(leaf).__name__}; pass arrays, numbers "
                "and other values that can be hashed, or pytrees of them."
            )
    log_joint, x = NumpyroLogJoint(model, treedef, tuple(constants)), treedef.unflatten(arrays)
    return ImportedModel(log_joint, _sites(log_joint, x), x)


@dataclasses.dataclass(frozen=True)
class NumpyroLogJoint:
    """The log joint of a NumPyro model; compared by value, so that equal ones compile once.

    Attributes:
      model: the model.
      treedef: structure of its arguments, by name.
      constants: those that are not arrays, with None in the place of these.
    """

    model: Callable[..., Any]
    treedef: Any
    constants: tuple[Any, ...]

    def __call__(self, x: Data, z: Latents) -> Array:
        from numpyro import handlers
        from numpyro.infer.util import log_density

        def check(site: dict[str, Any]) -> None:
            if _is_latent(site) and site["name"] not in z:
                raise KeyError(site["name"])  # as a function that reads z["name"] does

        model, bound = handlers.substitute(self.model, substitute_fn=check), self.arguments(x)
        with jax.numpy_rank_promotion("allow"):  # NumPyro relies on it
            return jnp.asarray(log_density(model, bound.args, bound.kwargs, z)[0])

    def arguments(self, x: Data) -> inspect.BoundArguments:
        """Arguments of the model with the arrays of x among them."""
        arrays = self.treedef.flatten_up_to(x)
        pairs = zip(arrays, self.constants, strict=True)
        leaves = [constant if array is None else array for array, constant in pairs]
        return inspect.BoundArguments(
            inspect.signature(self.model),
            self.treedef.unflatten(leaves),
        )


class _Latent(NamedTuple):
    """A latent site of a model.

    Attributes:
      distribution: name of its prior's class, for messages.
      support: class of the support of one entry or event.
      shape: shape of its values.
      bounds: bounds of the support that are numbers, and None where they are computed.
    """

    distribution: str
    support: type
    shape: tuple[int, ...]
    bounds: tuple[Any, ...]


def _sites(log_joint: NumpyroLogJoint, x: Data) -> dict[str, Family]:
    """A family for every latent site of one run of the model."""
    from numpyro import handlers

    latents: dict[str, _Latent] = {}

    def computed_bounds(key: Array, zero: Array, x: Data) -> dict[str, list[Array]]:
        def value(site: dict[str, Any]) -> Array | None:
            return _improper_value(site, zero) if _is_latent(site) else None

        bound = log_joint.arguments(x)
        with jax.numpy_rank_promotion("allow"):
            seeded = handlers.seed(handlers.substitute(log_joint.model, substitute_fn=value), key)
            trace = handlers.trace(seeded).get_trace(*bound.args, **bound.kwargs)
        computed = {}
        for name, site in trace.items():
            _check(site)
            if _is_latent(site):
                support = _support(site["fn"])
                both = [getattr(support, f"{side}_bound", None) for side in ("lower", "upper")]
                bounds = [bound for bound in both if bound is not None]
                computed[name] = [b for b in bounds if isinstance(b, jax.Array)]
                latents[name] = _Latent(
                    type(site["fn"]).__name__,
                    type(support),
                    tuple(np.shape(site["value"])),
                    tuple(None if isinstance(b, jax.Array) else b for b in bounds),
                )
        return computed

    inputs = jax.random.key(0), jnp.zeros(()), x
    try:
        closed, shapes = jax.make_jaxpr(computed_bounds, return_shape=True)(*inputs)
    except VALUE_ERRORS as error:
        raise ValueError(
            "the model needs the value of an array among its arguments in Python, but data are "
            "traced by JAX, with values not known yet. Compute what it needs before and pass it "
            "as a number, or close over the array: from_numpyro(functools.partial(model, array), "
            "...)."
        ) from error
    if not latents:
        raise ValueError("the model has no latent sites: there is nothing to fit.")
    derived = jax.tree.unflatten(jax.tree.structure(shapes), _derived(closed.jaxpr))
    values = jax.jit(computed_bounds)(*inputs)  # compiles these only, not the draws
    families = {}
    for name, latent in latents.items():
        if any(derived[name]):
            raise ValueError(
                f"latent '{name}' has bounds that depend on other latents or on data, but a site "
                "of bbvi has fixed ones. Draw it from a fixed support, such as Uniform(0, 1), and "
                "transform it in the model; or give the bounds as numbers."
            )
        rest = iter(values[name])
        bounds = [next(rest) if bound is None else bound for bound in latent.bounds]
        families[name] = _family(name, latent, list(map(np.asarray, bounds)))
    return families


def _derived(jaxpr: Any) -> list[bool]:
    """For each output whether it is computed from an input."""
    derived = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not is_literal(var) and var in derived for var in equation.invars):
            derived.update(equation.outvars)
    return [not is_literal(var) and var in derived for var in jaxpr.outvars]


def _is_latent(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _improper_value(site: dict[str, Any], zero: Array) -> Array | None:
    """Some value, computed from ``zero``, of a prior that cannot be drawn from; else None."""
    distribution = site["fn"]
    try:
        jax.eval_shape(distribution.sample, jax.random.key(0))
    except NotImplementedError:
        return distribution.support.feasible_like(jnp.zeros(distribution.shape())) + zero
    return None


def _check(site: dict[str, Any]) -> None:
    """Raise for primitives that a pure function of data and latents does not have."""
    name, kind = site["name"], site["type"]
    if kind == "param":
        raise TypeError(
            f"the model has a learned parameter '{name}' (numpyro.param). Give it a prior with "
            "numpyro.sample, such as ImproperUniform, or pass its value as an argument."
        )
    if kind == "plate":
        size, subsample_size = site["args"][:2]
        if subsample_size not in (None, size):
            raise TypeError(
                f"plate '{name}' takes a random {subsample_size} of {size}: leave subsample_size "
                "out, and let bbvi make minibatches, fit(..., batch_size=...)."
            )
    elif kind not in ("sample", "deterministic", "control_flow"):
        raise TypeError(f"the model has a site '{name}' of type '{kind}', which is not pure.")


def _support(distribution: Any) -> Any:
    """The support of one entry or event."""
    from numpyro.distributions import constraints

    support = distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _family(name: str, latent: _Latent, bounds: list[np.ndarray]) -> Family:
    """The family of a latent of this support."""
    from numpyro.distributions import constraints

    support, shape = latent.support, latent.shape
    if any(np.ptp(bound) > 0 for bound in bounds):
        raise ValueError(
            f"latent '{name}' has bounds that differ from entry to entry, but a site of bbvi has "
            "one for all. Draw it from a fixed support, such as Uniform(0, 1), and transform it in "
            "the model."
        )
    numbers = [bound.flat[0].item() for bound in bounds]
    try:
        if support is type(constraints.boolean):
            return Bernoulli(shape)
        if issubclass(support, constraints.integer_interval):
            low, high = numbers
            if low != 0:
                raise ValueError(f"its values begin at {low}; draw from 0 on, and add {low}.")
            return Categorical(int(high) + 1, shape)
        if support is type(constraints.circular):
            return VonMises(shape)
        return Normal(shape, support=_translated(support, numbers))
    except ValueError as error:
        described = f"{latent.distribution}, support {support.__name__.strip('_')}"
        raise ValueError(f"latent '{name}' ({described}): {error}") from error


def _translated(support: type, bounds: list[float]) -> supports.Support:
    """The form a continuous support has in bbvi; of a closed one, its interior."""
    from numpyro.distributions import constraints

    table = (
        (constraints.real, supports.real),
        (constraints.simplex, supports.simplex),
        (constraints.ordered_vector, supports.ordered),
        (constraints.positive_definite, supports.positive_definite),
        (constraints.corr_cholesky, supports.correlation_cholesky),
    )
    for theirs, ours in table:
        if support is type(theirs):
            return ours
    if issubclass(support, constraints.greater_than):
        return supports.greater_than(*bounds)
    if issubclass(support, constraints.less_than):
        return supports.less_than(*bounds)
    if issubclass(support, constraints.interval):
        return supports.interval(*bounds)
    if issubclass(support, type(constraints.lower_cholesky)):
        return supports.cholesky_factor
    if getattr(support, "is_discrete", False):
        raise ValueError(
            "its values are not 0..K-1 for some K; bound it, or sum it out of the model."
        )
    raise ValueError(
        "bbvi has no such support; draw from a real one and transform it in the model, as a "
        "correlation matrix from LKJCholesky."
    )
