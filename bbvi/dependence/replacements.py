"""What replacing single latent entries changes: the log joint, and blanket sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._log_joint import trace_log_joint
from bbvi._tree import is_floating, named_leaves
from bbvi._types import Data, Latents, LogJoint, PyTree, Site
from bbvi.dependence.blankets import Evaluate, FactorGraph, local_program
from bbvi.dependence.jaxprs import all_equations

# Integers take this many values at most: the work grows with them.
MAX_VALUES = 10
# Differences that rounding explains, relative to the sum of the terms' absolute values.
DOUBLE_TOLERANCE, SINGLE_TOLERANCE = 1e-8, 1e-5
# Numbers that one batch of replacements may hold, so that it takes megabytes.
MAX_BATCH = 2_000_000


class Change(NamedTuple):
    """What replacing one entry does.

    Attributes:
      expected: the change of the log joint.
      found: the change of the blanket sum of the entry's block.
      missing: the sum of all terms less the log joint, after the replacement.
      scale: sum of the terms' absolute values; rounding errors are relative to it.
    """

    expected: Any
    found: Any
    missing: Any
    scale: Any


class Replacements(NamedTuple):
    """Single entries to replace: number of the leaf, flat position in it, and new value."""

    leaf: Any
    entry: Any
    value: Any


class Comparison(NamedTuple):
    """Leaves of z by name, the log joint there, what was replaced and what that changed.

    ``uncounted`` names, for one of the rows, the terms that are responsible.
    """

    tolerance: float
    leaves: Mapping[str, np.ndarray]
    log_joint: np.ndarray
    rows: Replacements
    changes: Change
    uncounted: Callable[[Replacements], list[str]]


def _replacements(leaves: Mapping[str, np.ndarray], max_entries: int) -> Replacements:
    """Values that keep signs and the unit interval, all of them other than those in z."""
    parts = []
    for number, leaf in enumerate(leaves.values()):
        flat = leaf.reshape(-1)
        entries = np.unique(np.linspace(0, flat.size - 1, min(flat.size, max_entries)).astype(int))
        old = flat[entries].astype(float)
        if is_floating(leaf):
            shrunk = np.where(old == 0, 0.1, 0.9 * old)
            values = np.stack([shrunk, 0.5 * old, np.roll(flat, 1)[entries]])
        else:
            low, high = min(0, int(flat.min())), max(1, int(flat.max()))
            grid = np.unique(np.linspace(low, high, MAX_VALUES).astype(int))
            values = np.broadcast_to(grid[:, None], (len(grid), len(entries)))
        is_new = (values != old).reshape(-1)
        columns = np.full(values.shape, number), np.broadcast_to(entries, values.shape), values
        parts.append([column.reshape(-1)[is_new] for column in columns])
    return Replacements(*map(np.concatenate, zip(*parts, strict=True)))


def compare(
    log_joint: LogJoint, sites: tuple[Site, ...], args: tuple[Any, ...], max_entries: int
) -> Comparison:
    """Evaluate all replacements, in the precision of ``args``."""
    x, z, *rest = args
    model_args = tuple(rest)
    leaves = jax.device_get(named_leaves(z, "latents"))
    rows = _replacements(leaves, max_entries)
    num_numbers = sum(np.size(leaf) for leaf in jax.tree.leaves((x, z)))
    batch_size = max(1, MAX_BATCH // (1 + num_numbers))

    def measure(x: Data, z: Latents) -> Any:
        return log_joint(x, z, *model_args), local_program(
            _sums, log_joint, sites, x, z, model_args
        )

    @jax.jit
    def run(x: Data, z: Latents, rows: Replacements) -> tuple[Array, Change]:
        before, (_, blankets, scale) = measure(x, z)

        def change(row: Replacements) -> Change:
            after, (total, new_blankets, new_scale) = measure(x, _replaced(z, row))
            found = jax.tree.map(jnp.subtract, new_blankets, blankets)
            by_leaf = jnp.stack(_entry_sums(found, sites, z, row.entry))
            return Change(
                after - before, by_leaf[row.leaf], total - after, jnp.maximum(scale, new_scale)
            )

        return before, jax.lax.map(change, rows, batch_size=batch_size)

    base, changes = jax.device_get(run(x, z, rows))
    is_double = jnp.result_type(float) == np.float64
    tolerance = DOUBLE_TOLERANCE if _is_all_double(log_joint, args) else SINGLE_TOLERANCE

    def uncounted(row: Replacements) -> list[str]:
        with jax.enable_x64(is_double):
            return _uncounted(log_joint, sites, x, z, model_args, row)

    return Comparison(tolerance, leaves, base, rows, changes, uncounted)


def _is_all_double(log_joint: LogJoint, args: tuple[Any, ...]) -> bool:
    program = trace_log_joint(log_joint, *args).jaxpr
    outputs = [var.aval for equation in all_equations(program) for var in equation.outvars]
    return all(out.dtype.itemsize >= 8 for out in outputs if is_floating(out))


def _sums(
    graph: FactorGraph, evaluate: Evaluate, z: Latents
) -> tuple[Array, dict[str, Array], Array]:
    """Sum of the terms, blanket sums, and sum of the terms' absolute values."""
    arrays = evaluate(z)
    total = sum((jnp.sum(array) for array in arrays), jnp.zeros(()))
    scale = sum((jnp.sum(jnp.abs(array)) for array in arrays), jnp.ones(()))
    return total, graph.blanket_sums(arrays), scale


