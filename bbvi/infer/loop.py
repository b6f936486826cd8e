"""The host's side of a run: chunks, rate, stopping, progress and callbacks."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bbvi._types import Data, PyTree
from bbvi.infer.bar import Bar
from bbvi.infer.batching import Source
from bbvi.infer.chunk import chunk_shape, gradient_norm, run_chunk
from bbvi.infer.placement import largest
from bbvi.infer.step import Algorithm, FitState
from bbvi.infer.stopping import Plateau

RATE_FACTOR = 0.25  # the rate falls by this factor at every plateau
MIN_RATE = 0.25**3  # and a plateau at this rate ends the run
RATE_DROPS = (0.5, 0.7, 0.85)  # where it falls in a run of given length, as fractions of it
CHECK_GROWTH = 1.25  # plateaus are looked for at geometrically growing lengths
SECONDS_PER_CHUNK = 0.5  # how often progress and callbacks are served


class Progress(NamedTuple):
    """What a callback sees between chunks.

    Attributes:
      step: steps taken so far in this call.
      num_steps: steps at most.
      loss: losses of the steps since the last call, ``[n]`` (``[R, n]`` with restarts).
      state: the current state.
      gradient_norm: ``gradient_norm()`` computes the Euclidean norm of the gradient at the current
        state (``[R]`` with restarts), with the draws and the batch of the last step.

    Example:
      >>> import bbvi
      >>> steps = []
      >>> result = bbvi.fit(
      ...     lambda x, z: -0.5 * z**2,
      ...     bbvi.MeanField(bbvi.Normal()),
      ...     num_steps=100,
      ...     progress=False,
      ...     callbacks=[lambda progress: steps.append(progress.step)],
      ... )
      >>> steps[-1]
      100

      To TensorBoard, and likewise to any other logger:

      >>> import tempfile, tensorboardX
      >>> with tensorboardX.SummaryWriter(tempfile.mkdtemp()) as writer:
      ...
      ...     def log(progress):
      ...         writer.add_scalar("elbo", -progress.loss.mean(), progress.step)
      ...         writer.add_scalar("gradient norm", progress.gradient_norm(), progress.step)
      ...
      ...     result = bbvi.fit(
      ...         lambda x, z: -0.5 * z**2,
      ...         bbvi.MeanField(bbvi.Normal()),
      ...         num_steps=100,
      ...         progress=False,
      ...         callbacks=[log],
      ...     )
    """

    step: int
    num_steps: int
    loss: np.ndarray
    state: FitState
    gradient_norm: Callable[[], np.ndarray]


class Record(NamedTuple):
    """Losses (``[n]`` or ``[R, n]``) and traces of the steps taken so far."""

    loss: np.ndarray
    trace: PyTree


class Position(NamedTuple):
    """A run between two chunks.

    Attributes:
      state: the state.
      record: of the steps so far.
      first: the step it began at, of every restart where there are several.
      done: steps since then.
      since: where in them the current rate began.
      status: ``max_steps`` while there is more to do.
    """

    state: FitState
    record: Record
    first: np.ndarray
    done: int
    since: int
    status: str = "max_steps"


class Store(Protocol):
    """What keeps positions on disk."""

    def is_due(self) -> bool:
        """Whether it is time to save."""

    def save(self, position: Position) -> None:
        """Saves a position."""


@dataclasses.dataclass
class Loop:
    """One run from a state to its end.

    Attributes:
      algorithm: what a step does.
      source: what gives a chunk its data.
      num_steps: steps at most.
      rule: stopping rule, or None to take all steps.
      lowering: when the rate falls, of a run that has a stopping rule; None: never, as for an
        optimizer the user chose.
      is_batched: whether the state has a leading axis of restarts.
      num_annealing: steps at the beginning in which the objective still changes; nothing is
        decided before they are over, nor from what was recorded in them.
      store: what keeps the run on disk, if anything does.
      error: the exception that ended the run, if one did.
    """

    algorithm: Algorithm
    source: Source
    num_steps: int
    rule: Plateau | None
    lowering: Plateau | None
    is_batched: bool
    num_annealing: int = 0
    store: Store | None = None
    error: Exception | None = None

    @property
    def is_shared(self) -> bool:
        """Whether several processes take the steps: they decide together, one shows progress."""
        placement = self.algorithm.placement
        return placement is not None and placement.is_shared

    def begin(self, state: FitState) -> Position:
        """Before the first step of a run from a state."""
        first = np.asarray(state.step)
        empty = Record(np.zeros((*first.shape, 0)), ())
        return Position(state, empty, first, 0, self.num_annealing)

    def run(
        self,
        position: Position,
        callbacks: Sequence[Callable[[Progress], bool | None]],
        *,
        progress: bool,
    ) -> tuple[str, FitState, Record, int]:
        """Take the steps from a position on.

        Returns:
          Why they ended, the last good state, the record, and from where in it the run can be
          judged: the last change of rate or, in a run of given length, its second half.
        """
        state, before, first, done, since, status = position
        one = jax.tree.map(lambda leaf: leaf[0], state) if self.is_batched else state
        begin = int(first.max())
        length = int(
            np.prod(chunk_shape(self.algorithm, one, self.source.feed(begin + done, 1)[0]))
        )
        records, saved = [before] if done else [], done
        size, is_guarded = length, False
        is_shown = progress and not (self.is_shared and jax.process_index())
        bar = Bar(self.num_steps, done, is_shown=is_shown)
        try:
            while done < self.num_steps and status == "max_steps":
                boundary = self._next_boundary(done, since, _rate(state))
                count = min(size, length, boundary - done)
                began = time.perf_counter()
                x, count = self.source.feed(begin + done, count)
                state, record, is_guarded = self._chunk(state, x, count, is_guarded=is_guarded)
                records.append(record)
                size = int(self._agreed(_next_size(count, time.perf_counter() - began)))
                taken = np.asarray(state.step) - first
                done += count
                norm = functools.partial(self._gradient_norm, state, x)
                bar.update(count, record.loss, None if self.is_shared else norm)
                if (taken < done).all():
                    status = "nonfinite"
                elif done == boundary:
                    status, since, state = self._decide(records, state, done, since)
                position = Position(state, record, first, done, since, status)
                if self.store and self._agreed(self.store.is_due()):
                    saved = self._save(position, records)
                info = Progress(done, self.num_steps, record.loss, state, norm)
                is_enough = any([callback(info) for callback in callbacks])
                if callbacks and self._agreed(is_enough) and status == "max_steps":
                    status = "stopped"
        except KeyboardInterrupt:
            status = "interrupted"
        except Exception as error:  # a callback's, or the model's own: the caller raises it again
            status, self.error = "failed", error
        finally:
            bar.close()
        if position.done > saved:
            self._save(position, records)
        since = since if self.rule else max(done // 2, self.num_annealing)
        return status, state, self._join(records, np.asarray(state.step) - first), since

    def _agreed(self, value: float) -> float:
        """A number, or a truth, that may be another in every process: the largest of them."""
        return largest(value) if self.is_shared else value

    def _save(self, position: Position, records: list[Record]) -> int:
        """Keeps a position, with the records up to it, and returns its number of steps."""
        # What halted the run would halt it again: its last checkpoint is that before.
        if self.store and position.status != "nonfinite":
            self.store.save(position._replace(record=self._concatenate(records)))
        return position.done

    def _chunk(
        self, state: FitState, x: Data, count: int, *, is_guarded: bool
    ) -> tuple[FitState, Record, bool]:
        """Take ``count`` steps; once one was not finite, again and from then on guarded."""
        # A state may be run from twice on purpose: every step folds its own number into the key.
        with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
            batched = {"is_batched": self.is_batched}
            if not is_guarded:
                next_state, is_finite, outputs = run_chunk(
                    self.algorithm, state, x, count, is_guarded=False, **batched
                )
                record = self._read(outputs, count)
                if bool(np.all(is_finite)):
                    return next_state, record, False
            state, _, outputs = run_chunk(
                self.algorithm, state, x, count, is_guarded=True, **batched
            )
            return state, self._read(outputs, count), True

    def _gradient_norm(self, state: FitState, x: Data) -> np.ndarray:
        # The draws are once more those of the last step.
        with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
            return np.asarray(gradient_norm(self.algorithm, state, x, is_batched=self.is_batched))

    def _read(self, outputs: Any, count: int) -> Record:
        """The chunk's records on the host; this is where the host waits for the device."""
        steps = (slice(None), slice(count)) if self.is_batched else slice(count)
        return Record(*jax.tree.map(lambda leaf: np.asarray(leaf)[steps].copy(), outputs))

    def _rule_at(self, rate: float) -> Plateau:
        """The rule that ends the steps at this rate."""
        assert self.rule is not None
        return self.lowering if self.lowering and rate > MIN_RATE else self.rule

    def _next_boundary(self, done: int, since: int, rate: float) -> int:
        """The next step at which something is decided: not a matter of how chunks fall."""
        if self.rule is None:
            return next((drop for drop in self._drops() if drop > done), self.num_steps)
        check = since + self._rule_at(rate).min_steps
        while check <= done:
            check = since + int((check - since) * CHECK_GROWTH)
        return min(check, self.num_steps)

    def _drops(self) -> list[int]:
        """Where the rate falls in a run of given length."""
        left = self.num_steps - self.num_annealing
        return [self.num_annealing + int(fraction * left) for fraction in RATE_DROPS]

    def _decide(
        self, records: list[Record], state: FitState, done: int, since: int
    ) -> tuple[str, int, FitState]:
        """Status, where the current rate began, and the state with its rate."""
        rate = _rate(state)
        if self.rule is None:
            drops = sum(done >= drop for drop in self._drops())
            rate = min(rate, RATE_FACTOR**drops) if self.lowering else rate
            return "max_steps", since, _with_rate(state, rate)
        losses = np.concatenate([record.loss for record in records], axis=-1)[..., since:]
        if not self._rule_at(rate).is_level(_finite_runs(losses)):
            return "max_steps", since, state
        if not self.lowering or rate <= MIN_RATE:
            return "converged", since, state
        return "max_steps", done, _with_rate(state, rate * RATE_FACTOR)

    def _concatenate(self, records: list[Record]) -> Record:
        axis = 1 if self.is_batched else 0
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=axis), *records)

    def _join(self, records: list[Record], taken: np.ndarray) -> Record:
        """All records end to end, cut where the run halted (with restarts, NaN from there)."""
        if not records:
            return Record(np.zeros((*taken.shape, 0)), ())
        joined = self._concatenate(records)
        if not self.is_batched:
            return jax.tree.map(lambda leaf: leaf[: int(taken)], joined)
        after = np.arange(joined.loss.shape[1])[None, :] >= taken[:, None]
        return joined._replace(loss=np.where(after, np.nan, joined.loss))


