"""A fit in the form of ArviZ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from bbvi._tree import named_leaves
from bbvi._types import Latents, PyTree
from bbvi.diagnostics import monte_carlo_mean, psis_khat

if TYPE_CHECKING:
    from bbvi.infer.result import FitResult


def to_arviz(result: FitResult, z: Latents, log_p: Array, log_q: Array) -> Any:
    """Groups and attributes of a result; see ``FitResult.to_arviz``.

    Args:
      result: what ``fit`` returned.
      z: draws, leaves ``[S, ...]``.
      log_p: their log joints ``[S]``.
      log_q: their log densities under the guide ``[S]``.

    Returns:
      An ``xarray.DataTree``.

    Raises:
      ImportError: arviz-base is not installed.
      ValueError: fewer than 100 draws.
    """
    try:
        import arviz_base
    except ImportError as error:
        raise ImportError("to_arviz needs arviz-base: pip install 'bbvi[interop]'.") from error

    def variables(tree: PyTree, root: str) -> dict[str, np.ndarray]:
        # A tree of xarray takes "/" for a path of its own.
        leaves = named_leaves(tree, root).items()
        return {name.replace("/", "."): np.asarray(leaf) for name, leaf in leaves}

    draws = {"posterior": z, "sample_stats": {"lp": log_p, "log_q": log_q}}
    groups = {
        group: {name: values[None] for name, values in variables(tree, "latents").items()}
        for group, tree in draws.items()
    }
    if data := variables(result.x, "x"):
        groups["observed_data"] = data
    elbo = monte_carlo_mean(log_p - log_q)
    attributes = {
        "inference_library": "bbvi",
        "status": result.status,
        "num_steps": int(result.state.step),
        "seconds": result.seconds,
        "elbo": elbo.value,
        "elbo_standard_error": elbo.standard_error,
        "khat": psis_khat(log_p - log_q),
    }
    return arviz_base.from_dict(groups, attrs={"/": attributes})
