"""Which additive term of a log joint is not finite at a draw, and what it reads there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from bbvi._log_joint import trace_log_joint
from bbvi._tree import named_leaves
from bbvi._types import Data, Latents, LogJoint, PyTree
from bbvi.dependence.blankets import Term, factor_graph
from bbvi.dependence.describe import describe_all
from bbvi.dependence.jaxprs import is_literal
from bbvi.dependence.origin import Origin, gradient_origin, value_origin
from bbvi.dependence.pointers import Pointer
from bbvi.dependence.split_inline import label

# Entries of a latent that are written out one by one.
MAX_SHOWN = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Failure:
    """Where a log joint, or its derivative, is not finite at one draw.

    Attributes:
      origin: the operation it comes from; None where that was not found.
      term: label of the additive term, and its entry, such as ``"log at model.py:10, entry [3]"``.
      value: of that entry.
      num_bad: entries of the term that are not finite.
      reads: latent entries that it reads, with their values.
      latents: names of the latents it reads.
    """

    origin: Origin | None
    term: str
    value: float
    num_bad: int
    reads: tuple[str, ...]
    latents: tuple[str, ...]


def find_failure(
    log_joint: LogJoint, x: Data, z: Latents, *model_args: PyTree, of_gradient: bool = False
) -> Failure | None:
    """Where the log joint of one draw, or its derivative, is not finite.

    Args:
      log_joint: ``(x, z) -> []`` or ``(x, z, theta) -> []``.
      x: data.
      z: one draw of the latents.
      *model_args: theta, where there is one.
      of_gradient: whether to look for a derivative that is not finite.

    Returns:
      None if there is none.

    Example:
      >>> import jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return -0.5 * jnp.sum(z["a"] ** 2) + jnp.sum(x * jnp.log(z["b"]))
      >>> z = {"a": jnp.zeros(2), "b": jnp.array([1.0, -2.0])}
      >>> failure = find_failure(log_joint, jnp.ones(2), z)
      >>> failure.origin.primitive, failure.reads
      ('log', ('b[1] = -2',))
    """
    closed = trace_log_joint(log_joint, x, z, *model_args)
    is_latent = [k == 0 for k, part in enumerate((z, x, model_args)) for _ in jax.tree.leaves(part)]
    search = gradient_origin if of_gradient else value_origin
    origin = search(closed, jax.tree.leaves((z, x, model_args)), is_latent)
    graph, factors = factor_graph(log_joint, x, z, *model_args)
    arrays = [
        np.asarray(array)
        for array in jax.jit(jex_core.jaxpr_as_fun(factors))(*jax.tree.leaves((x, z, model_args)))
    ]
    bad = [k for k, array in enumerate(arrays) if not np.isfinite(array).all()]
    if of_gradient:
        bad = [] if origin is None else _made_from(factors.jaxpr, origin)
    if not bad:
        if origin is None:
            return None
        return Failure(origin, "", np.nan, 0, (), ())
    term, array = graph.terms[bad[0]], arrays[bad[0]]
    wrong = np.argwhere(~np.isfinite(array))
    entry = tuple(int(i) for i in wrong[0]) if len(wrong) else None
    if entry is None and origin is not None and array.shape == origin.value.shape:
        entry = origin.index
    place = f", entry {list(entry)} of {list(array.shape)}" if entry and array.shape else ""
    value = float(array[entry]) if entry is not None else float(array.sum())
    reads = tuple(_reads(term, entry, named_leaves(z, "latents")))
    return Failure(origin, term.label + place, value, len(wrong), reads, tuple(term.reads))


def _made_from(jaxpr: Any, origin: Origin) -> list[int]:
    """Numbers of the terms that the operation goes into."""
    name = f"{origin.primitive} at {origin.line}"
    marked: set[Any] = set()
    for equation in jaxpr.eqns:
        follows = any(not is_literal(var) and var in marked for var in equation.invars)
        if follows or label(equation) == name:
            marked.update(equation.outvars)
    return [k for k, v in enumerate(jaxpr.outvars) if not is_literal(v) and v in marked]


def _reads(term: Term, entry: tuple[int, ...] | None, z: dict[str, Any]) -> Iterator[str]:
    """Latents that an entry of a term reads, and their values."""
    for name, pointers in term.reads.items():
        leaf = np.asarray(z[name])
        rank = len(term.shape)
        found: list[tuple[int, ...]] = []
        if entry is not None and all(p.is_concrete() for p in pointers):
            parts = [_entries(p, entry, leaf.shape) for p in pointers]
            found = sorted(set(itertools.chain.from_iterable(parts)))
        if leaf.ndim == 0:
            yield f"{name} = {leaf:.6g}"
        elif 0 < len(found) <= MAX_SHOWN:
            for place in found:
                yield f"{name}{list(place)} = {leaf[place]:.6g}"
        else:
            # Many, or not known which, as where they are multiplied by zero.
            values = np.array([leaf[place] for place in found]) if found else leaf
            entries = f" at {len(found)} entries" if found else describe_all(pointers, rank)
            yield f"{name}{entries} in [{values.min():.6g}, {values.max():.6g}]"


def _entries(
    pointer: Pointer, entry: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """The latent entries that a pointer says an entry reads."""
    rank = len(entry)

    def here(array: Any) -> np.ndarray:
        """The part of an index array for the entry: its extra axes are left."""
        array = np.asarray(array)
        at = tuple(0 if n == 1 else i for n, i in zip(array.shape, entry, strict=False))
        return array[at[:rank]]

    arrays = [np.ones(()) if a is None else here(a) for a in (*pointer.index, pointer.mask)]
    given = np.broadcast_arrays(*arrays)
    # An axis of which all is read is gone through for each of the others' entries.
    whole = [range(n) if a is None else None for n, a in zip(shape, pointer.index, strict=True)]
    for extra in np.ndindex(given[-1].shape):
        if given[-1][extra]:
            one = [
                [int(a[extra])] if every is None else every
                for a, every in zip(given[:-1], whole, strict=True)
            ]
            yield from itertools.product(*one)
