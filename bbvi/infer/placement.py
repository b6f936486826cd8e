"""Where the arrays of a run lie on several devices, and what its processes agree on."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bbvi._tree import as_array, named_leaves
from bbvi._types import Data, PyTree
from bbvi.dependence.row_reads import batch_of
from bbvi.estimators import Estimator
from bbvi.factors import FactorizedLogJoint
from bbvi.infer.loader import Loader
from bbvi.problem import Problem

DATA, SAMPLES = "data", "samples"
ANY = PartitionSpec.UNCONSTRAINED


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a run is spread over a mesh of devices: static, so a part of what is compiled.

    It says where some arrays lie and nothing of what is computed: XLA divides the work after them
    and puts in the communication, so that a program means the same on any number of devices.

    Attributes:
      mesh: devices by axis, ``data`` or ``samples`` or both.
      num_rows: N, where the guide has parameters for each row of the data; else zero.
    """

    mesh: Mesh
    num_rows: int = 0

    @property
    def is_shared(self) -> bool:
        """Whether the devices belong to several processes, which all take the same steps."""
        return self.mesh.is_multi_process

    @property
    def over_data(self) -> str | None:
        """The axis that rows are spread over, if any is."""
        return DATA if DATA in self.mesh.axis_names else None

    def state(self, state: PyTree) -> PyTree:
        """Inside a program, a state of ONE run where it lies between steps.

        What has a row for each datum, states of optimizer and estimator too, lies where the data's
        rows are; everything else is everywhere.
        """
        return jax.tree.map(lambda leaf: self._lay(leaf, *self._axes(leaf.shape)), state)

    def put(self, state: PyTree, *, is_batched: bool) -> PyTree:
        """Outside, a state from elsewhere: of a checkpoint, or of a run on other devices."""

        def put(leaf: Array) -> Array:
            if is_key(leaf):  # which JAX does not put on devices of other processes
                data = put(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            axes = [*[None] * is_batched, *self._axes(leaf.shape[is_batched:])]
            return jax.device_put(leaf, self.over(*axes))

        with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
            return jax.tree.map(put, state)

    def _axes(self, shape: tuple[int, ...]) -> list[str | None]:
        return [self.over_data] if self.num_rows and shape[:1] == (self.num_rows,) else []

    def rows(self, leaf: Array) -> Array:
        """Rows of a batch, picked from all devices, spread like those of all data."""
        # Picked everywhere first: else their numbers are spread too, and gathered for every array.
        return self._lay(self._lay(leaf), self.over_data)

    def everywhere(self, tree: PyTree) -> PyTree:
        """Arrays as every device, and so every process, has them whole."""
        return jax.tree.map(self._lay, tree)

    def draws(self, noise: PyTree, num_samples: int) -> PyTree:
        """The randomness of some steps ``[steps, S, ...]``, spread over its draws."""
        if SAMPLES not in self.mesh.axis_names:
            return noise

        def lay(leaf: Array) -> Array:
            if leaf.shape[1:2] != (num_samples,):
                return leaf
            return self._lay(leaf, ANY, SAMPLES, *[ANY] * (leaf.ndim - 2))

        return jax.tree.map(lay, noise)

    def check_samples(self, estimator: Estimator) -> None:
        """Raise unless the draws of a step can be spread evenly."""
        size = dict(self.mesh.shape).get(SAMPLES, 1)
        if estimator.num_samples % size:
            raise ValueError(
                f"num_samples={estimator.num_samples} of {type(estimator).__name__} do not divide "
                f"evenly over the {size} devices of mesh axis 'samples': take a multiple, such as "
                f"num_samples={_multiple(estimator.num_samples, size)}."
            )

    def over(self, *axes: Any) -> NamedSharding:
        """Where an array lies whose axes are spread over these of the mesh."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _lay(self, leaf: Array, *axes: Any) -> Array:
        return jax.lax.with_sharding_constraint(leaf, self.over(*axes))


def place(mesh: Any, problem: Problem, x: Data, batch_size: int | None) -> tuple[Placement, Data]:
    """How a run is spread over a mesh, and its data there.

    Raises:
      TypeError: ``mesh`` is not a mesh, or x not arrays.
      ValueError: axes that are not known, rows that do not divide over the devices.
    """
    mesh = _check_mesh(mesh)
    is_on_disk = any(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(x))
    if isinstance(x, Loader) or (batch_size and is_on_disk):
        raise TypeError(
            "with a mesh x must be arrays that fit into the memory of its devices together: a "
            "Loader, or a memmap with batch_size, feeds one device."
        )
    names, num_rows = frozenset[str](), 0
    if DATA in mesh.axis_names:
        names, num_rows = _check_rows(mesh, problem, x, batch_size)
    has_rows = any(site.is_local for site in problem.guide.sites())
    placement = Placement(mesh, num_rows if has_rows else 0)
    leaves = [
        jax.device_put(_checked(name, leaf), placement.over(*[DATA] * (name in names)))
        for name, leaf in named_leaves(x, "x").items()
    ]
    return placement, jax.tree.unflatten(jax.tree.structure(x), leaves)


def _check_mesh(mesh: Any) -> Mesh:
    if not isinstance(mesh, Mesh):
        raise TypeError(
            'mesh must be a jax.sharding.Mesh such as jax.make_mesh((8,), ("data",)), got '
            f"{mesh!r}."
        )
    if not mesh.axis_names or not set(mesh.axis_names) <= {DATA, SAMPLES}:
        raise ValueError(
            f"mesh has axes {mesh.axis_names}, expected 'data' (rows of x) or 'samples' (draws of "
            'a step) or both: jax.make_mesh((4, 2), ("data", "samples")).'
        )
    processes = {device.process_index for device in mesh.devices.flat}
    if mesh.is_multi_process and len(processes) < jax.process_count():
        raise ValueError(
            f"mesh has devices of processes {sorted(processes)} of {jax.process_count()}: take all "
            "of jax.devices(), or those of one process, jax.local_devices()."
        )
    # Programs of a user do not say where their arrays lie, as axes of the explicit kind ask for.
    return Mesh(mesh.devices, mesh.axis_names)


def _check_rows(
    mesh: Mesh, problem: Problem, x: Data, batch_size: int | None
) -> tuple[frozenset[str], int]:
    """Leaves of x that have rows, and how many; raise unless these divide over the devices."""
    log_joint, size = problem.log_joint, mesh.shape[DATA]
    declared = log_joint.batch if isinstance(log_joint, FactorizedLogJoint) else None
    if not any(np.ndim(leaf) for leaf in jax.tree.leaves(x)):
        raise ValueError(
            "mesh axis 'data' spreads the rows of x, which has none: spread the draws of a step "
            f'instead, jax.make_mesh(({size},), ("samples",)).'
        )
    names, num_rows = batch_of(x, declared)
    over = f"do not divide evenly over the {size} devices of mesh axis 'data'"
    if num_rows % size:
        raise ValueError(
            f"the {num_rows} rows of x {over}: leave out {num_rows % size}, or add "
            f"{-num_rows % size} whose terms log_joint multiplies by a weight of zero in x."
        )
    if batch_size and batch_size % size:
        raise ValueError(
            f"the batch_size={batch_size} rows of a step {over}: take a multiple, such as "
            f"batch_size={_multiple(batch_size, size)}."
        )
    for site in problem.guide.sites():
        if site.is_local and (site.shape or (0,))[0] != num_rows:
            raise ValueError(
                f"local site '{site.name}' has shape {site.shape}, but x has {num_rows} rows: its "
                "first axis must be over them."
            )
    return names, num_rows


def _multiple(count: int, size: int) -> int:
    """The nearest multiple of ``size`` from below, or else ``size``."""
    return max(size, count - count % size)


def _checked(name: str, leaf: Any) -> Any:
    """A leaf of x that is an array of numbers; one of NumPy's not yet on any device."""
    if isinstance(leaf, np.ndarray) and leaf.size:
        as_array(name, leaf.reshape(-1)[:1])  # raises where it is not of numbers
        return leaf
    return as_array(name, leaf)


def gathered(tree: PyTree) -> PyTree:
    """Arrays that the host can read: whole on every process, where several have parts of them."""

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        mesh = leaf.sharding.mesh  # type: ignore[attr-defined]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(gather, tree)


def on_host(tree: PyTree) -> list[np.ndarray]:
    """Leaves on the host; of random keys, their data."""
    with jax.debug_key_reuse(False):  # noqa: FBT003 - JAX's own form
        leaves = [jax.random.key_data(a) if is_key(a) else a for a in jax.tree.leaves(tree)]
        return [np.asarray(leaf) for leaf in gathered(leaves)]


def is_key(leaf: Any) -> bool:
    """Whether an array holds random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def readable(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The function with its arrays ``gathered``."""

    @functools.wraps(function)
    def gather(*args: Any, **kwargs: Any) -> PyTree:
        return gathered(function(*args, **kwargs))

    return gather


def largest(value: float) -> float:
    """The largest of what all processes say: they have clocks and callbacks of their own."""
    from jax.experimental import multihost_utils  # runs of one process need none of it

    return float(np.max(multihost_utils.process_allgather(np.float64(value))))


def check_same(name: str, tree: PyTree) -> None:
    """Raise unless all processes have the same arrays; those that they share are the same."""
    from jax.experimental import multihost_utils

    own = [leaf for leaf in jax.tree.leaves(tree) if leaf.is_fully_addressable]
    total = zlib.crc32(b"".join(leaf.tobytes() for leaf in on_host(own)))
    if len(np.unique(multihost_utils.process_allgather(np.uint32(total)))) > 1:
        raise ValueError(
            f"{name} differs between the processes: all of them must make the same call of fit, "
            "with the same key and the same initial parameters."
        )
