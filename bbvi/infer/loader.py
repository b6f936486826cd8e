"""Batches that come from elsewhere: a loader, and the checks of what it gives."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from bbvi._tree import as_array, named_leaves
from bbvi._types import Data

END = object()


@dataclasses.dataclass(frozen=True)
class Loader:
    r"""Batches that come from elsewhere, in place of x: ``fit(log_joint, guide, Loader(...))``.

    Every batch is a pytree of arrays with B rows each, B being that of the first. When the batches
    are at an end they are gone through again. A shorter last one is left out, so the loader should
    shuffle. The loss of a batch, times N/B, stands for that of all data: batches should be drawn
    uniformly.

    Batches are read ahead in a thread. ``fit(..., init_state=...)`` reads and drops those of the
    steps before: with a loader that repeats itself the run is as if it had not been interrupted.

    Args:
      batches: what can be iterated over once for every epoch: a list, a ``DataLoader`` of PyTorch
        or Grain, or a function that returns an iterator.
      num_data: N, the rows that are in an epoch.
      rows: name of the leaf with the numbers of a batch's rows among the N. A guide with free
        parameters for each row, ``Local``, needs them. The leaf stays a part of x.

    Raises:
      TypeError: ``batches`` cannot be iterated over; a batch does not hold arrays.
      ValueError: ``num_data`` is no count; or on use, with the number of the batch: there are none
        left, one is unlike the first, or ``num_data`` is not what is in an epoch.

    Example:
      >>> import bbvi, numpy as np
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):
      ...     return norm.logpdf(z["mu"]) + norm.logpdf(x["y"], z["mu"]).sum()
      >>> rng = np.random.default_rng(0)
      >>> y = rng.normal(size=1000).astype(np.float32)
      >>> def batches():
      ...     for rows in rng.permutation(1000).reshape(-1, 50):
      ...         yield {"y": y[rows]}
      >>> guide, loader = bbvi.MeanField({"mu": bbvi.Normal()}), bbvi.Loader(batches, num_data=1000)
      >>> result = bbvi.fit(log_joint, guide, loader, num_epochs=3, progress=False)
      >>> int(result.state.step)
      60

    References:
      Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational Inference.
    """

    batches: Iterable[Data] | Callable[[], Iterator[Data]]
    num_data: int
    rows: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batches, Iterable) and not callable(self.batches):
            raise TypeError(
                "batches must be what can be iterated over, or a function that returns an "
                f"iterator, got {self.batches!r}."
            )
        is_count = isinstance(self.num_data, int) and not isinstance(self.num_data, bool)
        if not is_count or self.num_data < 2:
            raise ValueError(f"num_data must be an int >= 2, got {self.num_data!r}.")

    def __iter__(self) -> Iterator[Data]:
        if isinstance(self.batches, Iterable):
            return iter(self.batches)
        try:
            return iter(self.batches())
        except TypeError as error:
            raise TypeError(
                "batches must be a function of no arguments that returns an iterator, got "
                f"{self.batches!r}: {error}."
            ) from error


class Batches:
    """The batches of a loader one after another, each checked against the first.

    Attributes:
      loader: what they are of.
      first: the first batch, as arrays.
      names: of its leaves.
      size: B.
      number: how many were taken.
    """

    def __init__(self, loader: Loader, first: Data = None):
        self.loader, self.number, self.num_rows = loader, 0, 0
        self.iterator = iter(loader)
        if first is None:
            first = self._arrays()
            if first is END:
                raise ValueError(f"the loader has no batch 0: {self._used_up()}")
            self.iterator = itertools.chain([first], self.iterator)
        self.first, self.names = first, list(named_leaves(first, "x"))
        self.size = _check_first(loader, named_leaves(first, "x"))

    def take(self) -> dict[str, np.ndarray]:
        """The leaves of the next batch by name; after an epoch, of the first of another."""
        columns = self._next()
        if columns is None:
            self._check_epoch()
            self.iterator, self.num_rows = iter(self.loader), 0
            columns = self._next()
        if columns is None:
            raise ValueError(f"the loader has no batch {self.number}: {self._used_up()}")
        self.number += 1
        return columns

    def _next(self) -> dict[str, np.ndarray] | None:
        """None at the end of an epoch, whose last batch may be short and is left out then."""
        batch = self._arrays()
        if batch is END:
            return None
        columns = self._checked(batch)
        num_rows = len(columns[self.names[0]])
        self.num_rows += num_rows
        if num_rows == self.size:
            return columns
        if num_rows > self.size or self._arrays() is not END:
            raise ValueError(
                f"batch {self.number} of the loader has {num_rows} rows, but the first has "
                f"{self.size}: all need as many. Only at the end of an epoch may one be shorter; "
                "it is left out."
            )
        return None

    def _arrays(self) -> Any:
        try:
            batch = next(self.iterator, END)
        except Exception as error:
            error.add_note(f"The loader raised this at batch {self.number}.")
            raise
        return END if batch is END else jax.tree.map(np.asarray, batch)

    def _checked(self, batch: Data) -> dict[str, np.ndarray]:
        """The leaves of a batch by name."""
        leaves, wanted = jax.tree.leaves(batch), jax.tree.leaves(self.first)
        structure: Any = jax.tree.structure(batch)
        if (
            structure != jax.tree.structure(self.first)
            or [(a.dtype, a.shape[1:]) for a in leaves] != [(b.dtype, b.shape[1:]) for b in wanted]
            or len({leaf.shape[:1] for leaf in leaves}) != 1
        ):
            raise ValueError(
                f"batch {self.number} of the loader holds {_describe(batch)}, but the first holds "
                f"{_describe(self.first)}: structure, dtypes and shapes must stay the same."
            )
        columns = dict(zip(self.names, leaves, strict=True))
        if self.loader.rows is not None:
            self._check_rows(columns[self.loader.rows])
        return columns

    def _check_rows(self, rows: np.ndarray) -> None:
        """Raise unless row numbers are in range, and none there twice: which one would count?"""
        num_data, num_different = self.loader.num_data, np.unique(rows).size
        if num_different < rows.size or rows.min() < 0 or rows.max() >= num_data:
            raise ValueError(
                f"batch {self.number} of the loader has in '{self.loader.rows}' the row numbers "
                f"{rows.min()} to {rows.max()}, {num_different} different ones in {rows.size} "
                f"rows; they must be from 0 to num_data - 1 = {num_data - 1}, and none there twice."
            )

    def _check_epoch(self) -> None:
        """Raise unless about ``num_data`` rows were in the epoch: a loader may leave out a few."""
        num_data = self.loader.num_data
        if self.num_rows and abs(self.num_rows - num_data) > max(self.size, num_data // 10):
            raise ValueError(
                f"the loader ended before batch {self.number}, after {self.num_rows} rows, but "
                f"num_data={num_data}, which the loss is scaled to, are to be in an epoch: give "
                "num_data the number of rows that the loader goes through."
            )

    def _used_up(self) -> str:
        return (
            f"iterating over {type(self.loader.batches).__name__} gave none. Give what can be gone "
            "through once for every epoch: a list, a DataLoader, or a function that returns an "
            "iterator."
        )


def _describe(batch: Data) -> str:
    leaves = named_leaves(batch, "x").items()
    return "{" + ", ".join(f"{name}: {a.dtype}{list(a.shape)}" for name, a in leaves) + "}"


def _check_first(loader: Loader, leaves: dict[str, np.ndarray]) -> int:
    """B; an error where the first batch does not hold arrays of as many rows."""
    for name, leaf in leaves.items():
        as_array(name, leaf)
    sizes = {name: leaf.shape[0] if leaf.ndim else None for name, leaf in leaves.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise ValueError(
            "the leaves of a loader's batch must have as many rows, on the leading axis, got sizes "
            f"{sizes} in the first; what is not of the rows belongs in log_joint."
        )
    size = next(iter(sizes.values()))
    assert size is not None
    if not 2 <= size <= loader.num_data:
        raise ValueError(
            f"the first batch of the loader has {size} rows; expected 2 to num_data="
            f"{loader.num_data}, the rows that are in an epoch."
        )
    if loader.rows is not None:
        rows = leaves.get(loader.rows)
        if rows is None or rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise ValueError(
                f"rows='{loader.rows}' must name a leaf with the number of each row, ints of shape "
                f"[{size}]; the first batch holds {_describe(leaves)}."
            )
    return size
