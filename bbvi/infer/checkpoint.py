"""Runs on disk: saved as they go, and continued by the same call after any end."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bbvi._checks import check_count, is_number
from bbvi._tree import named_leaves
from bbvi._types import Data, Params, PyTree
from bbvi.infer.batching import Source
from bbvi.infer.chunk import trace_shapes
from bbvi.infer.loop import Position, Record
from bbvi.infer.placement import gathered, is_key, on_host
from bbvi.infer.step import Algorithm, FitState
from bbvi.problem import Problem
from bbvi.refinement import free_point

MAX_SHARE = 0.05  # of a run's time that may go into saving
AROUND = 60  # characters shown on both sides of a difference
SUMMED = 1 << 16  # entries of an array that its checksum reads, about


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often ``fit`` saves its run.

    A checkpoint is written whole or not at all, and holds all that the next step needs: killed at
    any moment, the same call continues from the last one and ends with the same numbers, bit for
    bit, as a run that was not interrupted. A run that is over is returned at once; with more
    ``num_steps`` or ``num_epochs`` it goes on. Where saving fails, as on a full disk, the run
    warns and goes on. On another number of devices a run goes on with the same numbers up to
    rounding.

    Args:
      directory: a folder for this run alone, made if it is not there.
      seconds: time between two checkpoints; more where saving would take over 5 % of it.
      keep: how many to keep; when one cannot be read, that before it is used.

    Raises:
      ValueError: ``seconds`` negative or ``keep`` below one.

    Example:
      >>> import bbvi, tempfile
      >>> def run(num_steps, directory):
      ...     guide = bbvi.MeanField(bbvi.Normal())
      ...     return bbvi.fit(
      ...         *(lambda x, z: -0.5 * z**2, guide),
      ...         num_steps=num_steps,
      ...         checkpoint=bbvi.Checkpoint(directory, seconds=0),
      ...         progress=False,
      ...     )
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     first = run(100, directory)
      ...     second = run(150, directory)  # takes fifty steps
      >>> len(second.history.loss)
      150
    """

    directory: str | os.PathLike[str]
    seconds: float = 60.0
    keep: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.directory, str | os.PathLike):
            raise TypeError(f"Checkpoint directory must name a folder, got {self.directory!r}.")
        if not (is_number(self.seconds) and self.seconds >= 0):
            raise ValueError(f"Checkpoint seconds must be a number >= 0, got {self.seconds!r}.")
        check_count("Checkpoint keep", self.keep)

    @classmethod
    def of(cls, checkpoint: Any) -> Checkpoint:
        """A checkpoint as it is, or one in the folder named."""
        if isinstance(checkpoint, str | os.PathLike):
            return cls(checkpoint)
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(
                f"checkpoint must be a folder's name or a bbvi.Checkpoint, got {checkpoint!r}."
            )
        return checkpoint


