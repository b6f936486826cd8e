"""Which latents the outputs of a function read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from jax import Array

from bbvi._tree import named_leaves
from bbvi._types import Data, Latents, PyTree
from bbvi.dependence import rules  # noqa: F401  registers the rules
from bbvi.dependence.analysis import Analysis, Value


def latents_read(
    function: Callable[..., Mapping[str, Array]], x: Data, z: Latents, *args: PyTree
) -> dict[str, list[str]]:
    """Names of the latent leaves that each output of ``function(x, z, *args)`` reads.

    Found from shapes alone, which may stand in place of arrays; what the analysis does not know is
    taken to read all that goes into it.

    Args:
      function: returns arrays by name.
      x: data.
      z: one draw.
      *args: further arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> z = {"a": jnp.zeros(3), "b": jnp.zeros(())}
      >>> latents_read(lambda x, z: {"sum": z["a"].sum(), "all": z["a"] * z["b"]}, None, z)
      {'all': ['a', 'b'], 'sum': ['a']}
    """
    x, z, *args = jax.eval_shape(lambda *args: args, x, z, *args)
    latents = named_leaves(z, "latents")
    closed, arrays = jax.make_jaxpr(lambda *a: dict(function(*a)), return_shape=True)(x, z, *args)
    analysis = Analysis([leaf.shape for leaf in latents.values()])
    inputs = [Value(leaf.shape) for leaf in jax.tree.leaves(x)]
    inputs += [analysis.latent(k, leaf.dtype) for k, leaf in enumerate(latents.values())]
    inputs += [Value(leaf.shape) for leaf in jax.tree.leaves(args)]
    found = analysis.run(closed.jaxpr, closed.consts, inputs)
    return {
        name: [list(latents)[leaf] for leaf in sorted({p.leaf for p in value.reads})]
        for name, value in zip(arrays, found, strict=True)
    }
