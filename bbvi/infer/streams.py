"""Data that need not fit into memory, from files and loaders: read ahead of the steps."""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bbvi._tree import as_array, named_leaves
from bbvi._types import Data, Key
from bbvi.infer.batching import (
    Batching,
    Feed,
    Resident,
    Source,
    Whole,
    minibatches,
    order_seed,
)
from bbvi.infer.loader import Batches, Loader
from bbvi.problem import Problem

FEED_BYTES = 1 << 25  # of data on the device at a time, where a batch is not larger
BLOCK_BYTES = 1 << 18  # of contiguous rows: disks read them at about their full speed
READ_SECONDS = 0.5  # after which the steps get what has been read so far


class Piece(NamedTuple):
    """Batches of consecutive steps, end to end.

    Attributes:
      columns: leaves of x by name, with room for the rows of a whole feed.
      order: numbers of their rows.
      start: step of the first batch.
      num_batches: how many there are.
      error: what ended the reading after them.
    """

    columns: dict[str, np.ndarray]
    order: np.ndarray
    start: int
    num_batches: int
    error: Exception | None = None

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.start + self.num_batches

    def has(self, step: int) -> bool:
        """Whether it says what there is for a step: a batch, or an error."""
        return self.start <= step < self.end + (self.error is not None)


class Stream(Source):
    """Batches that are read in pieces, the next one while steps are taken with the last.

    Within its context a thread reads ahead; without, pieces are read when they are asked for. All
    feeds have the same shapes, so that nothing is compiled twice.
    """

    batching: Batching

    def __init__(self, batching: Batching, x: Data, few: Data):
        self.batching = dataclasses.replace(batching, is_streamed=True)
        self.x, self.few = x, few
        self.leaves = {name: named_leaves(few, "x")[name] for name in sorted(batching.names)}
        num_bytes = sum(leaf.nbytes for leaf in self.leaves.values())
        self.capacity = min(max(1, FEED_BYTES // max(num_bytes, 1)), batching.steps_per_epoch)
        self.piece: Piece | None = None
        self.held: Feed | None = None
        self.ahead: Future[Piece] | None = None
        self.executor: ThreadPoolExecutor | None = None

    @abc.abstractmethod
    def read(self, step: int) -> Piece:
        """Batches of some steps, that of ``step`` among them."""

    def feed(self, step: int, count: int) -> tuple[Feed, int]:
        if self.piece is None or not self.piece.has(step):
            self.piece, self.held = self._piece_with(step), None
        if self.executor is not None and self.ahead is None and self.piece.error is None:
            self.ahead = self.executor.submit(self.read, self.piece.end)
        if self.piece.error is not None and step == self.piece.end:
            raise self.piece.error
        if self.held is None:
            self.held = self.to_feed(self.piece)
        return self.held, min(count, self.piece.end - step)

    def _piece_with(self, step: int) -> Piece:
        """What was read ahead, if it has the step, or what is read now."""
        ahead, self.ahead = self.ahead, None
        piece = None if ahead is None else ahead.result()
        return piece if piece is not None and piece.has(step) else self.read(step)

    def room(self, num_batches: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Columns and order for so many batches."""
        num_rows = num_batches * self.batching.batch_size
        columns = {
            name: np.empty((num_rows, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in self.leaves.items()
        }
        return columns, np.zeros(num_rows, np.int32)

    def to_feed(self, piece: Piece) -> Feed:
        """A piece on the device."""
        columns, order = jax.device_put((piece.columns, piece.order))
        leaves = named_leaves(self.few, "x") | columns
        data = jax.tree.unflatten(jax.tree.structure(self.few), list(leaves.values()))
        return Feed(data, order, jnp.int32(piece.start))

    def __enter__(self) -> Stream:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="bbvi-read")
        return self

    def __exit__(self, *exception: Any) -> None:
        assert self.executor is not None
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.executor = self.ahead = self.piece = self.held = None


class Stored(Stream):
    r"""Batches of arrays of which some lie on disk, in an order of their own in every epoch.

    Rows that are next to each other on disk are read together, yet each batch is drawn uniformly:

    1. The N rows, taken as a circle, are cut at a random place and into blocks of
       ``BLOCK_BYTES``; the blocks are put in random order.
    2. Windows of as many rows as a feed has, one after another, are shuffled in memory and cut
       into batches; what is left over of the last is left out of the epoch.

    By the random cut every row is as likely as any other to be in the batch of a given step, so
    that gradients are unbiased. Rows that are near each other in the file are more often together
    in a batch than others: where it is sorted, batches differ more than if it were not. Data that
    fit into one window are permuted as a whole. The order follows from the run's key and the number
    of the epoch, so that a run goes on in the middle of an epoch as if it had not stopped.
    """

    def __init__(self, batching: Batching, x: Data, key: Key):
        size = batching.batch_size
        rows = batching.map_rows(lambda leaf: np.asarray(leaf[:size]), x)
        super().__init__(batching, x, jax.tree.map(jnp.asarray, rows))
        x = named_leaves(x, "x")
        self.stored = {name: np.asarray(x[name]) for name in self.leaves}  # disk stays disk
        # Even windows: a last one of few batches would cost as much as the others.
        num_windows = -(-batching.steps_per_epoch // self.capacity)
        self.capacity = -(-batching.steps_per_epoch // num_windows)
        row_bytes = sum(leaf.nbytes for leaf in self.leaves.values()) / size
        self.block = min(batching.num_data, max(1, int(BLOCK_BYTES / max(row_bytes, 1))))
        self.seed = order_seed(key)

    def read(self, step: int) -> Piece:
        epoch, batch = divmod(step, self.batching.steps_per_epoch)
        first = batch - batch % self.capacity
        num_batches = min(self.capacity, self.batching.steps_per_epoch - first)
        rows = self._window(epoch, first)
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
        runs = list(itertools.pairwise([0, *ends]))
        shuffled = np.random.default_rng([*self.seed, epoch, 1 + first]).permutation(len(rows))
        shuffled = shuffled[: num_batches * self.batching.batch_size]
        columns, order = self.room(self.capacity)
        for name, leaf in self.stored.items():
            window = np.empty((len(rows), *leaf.shape[1:]), columns[name].dtype)
            for begin, end in runs:  # contiguous in the file
                window[begin:end] = leaf[rows[begin] : rows[begin] + end - begin]
            np.take(window, shuffled, axis=0, out=columns[name][: len(shuffled)], mode="clip")
        order[: len(shuffled)] = rows[shuffled]
        return Piece(columns, order, step - batch + first, num_batches)

    def _window(self, epoch: int, first: int) -> np.ndarray:
        """Rows, before they are shuffled, of the batches of an epoch from ``first`` on."""
        num_data, size = self.batching.num_data, self.batching.batch_size
        is_last = first + self.capacity >= self.batching.steps_per_epoch
        begin, end = first * size, num_data if is_last else (first + self.capacity) * size
        cut, blocks = _cut(self.seed, epoch, num_data, self.block)
        blocks = blocks[begin // self.block : -(-end // self.block)]
        rows = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1) + cut
        rows = rows[begin % self.block :][: end - begin]
        return np.where(rows < num_data, rows, rows - num_data)

    def random_feeds(self, key: Key, num_batches: int) -> Iterator[tuple[Feed, int]]:
        rng = np.random.default_rng(order_seed(key))
        while num_batches:
            count = min(num_batches, self.capacity)
            columns, order = self.room(count)
            rows = rng.integers(self.batching.num_data, size=len(order))
            by_place = np.argsort(rows)  # reading forward through the file
            for name, leaf in self.stored.items():
                columns[name][by_place] = leaf[rows[by_place]]
            order[:] = rows
            yield self.to_feed(Piece(columns, order, 0, count)), count
            num_batches -= count


@functools.lru_cache(maxsize=1)
def _cut(seed: tuple[int, ...], epoch: int, num_data: int, block: int) -> tuple[int, np.ndarray]:
    """Where the circle of rows is cut in an epoch, and its blocks in their order."""
    rng = np.random.default_rng([*seed, epoch, 0])
    # The rows after the last whole block come last: by the cut, these are any.
    whole = num_data // block
    return int(rng.integers(num_data)), np.append(rng.permutation(whole), whole)


class Loaded(Stream):
    """Batches of a ``Loader``."""

    def __init__(self, batching: Batching, batches: Batches):
        few = jax.tree.map(jnp.asarray, batches.first)
        names = frozenset(batches.names)  # of a loader every leaf has rows
        super().__init__(dataclasses.replace(batching, names=names), batches.loader, few)
        self.batches: Batches | None = batches
        self.like = batches.first

    def read(self, step: int) -> Piece:
        if self.batches is None or step < self.batches.number:
            self.batches = Batches(self.x, self.like)
        while self.batches.number < step:
            self.batches.take()
        return self._stack(self.batches, self.capacity, READ_SECONDS)

    def _stack(self, batches: Batches, most: int, seconds: float) -> Piece:
        """As many batches as there is time for."""
        start, deadline = batches.number, time.monotonic() + seconds
        size = self.batching.batch_size
        columns, order = self.room(self.capacity)
        error = None
        for i in range(most):
            try:
                batch = batches.take()
            except Exception as caught:  # raised when the steps have come to it
                error = caught
                break
            for name, leaf in batch.items():
                columns[name][i * size : (i + 1) * size] = leaf
            if self.x.rows is not None:
                order[i * size : (i + 1) * size] = batch[self.x.rows]
            if time.monotonic() > deadline:
                break
        return Piece(columns, order, start, batches.number - start, error)

    def random_feeds(self, key: Key, num_batches: int) -> Iterator[tuple[Feed, int]]:
        """The first batches of another iteration: as random as the loader makes them."""
        del key
        wait([self.ahead] if self.ahead else [])  # two threads may not iterate at a time
        batches = Batches(self.x, self.like)
        while num_batches:
            piece = self._stack(batches, min(num_batches, self.capacity), math.inf)
            if not piece.num_batches and piece.error is not None:
                raise piece.error
            yield self.to_feed(piece._replace(start=0)), piece.num_batches
            num_batches -= piece.num_batches

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.batches = None  # and with it the loader's own threads and files


def source_of(
    problem: Problem, x: Data, batch_size: int | None, key: Key
) -> tuple[Problem, Source]:
    """The problem of a step, and what gives it data.

    Args:
      problem: that of all data.
      x: data, or a ``Loader`` of them.
      batch_size: B, or None: all data at every step, or the batches of the loader.
      key: key of the run, or of several.
    """
    if isinstance(x, Loader):
        if batch_size is not None:
            raise ValueError(
                f"batch_size={batch_size}, but a Loader's batches have the rows they come with: "
                "leave it out."
            )
        return _loaded(problem, x)

    if isinstance(x, Iterator):
        raise TypeError(
            f"x must be arrays, got {x!r}. Batches from an iterator are given as "
            "bbvi.Loader(function_that_returns_it, num_data=N)."
        )

    def array(name: str, leaf: Any) -> Any:
        if batch_size is None or not isinstance(leaf, np.memmap) or not leaf.ndim:
            return as_array(name, leaf)
        as_array(name, leaf[:1])  # raises where it is not of numbers
        return leaf

    leaves = [array(name, leaf) for name, leaf in named_leaves(x, "x").items()]
    x = jax.tree.unflatten(jax.tree.structure(x), leaves)
    if batch_size is None:
        return problem, Whole(x)
    small, batching = minibatches(problem, x, batch_size)
    if any(isinstance(leaf, np.memmap) for leaf in leaves):
        return small, Stored(batching, x, key)
    return small, Resident(batching, x, key)


def _loaded(problem: Problem, loader: Loader) -> tuple[Problem, Loaded]:
    batches = Batches(loader)
    few = jax.tree.map(jnp.asarray, batches.first)
    shape_of = jax.ShapeDtypeStruct
    every = jax.tree.map(lambda a: shape_of((loader.num_data, *a.shape[1:]), a.dtype), few)
    small, batching = minibatches(problem, every, batches.size)
    params = jax.eval_shape(problem.guide.init, jax.random.key(0), few)
    if loader.rows is None and jax.tree.leaves(problem.guide.split_rows(params)[1]):
        raise ValueError(
            f"the guide has free parameters for each of the {loader.num_data} rows: put the "
            "numbers of its rows in each batch, and name that leaf, Loader(..., rows='number')."
        )
    return small, Loaded(batching, batches)
