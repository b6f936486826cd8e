"""Models written in PyMC, as a log joint, its sites and its data."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi import supports
from bbvi._log_joint import VALUE_ERRORS
from bbvi._types import Data, Latents
from bbvi.guides.families import Bernoulli, Categorical, Family, Normal, VonMises
from bbvi.interop.numpyro_model import ImportedModel


def from_pymc(model: Any) -> ImportedModel:
    r"""A PyMC model as log joint, sites and data, ready for ``fit``.

    ``log_joint(x, z)`` is PyMC's own density at the constrained values z of its free variables,
    without Jacobians, potentials included, as PyTensor writes it in JAX. As in PyMC's samplers on
    JAX, checks of parameters (sigma > 0) are left out. Every free variable gets a family on its
    support: a normal through a bijector, ``VonMises`` on the circle, ``Bernoulli`` or
    ``Categorical`` where it is discrete. ``LKJCholeskyCov``, which PyMC packs into a vector, is the
    factor itself, ``[n, n]``. PyMC computes deterministics from the draws:
    ``pm.compute_deterministics(result.to_arviz()["posterior"].to_dataset(), model=model)``.

    Args:
      model: a ``pymc.Model``.

    Returns:
      ``(log_joint, sites, x)``. The ``pm.Data`` that the density reads are the data x, by name, and
      other values of them, as batches are, go through the same ``log_joint``. Arrays given as
      ``observed=`` or inside the model are constants of it. Each call gives another ``log_joint``,
      for which ``fit`` compiles anew, so keep it.

    Raises:
      ImportError: PyMC is not installed.
      TypeError: this is not a PyMC model.
      ValueError: a variable cannot be translated, named with what would do instead: a support
        without a bijector or with infinitely many discrete values, bounds that depend on other
        latents or on data; a density that draws random numbers, as with ``pm.Minibatch``, or that
        PyTensor cannot write in JAX.

    Example::

      import bbvi, pymc as pm

      with pm.Model() as model:
          y = pm.Data("y", [1.8, 2.2, 2.0, 2.4])
          mu = pm.Normal("mu", 0.0, 10.0)
          sigma = pm.HalfNormal("sigma", 5.0)
          pm.Normal("obs", mu, sigma, observed=y)
      log_joint, sites, x = bbvi.interop.from_pymc(model)
      result = bbvi.fit(log_joint, bbvi.FullRank(sites), x)

    References:
      Abril-Pla and others (2023), PyMC: A Modern and Comprehensive Probabilistic Programming
      Framework in Python.
    """
    if importlib.util.find_spec("pymc") is None:
        raise ImportError("from_pymc needs PyMC: pip install 'bbvi[pymc]'.")
    import pymc

    if not isinstance(model, pymc.Model):
        raise TypeError(f"from_pymc takes a pymc.Model, got {type(model).__name__}.")
    if not model.free_RVs:
        raise ValueError("the model has no free variables: there is nothing to fit.")
    shapes = model.eval_rv_shapes()
    packed, sites = [], {}
    for variable in model.free_RVs:
        name = variable.name
        shape = tuple(int(size) for size in shapes[name])
        transform = _transform(model, variable)
        if isinstance(transform, pymc.distributions.transforms.CholeskyCovPacked):
            packed.append(name)
            size = round((np.sqrt(8 * shape[-1] + 1) - 1) / 2)
            shape = (size, size)
        try:
            sites[name] = _family(variable, transform, shape)
        except ValueError as error:
            kind = type(variable.owner.op).__name__.removesuffix("RV")
            raise ValueError(f"latent '{name}' ({kind}): {error}") from error
    graph, data = _density(model)
    log_joint = PymcLogJoint(graph, tuple(sites), tuple(data), tuple(packed))
    x = {name: np.asarray(variable.get_value()) for name, variable in data.items()}
    _check(log_joint, sites, x)
    return ImportedModel(log_joint, sites, x)


@dataclasses.dataclass(frozen=True, eq=False)
class PymcLogJoint:
    """The log joint of a PyMC model; compared by identity, as models of PyMC are.

    Attributes:
      graph: PyTensor's graph of the density, with latents and then data as inputs.
      latents: names of the latents.
      data: names of the data.
      packed: names of triangular factors, which PyMC holds as the vector of their entries.
    """

    graph: Any
    latents: tuple[str, ...]
    data: tuple[str, ...]
    packed: tuple[str, ...]

    def __call__(self, x: Data, z: Latents) -> Array:
        values = [self._packed(name, jnp.asarray(z[name])) for name in self.latents]
        values += [jnp.asarray(x[name]) for name in self.data]
        # PyTensor relies on broadcasting, and asks for float64 also where JAX has float32 only.
        with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype")
            value = _function(self, is_x64=_is_x64())(*values)[0]
            return value.astype(jnp.result_type(float))

    def _packed(self, name: str, value: Array) -> Array:
        return value[np.tril_indices(value.shape[-1])] if name in self.packed else value


@functools.lru_cache(maxsize=16)
def _function(log_joint: PymcLogJoint, *, is_x64: bool) -> Callable[..., tuple[Array]]:
    """The density in JAX, whose constants have the precision of this mode."""
    # Constants become arrays here: in a trace that may come first, they must not be traced.
    with jax.ensure_compile_time_eval():
        return _jax_funcify()(log_joint.graph)


def _is_x64() -> bool:
    return jnp.result_type(float) == jnp.float64


def _jax_funcify() -> Callable[..., Any]:
    """What writes PyTensor's graphs in JAX; its import sets the precision of all of JAX."""

    def load() -> Callable[..., Any]:
        before = _is_x64()
        from pytensor.link.jax.dispatch import jax_funcify

        jax.config.update("jax_enable_x64", before)
        return jax_funcify

    # A thread of its own sees the global setting, not that of a jax.enable_x64 around this call.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load).result()