class Store:
    """The checkpoints of one run."""

    def __init__(
        self, checkpoint: Checkpoint, about: dict[str, str], like: tuple[FitState, PyTree]
    ):
        import orbax.checkpoint as ocp  # takes a second, and few runs need it

        self.checkpoint, self.about, self.like = checkpoint, about, like
        self.folder = Path(checkpoint.directory).resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"checkpoint must name a folder to write in: {error}") from error
        options = ocp.CheckpointManagerOptions(
            max_to_keep=checkpoint.keep,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,  # those of a run that was killed while it wrote
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.args = ocp.args
        self.saved_at, self.cost = time.perf_counter(), 0.0

    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        waited = time.perf_counter() - self.saved_at
        return waited >= max(self.checkpoint.seconds, self.cost / MAX_SHARE)

    def save(self, position: Position) -> None:
        """Writes a checkpoint; warns where that fails."""
        began = time.perf_counter()
        arrays = on_host((position.state, position.record, position.first))
        rest = {
            "about": self.about,
            "shapes": [[list(leaf.shape), leaf.dtype.name] for leaf in arrays],
            "done": position.done,
            "since": position.since,
            "status": position.status,
        }
        rest["checksum"] = _checksum(rest)  # Orbax has one of arrays, but not of these
        items = self.args.Composite(
            arrays=self.args.StandardSave(_numbered(arrays)), rest=self.args.JsonSave(rest)
        )
        try:
            if position.done in self.manager.all_steps():  # but could not be read
                self.manager.delete(position.done)
            self.manager.save(position.done, args=items, force=True)
        except Exception as error:  # of any kind: the run matters more than its checkpoint
            warnings.warn(
                f"the checkpoint of step {position.done} was not saved in {self.folder}: "
                f"{error!r}. The run goes on; what was saved before is still there.",
                stacklevel=2,
            )
        self.saved_at = time.perf_counter()
        self.cost = self.saved_at - began

    def latest(self) -> Position | None:
        """Where the last checkpoint that can be read was, or None without any.

        Raises:
          ValueError: it is of another run, or none can be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                rest = self._read(step, rest=self.args.JsonRestore())["rest"]
                if rest.pop("checksum", None) != _checksum(rest):
                    raise ValueError("its description is damaged")
                difference = self._difference(rest["about"])
                position = None if difference else self._position(step, rest)
            except Exception as error:  # of any kind: a damaged file may hold anything
                warnings.warn(
                    f"the checkpoint of step {step} in {self.folder} cannot be read: {error!r}. "
                    "The one before it is used.",
                    stacklevel=2,
                )
                continue
            if difference:
                raise ValueError(
                    f"the checkpoints in {self.folder} are of another run: {difference}. Name "
                    "another folder, or remove this one."
                )
            return position
        if steps:
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read; remove the folder to start "
                "again."
            )
        return None

    def _difference(self, about: dict[str, str]) -> str:
        """The first thing that another run said otherwise of itself, or nothing."""
        for name, here in self.about.items():
            there = about.get(name, here)
            if there != here:
                pairs = zip(there, here, strict=False)
                place = next((i for i, (a, b) in enumerate(pairs) if a != b), len(here))
                there, here = _excerpt(there, place), _excerpt(here, place)
                return f"there {name} is {there}, here it is {here}"
        return ""

    def _read(self, step: int, **items: Any) -> Any:
        return self.manager.restore(step, args=self.args.Composite(**items))

    def _position(self, step: int, rest: dict[str, Any]) -> Position:
        blank = [np.empty(shape, jnp.dtype(name)) for shape, name in rest["shapes"]]
        wanted = self.args.StandardRestore(_numbered(blank))
        stored = self._read(step, arrays=wanted)["arrays"]
        leaves = [np.asarray(stored.get(str(i), empty)) for i, empty in enumerate(blank)]
        state, trace = self.like
        like = jax.tree.structure((state, Record(np.empty(0), trace), np.empty(0)))
        stored, record, first = jax.tree.unflatten(like, leaves)
        state = jax.tree.map(_as_array, stored, state)
        return Position(state, record, first, rest["done"], rest["since"], rest["status"])


def _checksum(rest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _as_array(stored: np.ndarray, like: jax.Array) -> jax.Array:
    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(like))
    return jnp.asarray(stored)


def _numbered(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Those with anything in them, by number: Orbax refuses to store empty ones."""
    return {str(index): array for index, array in enumerate(arrays) if array.size}


def open_store(
    checkpoint: Checkpoint,
    problem: Problem,
    algorithm: Algorithm,
    source: Source,
    state: FitState,
    params: Params,
) -> Store:
    """The checkpoints of a run, which is described so that another is told from it.

    Args:
      checkpoint: where.
      problem: that of all data.
      algorithm: what a step does.
      source: what gives steps their data.
      state: before the first step.
      params: those of one run, and where there are batches of the rows of one.
    """
    one = jax.eval_shape(
        lambda: jax.tree.map(lambda leaf: leaf[0], state) if state.rate.ndim else state
    )
    step = 0 if source.batching is None else int(np.max(state.step))
    trace = trace_shapes(algorithm, one, source.feed(step, 1)[0])
    batching = source.batching
    about = {
        "guide": _text(problem.guide),
        "objective": _text(problem.objective),
        "estimator": _text(algorithm.estimator),
        "optimizer": " ".join(_words(algorithm.optimizer.fingerprint)),
        "batch_size": str(None if batching is None else batching.batch_size),
        "num_restarts": str(len(state.rate) if state.rate.ndim else 1),
        "key": str(on_host(state.key)[0].tolist()),
        "the state's shapes": str([leaf.shape for leaf in jax.tree.leaves(state)]),
        "the trace": _text(trace),
        "x": _text({name: _sum(leaf) for name, leaf in named_leaves(source.x, "x").items()}),
        # The text of a program may be another in another version of JAX.
        f"log_joint, in JAX {jax.__version__},": _program(algorithm, params, source.few),
    }
    return Store(checkpoint, about, (state, trace))


def _text(value: Any) -> str:
    """What a value says of itself, without places in memory, which differ between processes."""
    return re.sub(r"( at)? 0x[0-9a-f]+", "", " ".join(repr(value).split()))


def _words(fingerprint: Any) -> list[str]:
    """Names and numbers in the fingerprint of an optimizer, as ``adam``'s ``scale -0.01``."""
    if isinstance(fingerprint, tuple):
        return [word for item in fingerprint for word in _words(item)]
    if isinstance(fingerprint, str):
        return [fingerprint.split(".")[0]]
    return [str(fingerprint)] if isinstance(fingerprint, bool | int | float) else []


def _excerpt(text: str, place: int) -> str:
    """A long text around a place."""
    if len(text) <= 4 * AROUND:
        return text
    return f"...{text[max(0, place - AROUND) : place + AROUND]}..."


def _sum(leaf: Any) -> str:
    """Shape, type and checksum of an array, of a long one of some entries."""
    if not isinstance(leaf, np.ndarray | jax.Array):
        return _text(leaf)
    head = f"{leaf.dtype.name}{list(leaf.shape)}"
    if isinstance(leaf, np.memmap):  # entries all over it would take long to read
        return f"{head} beginning with {zlib.crc32(leaf.reshape(-1)[:SUMMED].tobytes()):x}"
    values = np.asarray(gathered(leaf.reshape(-1)[:: 1 + leaf.size // SUMMED]))
    return f"{head} of checksum {zlib.crc32(values.tobytes()):x}"


def _program(algorithm: Algorithm, params: Params, x: Data) -> str:
    """Checksum of what ``log_joint`` does, constants included."""
    problem = algorithm.free
    point = jax.eval_shape(functools.partial(free_point, algorithm.problem), params, x)
    args = problem.draw_shapes(point, x), *problem.model_args(point)
    program = jax.make_jaxpr(problem.log_joint)(x, *args)
    sums = [_sum(value) for value in program.consts]
    return f"a program of checksum {zlib.crc32((_text(program.jaxpr) + str(sums)).encode()):x}"
