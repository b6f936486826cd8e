"""Which rows of the data, and of latents with a row for each of these, entries of arrays read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import Array

from bbvi._tree import named_leaves, shapes
from bbvi._types import Data, Latents
from bbvi.dependence.analysis import Value, constant
from bbvi.dependence.pointers import Pointer, is_concrete, same

# The number of the rows among what is analysed; latents, which may have rows too, follow it.
ROWS = 0


class Batch(NamedTuple):
    """The leaves of x that hold one row for each datum, and the number of rows."""

    leaves: frozenset[str]
    size: int


def batch_of(x: Data, names: Sequence[str] | None) -> Batch:
    """The batch of x: the leading axis of the leaves called ``names``, or of all that have axes.

    Raises:
      ValueError: there is no such leaf, or they differ in their leading axis.

    Example:
      >>> import numpy as np
      >>> batch_of({"y": np.ones((5, 2)), "scale": 2.0}, None)
      Batch(leaves=frozenset({'y'}), size=5)
    """
    leaves = named_leaves(x, "x")
    unknown = [name for name in names or () if name not in leaves]
    if unknown:
        raise ValueError(f"batch names {unknown}, but the leaves of x are {list(leaves)}.")
    chosen = leaves if names is None else {name: leaves[name] for name in names}
    sizes = {name: np.shape(leaf)[0] for name, leaf in chosen.items() if np.ndim(leaf)}
    if not sizes:
        raise ValueError(
            f"x holds no rows to take batches of: {shapes(x, 'x')}; give arrays whose leading axis "
            "is over the data."
        )
    if len(set(sizes.values())) != 1:
        raise ValueError(
            "the leaves of x must share one leading axis, over the rows of the batch, got sizes "
            f"{sizes}; name those that hold one row for each datum, such as batch=('y',)."
        )
    return Batch(frozenset(sizes), next(iter(sizes.values())))


def row_inputs(batch: Batch, x: Data, z: Latents) -> list[Value]:
    """Data and latents as they enter the analysis: only leading axes are followed."""

    def by_row(number: int, leaf: Array) -> Value:
        index = np.arange(leaf.shape[0]).reshape(-1, *(1,) * (leaf.ndim - 1))
        zeros = functools.partial(np.zeros, leaf.shape, leaf.dtype)
        return Value(leaf.shape, [Pointer(number, (index,))], zeros, is_concrete=True)

    values = [
        by_row(ROWS, leaf) if name in batch.leaves else constant(leaf)
        for name, leaf in named_leaves(x, "x").items()
    ]
    for number, leaf in enumerate(named_leaves(z, "latents").values(), ROWS + 1):
        values.append(by_row(number, leaf) if leaf.ndim else Value(()))
    return values


def tied_to_rows(values: Sequence[Value], size: int) -> set[int]:
    """The rows, and latents by row: those read row by row beside rows, or beside such latents."""
    beside = [
        [(p.leaf, _rows(p)) for p in value.reads if p.index and _is_each_once(p, value.rank, size)]
        for value in values
        if len({p.leaf for p in value.reads}) > 1
    ]
    tied = {ROWS}
    while True:
        grown = tied | {
            other
            for pointers in beside
            for leaf, rows in pointers
            for other, other_rows in pointers
            if leaf in tied and same(rows, other_rows)
        }
        if grown == tied:
            return tied
        tied = grown


def reads_rows(value: Value, tied: set[int]) -> bool:
    """Whether an array reads anything that has rows."""
    return any(p.leaf in tied for p in value.reads)


def is_row_by_row(value: Value, tied: set[int], size: int) -> bool:
    """Whether each entry of an array belongs to one row, and as many entries to each row."""
    pointers = [p for p in value.reads if p.leaf in tied]
    return (
        bool(pointers)
        and _is_each_once(pointers[0], value.rank, size)
        and all(same(_rows(p), _rows(pointers[0])) for p in pointers)
    )


def _rows(p: Pointer) -> Pointer:
    """Which rows a pointer reads, of whatever and wherever."""
    return Pointer(ROWS, p.index)


def _is_each_once(p: Pointer, rank: int, size: int) -> bool:
    """Whether each entry has one row, as many entries each row, and as many of them read it."""
    (index,) = p.index
    if index is None or not is_concrete(index) or index.ndim > rank:
        return False
    counts = np.bincount(index.reshape(-1), minlength=size)
    if p.mask is not None and is_concrete(p.mask):
        index, mask = np.broadcast_arrays(index, p.mask)
        reading = np.bincount(index[mask], minlength=size)
        counts = np.stack([counts, reading], axis=-1)
    return bool((counts == counts[0]).all())