def _density(model: Any) -> tuple[Any, dict[str, Any]]:
    """PyTensor's graph of the density at constrained values, and the data it reads by name."""
    import pytensor.tensor as pt
    from pymc.logprob import conditional_logp
    from pymc.logprob.utils import local_remove_check_parameter, replace_rvs_by_values
    from pytensor.compile import SharedVariable
    from pytensor.compile.mode import JAX
    from pytensor.graph.fg import FunctionGraph
    from pytensor.graph.replace import clone_replace
    from pytensor.graph.rewriting.basic import in2out
    from pytensor.graph.traversal import graph_inputs
    from pytensor.tensor.random.type import RandomType

    latents = {variable: variable.type(name=variable.name) for variable in model.free_RVs}
    values = model.rvs_to_values | latents
    terms = list(conditional_logp(values, warn_rvs=False).values())
    terms += replace_rvs_by_values(model.potentials, rvs_to_values=values)
    density = sum(pt.sum(term) for term in terms)
    leaves = list(graph_inputs([density]))
    if any(isinstance(leaf.type, RandomType) for leaf in leaves):
        raise ValueError(
            "the density draws random numbers, but a log joint is a pure function. In the place of "
            "pm.Minibatch give all rows as pm.Data, and let bbvi make minibatches, "
            "fit(..., batch_size=...)."
        )
    shared = [leaf for leaf in leaves if isinstance(leaf, SharedVariable)]
    data = {leaf.name: leaf for leaf in shared if leaf in model.data_vars}
    # The rest are lengths of dimensions, which JAX needs as numbers.
    numbers = {
        leaf: pt.constant(leaf.get_value()) for leaf in shared if leaf not in model.data_vars
    }
    inputs = {leaf: leaf.type(name=name) for name, leaf in data.items()}
    density = clone_replace(density, numbers | inputs)
    graph = FunctionGraph([*latents.values(), *inputs.values()], [density], clone=True)
    in2out(local_remove_check_parameter).rewrite(graph)
    JAX.optimizer.rewrite(graph)
    return graph, data


def _check(log_joint: PymcLogJoint, sites: dict[str, Family], x: Data) -> None:
    """Raise where PyTensor has no JAX for the density."""
    z = {
        name: jax.ShapeDtypeStruct(
            family.shape,
            jnp.int32 if isinstance(family, Bernoulli | Categorical) else jnp.result_type(float),
        )
        for name, family in sites.items()
    }
    try:
        jax.eval_shape(log_joint, x, z)
    except (NotImplementedError, *VALUE_ERRORS) as error:
        raise ValueError(
            f"PyTensor cannot write this density in JAX: {str(error).splitlines()[0].rstrip('.')}. "
            "Write that part of the model with other operations. If it needs the values or the "
            "length of a pm.Data, give them as a constant array."
        ) from error