def _replaced(z: Latents, row: Replacements) -> Latents:
    leaves, treedef = jax.tree.flatten(z)
    for number, leaf in enumerate(leaves):
        target = jnp.where(row.leaf == number, row.entry, leaf.size)
        flat = leaf.reshape(-1).at[target].set(row.value.astype(leaf.dtype), mode="drop")
        leaves[number] = flat.reshape(leaf.shape)
    return jax.tree.unflatten(treedef, leaves)


def _entry_sums(
    blankets: Mapping[str, Array], sites: tuple[Site, ...], z: Latents, entry: Any
) -> list[Array]:
    """For each leaf the blanket sum of the block that holds its entry of this flat position."""
    site_of = {leaf: site for site in sites for leaf in site.leaves}
    picked = []
    for name, leaf in named_leaves(z, "latents").items():
        sums = blankets[site_of[name].name].reshape(-1)
        picked.append(sums[jnp.minimum(entry // (leaf.size // sums.size), sums.size - 1)])
    return picked


def _uncounted(
    log_joint: LogJoint,
    sites: tuple[Site, ...],
    x: Data,
    z: Latents,
    model_args: tuple[PyTree, ...],
    row: Replacements,
) -> list[str]:
    """The terms whose change is not what they add to the change of the blanket sum."""
    labels: list[str] = []

    def by_term(graph: FactorGraph, evaluate: Evaluate, z: Latents) -> list[tuple[Array, Array]]:
        arrays = evaluate(z)
        labels[:] = [term.label for term in graph.terms]
        found = []
        for number, array in enumerate(arrays):
            alone = [array if k == number else jnp.zeros_like(a) for k, a in enumerate(arrays)]
            sums = _entry_sums(graph.blanket_sums(alone), sites, z, row.entry)
            found.append((jnp.sum(array), sums[row.leaf]))
        return found

    old = local_program(by_term, log_joint, sites, x, z, model_args)
    new = local_program(by_term, log_joint, sites, x, _replaced(z, row), model_args)
    uncounted = []
    for label, before, after in zip(labels, old, new, strict=True):
        changed, counted = (float(b - a) for a, b in zip(before, after, strict=True))
        if not np.isclose(changed, counted, rtol=1e-6, atol=1e-8, equal_nan=True):
            uncounted.append(f"{label} changed by {changed:.6g}, of which {counted:.6g} counted")
    return uncounted
