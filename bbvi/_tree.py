"""Names and checks for pytrees: how latents, data and parameters are called in messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def named_leaves(
    tree: PyTree, root: str, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """Leaves by path, such as ``{"w": ..., "layers.0": ...}``; a lone leaf is called ``root``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".") or root: leaf
        for path, leaf in leaves
    }


def as_array(name: str, leaf: Any) -> jax.Array:
    """A leaf of x on the device, or an error that names it."""
    try:
        return jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        got = f"dtype {leaf.dtype}" if isinstance(leaf, np.ndarray) else type(leaf).__name__
        raise TypeError(
            f"leaf '{name}' of x must be an array of numbers, got {got}. Batches that come from "
            "an iterator or a DataLoader are given as bbvi.Loader(batches, num_data=N)."
        ) from error


def as_arrays(x: PyTree) -> PyTree:
    """Data with all leaves on the device, or an error that names one which is no array."""
    leaves = [as_array(name, leaf) for name, leaf in named_leaves(x, "x").items()]
    return jax.tree.unflatten(jax.tree.structure(x), leaves)


def entry_name(name: str, index: tuple[Any, ...]) -> str:
    """``w[1,2]``: how an entry of a leaf is called."""
    return name + ("[" + ",".join(map(str, index)) + "]" if index else "")


def with_leaf(tree: PyTree, root: str, name: str, leaf: Any) -> PyTree:
    """The tree with the leaf called ``name`` replaced."""
    leaves = named_leaves(tree, root) | {name: leaf}
    return jax.tree.unflatten(jax.tree.structure(tree), list(leaves.values()))


def shapes(tree: PyTree, root: str) -> str:
    """``{w: float32[31], c: int32[10]}``: what a tree holds, for error messages."""
    parts = []
    for name, leaf in named_leaves(tree, root).items():
        parts.append(f"{name}: {jnp.result_type(leaf)}{list(np.shape(leaf))}")
    return "{" + ", ".join(parts) + "}"


def is_floating(leaf: Any) -> bool:
    """Whether a leaf (array or shape) holds real floating-point numbers."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def abstract(tree: PyTree) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """Structure and shapes of a tree, hashable; ``jax.tree.unflatten`` of the two gives it back."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda: tree))
    return treedef, tuple(leaves)