def _finite_runs(losses: np.ndarray) -> np.ndarray:
    """Finite losses of one run, which may have skipped steps; with restarts, those of the runs
    whose last loss is finite: a failed one must not hold up the rest.
    """
    if losses.ndim == 1:
        return losses[np.isfinite(losses)]
    good = np.isfinite(losses[:, -1])
    return losses[good] if good.any() else losses


def _rate(state: FitState) -> float:
    return float(np.max(np.asarray(state.rate)))


def _with_rate(state: FitState, rate: float) -> FitState:
    # By NumPy: an operation of JAX takes as long as a hundred steps of a small model.
    return state._replace(rate=jnp.asarray(np.full_like(np.asarray(state.rate), rate)))


def _next_size(count: int, seconds: float) -> int:
    """Steps for the next chunk, so that it lasts about SECONDS_PER_CHUNK."""
    wanted = int(count * SECONDS_PER_CHUNK / max(seconds, 1e-6))
    # The first chunk includes compilation, so one measurement moves the size by 10 at most.
    return max(1, count // 10, min(wanted, 10 * count))


def final_status(status: str, losses: np.ndarray, tail: np.ndarray) -> str:
    """``max_steps`` refined: did the run in fact level off, or end worse than it had been?

    Args:
      status: why the loop ended.
      losses: losses of the whole run.
      tail: the part of them the run is judged by.
    """
    losses = np.asarray(losses)[np.isfinite(losses)]  # without the steps that were skipped
    if status not in ("max_steps", "converged") or len(losses) < 100:
        return status
    windows = np.asarray(losses[len(losses) % 20 :], np.float64).reshape(20, -1)
    means = windows.mean(axis=1)
    best = int(means.argmin())
    error = np.hypot(*windows[[best, -1]].std(axis=1) / np.sqrt(windows.shape[1]))
    if means[-1] - means[best] > max(5 * error, windows[best].std(), 1.0):
        return "diverged"
    return "converged" if Plateau().is_level(tail) else status
