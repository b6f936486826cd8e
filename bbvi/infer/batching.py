"""Minibatches: which rows a step sees, and what a batch says about all of the data."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._tree import named_leaves
from bbvi._types import Data, Key, LogJoint
from bbvi.dependence.row_reads import batch_of
from bbvi.factors import FactorizedLogJoint, scale_data_terms
from bbvi.problem import Problem

# Orders are made for so many row numbers at once: few calls for small data, little wait for large.
ORDER_ENTRIES = 1 << 17
MAX_EPOCHS = 1000
# Folded into a run's key for the order of the rows; steps fold in their numbers, which are lower.
ORDER = np.uint32(2**32 - 1)


class Feed(NamedTuple):
    """The data of some steps, as compiled code reads them.

    Attributes:
      data: rows to take batches from, and whatever else there is in x.
      order: numbers of the rows of one batch after another, among all rows.
      start: the step of the first of them.
    """

    data: Data
    order: Array
    start: Array


@dataclasses.dataclass(frozen=True)
class Batching:
    """How batches are made: static, so a part of what is compiled.

    Attributes:
      num_data: N.
      batch_size: B.
      names: leaves of x that hold one row for each datum.
      scale: the loss of a batch, times this, is an unbiased estimate of that of all data.
      is_streamed: whether a feed's data are in the order of its batches, instead of all rows.
    """

    num_data: int
    batch_size: int
    names: frozenset[str]
    scale: float
    is_streamed: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the data; the rows that are left over are others in every epoch."""
        return self.num_data // self.batch_size

    def steps_in(self, feed: Feed) -> int:
        """How many steps a feed has room for."""
        return feed.order.shape[0] // self.batch_size

    def take(self, feed: Feed, step: Array) -> tuple[Data, Array]:
        """The batch of a step, and the numbers of its rows ``[B]``."""
        first = (step - feed.start) * self.batch_size
        rows = jax.lax.dynamic_slice_in_dim(feed.order, first, self.batch_size)

        def pick(leaf: Array) -> Array:
            if self.is_streamed:
                return jax.lax.dynamic_slice_in_dim(leaf, first, self.batch_size)
            return jnp.take(leaf, rows, axis=0, mode="clip", unique_indices=True)

        return self.map_rows(pick, feed.data), rows

    def map_rows(self, function: Any, x: Data) -> Data:
        """``function`` of every leaf with a row for each datum; the others as they are."""
        names = iter(named_leaves(x, "x"))
        return jax.tree.map(lambda leaf: function(leaf) if next(names) in self.names else leaf, x)


def minibatches(problem: Problem, x: Data, batch_size: int) -> tuple[Problem, Batching]:
    r"""The problem of one batch, and how batches are made.

    With data :math:`x_n`, latents :math:`z_n` of their own and latents :math:`\beta` that they
    share, a batch of B out of N rows gives

    .. math::
      \frac{N}{B} \Big( \frac{B}{N} \big[\log p(\beta) - \log q(\beta)\big] +
        \sum_{n=1}^B \big[\log p(x_n, z_n \mid \beta) - \log q(z_n)\big] \Big)

    whose mean over batches and draws is the ELBO of all data. The problem is what is in the large
    brackets: so the weights of local latents are what they are without batches, and bounds of
    several draws remain bounds for each datum. Where all latents are shared nothing is divided,
    and the factor is one. The log joint is divided in ``FactorizedLogJoint``, log q of shared
    latents by ``Problem.site_weights``.

    Args:
      problem: that of all N rows.
      x: data, or shapes of them.
      batch_size: B.

    Returns:
      The problem of a batch, and how batches are made.

    Raises:
      ValueError: more rows in a batch than there are; local sites that have not N rows; bounds of
        several draws of latents that the data share; a log joint that is not a sum over rows.
    """
    log_joint, guide = problem.log_joint, problem.guide
    declared = log_joint.batch if isinstance(log_joint, FactorizedLogJoint) else None
    batch = batch_of(x, declared)
    num_data = batch.size
    if not 2 <= batch_size <= num_data:
        raise ValueError(
            f"batch_size must be 2 to {num_data}, the rows of x, got {batch_size}; leave it out to "
            "take all rows at every step."
        )
    is_local = {site.name: site.is_local for site in guide.sites()}
    _check_sites(problem, num_data, is_local)
    share = batch_size / num_data
    weights = tuple((name, share) for name, local in is_local.items() if not local)
    scaled = _scaled(log_joint, num_data)
    if any(is_local.values()):
        scaled = dataclasses.replace(scaled, is_per_batch=True)
    small = Problem(
        scaled,
        guide.resized(batch_size),
        problem.objective,
        weights if any(is_local.values()) else (),
    )
    scale = 1 / share if any(is_local.values()) else 1.0
    return small, Batching(num_data, batch_size, batch.leaves, scale)