def _transform(model: Any, variable: Any) -> Any:
    """The transform to where its density lives, also if the user chose to sample without one."""
    from pymc.distributions.transforms import _default_transform

    transform = model.rvs_to_transforms[variable]
    return _default_transform(variable.owner.op, variable) if transform is None else transform


def _family(variable: Any, transform: Any, shape: tuple[int, ...]) -> Family:
    """The family of a free variable."""
    from pymc.distributions.transforms import CircularTransform

    if not variable.type.dtype.startswith("float"):
        return _discrete(variable, shape)
    if isinstance(transform, CircularTransform):
        return VonMises(shape)
    return Normal(shape, support=_support(variable, transform))


def _discrete(variable: Any, shape: tuple[int, ...]) -> Family:
    from pymc.distributions.discrete import DiscreteUniformRV
    from pytensor.tensor.random.basic import BernoulliRV, BinomialRV, CategoricalRV

    op = variable.owner.op
    if isinstance(op, BernoulliRV):
        return Bernoulli(shape)
    if isinstance(op, CategoricalRV):
        (probs,) = op.dist_params(variable.owner)
        return Categorical(int(probs.shape[-1].eval(mode="FAST_COMPILE")), shape)
    if isinstance(op, BinomialRV):
        return Categorical(int(_number(op.dist_params(variable.owner)[0])) + 1, shape)
    if isinstance(op, DiscreteUniformRV):
        low, high = map(_number, op.dist_params(variable.owner))
        if low != 0:
            raise ValueError(f"its values begin at {low:g}; draw from 0 on, and add {low:g}.")
        return Categorical(int(high) + 1, shape)
    raise ValueError("its values are not 0..K-1 for some K; bound it, or sum it out of the model.")


def _support(variable: Any, transform: Any) -> supports.Support:
    """Where PyMC's density of a continuous variable lives; of a closed set, its interior."""
    from pymc.distributions import transforms
    from pymc.distributions.multivariate import WishartRV

    if isinstance(variable.owner.op, WishartRV):
        return supports.positive_definite
    if transform is None:
        return supports.real
    table = (
        (type(transforms.log), supports.positive),
        (transforms.LogExpM1, supports.positive),
        (type(transforms.logodds), supports.unit_interval),
        (type(transforms.simplex), supports.simplex),
        (transforms.CholeskyCovPacked, supports.cholesky_factor),
    )
    for theirs, ours in table:
        if type(transform) is theirs:
            return ours
    if type(transform) is transforms.Interval:
        lower, upper, *_ = transform.get_a_and_b(variable.owner.inputs)
        low, high = _number(lower), _number(upper)
        if np.isinf(low):
            return supports.real if np.isinf(high) else supports.less_than(high)
        return supports.greater_than(low) if np.isinf(high) else supports.interval(low, high)
    if transform == transforms.ordered:
        return supports.ordered
    raise ValueError(
        f"bbvi has no support for its transform '{transform.name}' ({type(transform).__name__}); "
        "draw from a real one and transform it in the model: a zero-sum vector as a Normal minus "
        "its mean, a correlation matrix from LKJCholeskyCov."
    )


def _number(bound: Any) -> float:
    """A bound that is one number."""
    import pytensor.tensor as pt
    from pytensor.graph.basic import Constant
    from pytensor.graph.traversal import graph_inputs

    bound = pt.as_tensor(bound)
    if not all(isinstance(leaf, Constant) for leaf in graph_inputs([bound])):
        raise ValueError(
            "its bounds depend on other latents or on data, but a site of bbvi has fixed ones. "
            "Draw it from a fixed support, such as Uniform(0, 1), and transform it in the model; "
            "or give the bounds as numbers."
        )
    values = np.asarray(bound.eval(mode="FAST_COMPILE"))
    if values.size == 0 or np.any(values != values.flat[0]):
        raise ValueError(
            "its bounds differ from entry to entry, but a site of bbvi has one for all. Draw it "
            "from a fixed support, such as Uniform(0, 1), and transform it in the model."
        )
    return float(values.flat[0])