def _scaled(log_joint: LogJoint, num_data: int) -> FactorizedLogJoint:
    if not isinstance(log_joint, FactorizedLogJoint):
        return scale_data_terms(log_joint, num_data=num_data)
    if log_joint.num_data != num_data:
        raise ValueError(
            f"with batch_size the data terms of a FactorizedLogJoint are scaled to the {num_data} "
            f"rows of x, but it says num_data={log_joint.num_data}; give data_terms and "
            f"num_data={num_data}, or a plain function."
        )
    return log_joint


def _check_sites(problem: Problem, num_data: int, is_local: dict[str, bool]) -> None:
    for site in problem.guide.sites():
        if site.is_local and (not site.shape or site.shape[0] != num_data):
            raise ValueError(
                f"local site '{site.name}' has shape {site.shape}, but x has {num_data} rows: its "
                "first axis must be over them."
            )
    if not problem.objective.is_mean and not all(is_local.values()):
        shared = [name for name, local in is_local.items() if not local]
        raise ValueError(
            f"{problem.objective!r} of a batch is not a bound where the data share latents, as "
            f"{shared} here; use bbvi.Elbo() with batch_size, or leave batch_size out."
        )


def _orders(batching: Batching, num_epochs: int, seed: tuple[int, ...], first: int) -> np.ndarray:
    """Row numbers of the batches of these epochs, one epoch after another."""
    used = batching.steps_per_epoch * batching.batch_size
    # On the host: there JAX sorts random numbers, and takes forty times as long.
    orders = [
        np.random.default_rng([*seed, epoch]).permutation(batching.num_data)[:used]
        for epoch in range(first, first + num_epochs)
    ]
    return np.concatenate(orders, dtype=np.int32, casting="unsafe")


def order_seed(key: Key) -> tuple[int, ...]:
    """A seed for the order of the rows in a run; of several, which see the same batches, in all."""
    # The key was in use before, and other numbers are folded into it by the steps.
    with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
        folded = jax.random.fold_in(key.reshape(-1)[0], ORDER)
        return tuple(int(word) for word in np.asarray(jax.random.key_data(folded)))


class Source(abc.ABC):
    """What gives steps their data. A run goes on within its context, where it may read ahead.

    Attributes:
      x: the data, as they were given.
      few: as many rows of them as a step sees.
      batching: how batches are made, or None: all data at every step.
    """

    x: Data
    few: Data
    batching: Batching | None = None

    @abc.abstractmethod
    def feed(self, step: int, count: int) -> tuple[Feed | Data, int]:
        """The data of the next steps, and how many of the ``count`` they are for."""

    def random_feeds(self, key: Key, num_batches: int) -> Iterator[tuple[Feed, int]]:
        """Random batches, from step 0 of each feed on, and how many are in it."""
        raise NotImplementedError

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: Any) -> None:
        return None


class Whole(Source):
    """All data at every step."""

    def __init__(self, x: Data):
        self.x = self.few = x

    def feed(self, step: int, count: int) -> tuple[Data, int]:
        del step
        return self.x, count


class Resident(Source):
    """Batches of data that stay on the device, in an order of their own in every epoch.

    The order follows from the run's key and the number of the epoch, so that a run goes on in the
    middle of an epoch as if it had not stopped.
    """

    batching: Batching

    def __init__(self, batching: Batching, x: Data, key: Key):
        self.batching, self.x = batching, x
        self.few = batching.map_rows(lambda leaf: leaf[: batching.batch_size], x)
        self.seed = order_seed(key)
        self.num_epochs = min(MAX_EPOCHS, max(1, ORDER_ENTRIES // batching.num_data))
        self.group, self.order = -1, jnp.zeros(0, jnp.int32)

    def feed(self, step: int, count: int) -> tuple[Feed, int]:
        length = self.num_epochs * self.batching.steps_per_epoch
        group = step // length
        if group != self.group:
            first = group * self.num_epochs
            self.order = jnp.asarray(_orders(self.batching, self.num_epochs, self.seed, first))
            self.group = group
        start = group * length
        return Feed(self.x, self.order, jnp.int32(start)), min(count, start + length - step)

    def random_feeds(self, key: Key, num_batches: int) -> Iterator[tuple[Feed, int]]:
        size, num_data = self.batching.batch_size, self.batching.num_data
        most = max(1, ORDER_ENTRIES // size)
        for first in range(0, num_batches, most):
            count = min(most, num_batches - first)
            key, row_key = jax.random.split(key)
            order = jax.random.randint(row_key, (count * size,), 0, num_data)
            yield Feed(self.x, order, jnp.int32(0)), count
