"""The factor graph of a log joint in numbers: what each term reads, how large the blankets are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._tree import is_floating, named_leaves
from bbvi._types import Data, Latents, LogJoint, PyTree
from bbvi.dependence.blankets import FactorGraph, Term, factor_graph
from bbvi.dependence.describe import describe_all
from bbvi.dependence.pointers import Shape
from bbvi.dependence.widening import Origin, origins

# Blankets are measured at all entries of a latent, or at so many that the work stays below this
# many numbers, some seconds; at a few entries in any case.
MAX_WORK = 300_000_000
MIN_PROBES = 8
# Numbers that one batch of probes may hold, so that it takes megabytes.
MAX_BATCH = 2_000_000
# Sums of counts are rounded: smaller differences mean nothing.
ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True)
class Read:
    """What the entries of a term read of one latent.

    Attributes:
      latent: its name.
      entries: which of its entries, such as ``"[i-1]"``; empty for a scalar.
      count: how many, on average over the entries of the term.
      kind: "dense" if each entry of the term reads the whole latent, else "aligned"; "scalar" for
        a latent of one entry.
      origins: operations after which every index along some axis of the latent is read.
    """

    latent: str
    entries: str
    count: float
    kind: Literal["aligned", "dense", "scalar"]
    origins: tuple[Origin, ...]


@dataclasses.dataclass(frozen=True)
class TermReads:
    """One additive term of a log joint.

    Attributes:
      label: the operation that made it, and where.
      shape: of its array of entries.
      reads: one for each latent it reads.
    """

    label: str
    shape: Shape
    reads: tuple[Read, ...]


@dataclasses.dataclass(frozen=True)
class LatentBlanket:
    """A latent, and the Markov blankets of its entries.

    Attributes:
      name: path of the latent.
      shape: its shape.
      dtype: its type.
      mean_blanket: with how many other latent entries an entry shares a term, on average.
      max_blanket: the same for the entry that shares with most.
      num_measured: at how many entries, evenly spaced, these two were measured.
      share: mean share of all term entries that read an entry.
      num_unread: entries that no term reads.
      num_colours: groups of entries that share no term, for integers; None where data decide.
    """

    name: str
    shape: Shape
    dtype: Any
    mean_blanket: float
    max_blanket: int
    num_measured: int
    share: float
    num_unread: int
    num_colours: int | None

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class UnusedData:
    """Data whose values would shrink what a term reads, if they were not traced.

    Attributes:
      term: position of the term.
      latents: what it reads too much of.
      leaves: names of the data leaves.
      is_index: whether the data are indices, or indices written as one-hot rows.
      count: how many latent entries the entries of the term read in all.
      known_count: how many they would read if the data were known.
    """

    term: int
    latents: tuple[str, ...]
    leaves: tuple[str, ...]
    is_index: bool
    count: int
    known_count: int


@dataclasses.dataclass(frozen=True)
class Model:
    """A log joint, its data, and the shapes of its latents."""

    log_joint: LogJoint
    x: Data
    z: Latents
    model_args: tuple[PyTree, ...]

    def analyse(
        self, read: Callable[[FactorGraph, Any, Data], PyTree], known: frozenset[str] = frozenset()
    ) -> PyTree:
        """Evaluate ``read(graph, program, x)`` with all data traced but the leaves ``known``."""
        data, treedef = named_leaves(self.x, "x"), jax.tree.structure(self.x)

        @jax.jit
        def run(traced: dict[str, Array], model_args: tuple[PyTree, ...]) -> PyTree:
            leaves = [traced.get(name, leaf) for name, leaf in data.items()]
            x = jax.tree.unflatten(treedef, leaves)
            graph, program = factor_graph(self.log_joint, x, self.z, *model_args)
            return read(graph, program, x)

        traced = {name: leaf for name, leaf in data.items() if name not in known}
        return jax.device_get(run(traced, self.model_args))


def find(model: Model) -> tuple[list[TermReads], list[LatentBlanket], list[UnusedData]]:
    """Terms that read latents, latents, and data that would make blankets smaller."""
    forms: list[tuple[str, Shape, dict[str, tuple[str, tuple[Origin, ...]]]]] = []
    colours: dict[str, int | None] = {}
    leaves = named_leaves(model.z, "latents")

    def measure(graph: FactorGraph, program: Any, x: Data) -> Any:
        widened = origins(program, x, model.z, *model.model_args)
        forms[:] = [
            (
                term.label,
                term.shape,
                {
                    name: (
                        describe_all(pointers, len(term.shape)),
                        tuple(o for (k, _), o in found.items() if list(leaves)[k] == name),
                    )
                    for name, pointers in term.reads.items()
                },
            )
            for term, found in zip(graph.terms, widened, strict=True)
        ]
        for site in graph.sites:
            if not is_floating(leaves[site.name]):
                colouring = graph.colouring(site)
                colours[site.name] = None if colouring is None else colouring.num_colours
        factors = [jnp.ones(term.shape) for term in graph.terms if term.reads]
        num_factors = max(1, sum(factor.size for factor in factors))
        reading = graph.blanket_sums([jnp.ones(term.shape) for term in graph.terms])
        shares = {name: jnp.mean(sums) / num_factors for name, sums in reading.items()}
        unread = {name: jnp.sum(sums == 0) for name, sums in reading.items()}
        return _counts(graph), _blankets(graph), shares, unread

    counts, blankets, shares, unread = model.analyse(measure)
    terms = [
        TermReads(
            label,
            shape,
            tuple(
                _read(name, entries, counts[k][name], leaves[name].size, found)
                for name, (entries, found) in reads.items()
            ),
        )
        for k, (label, shape, reads) in enumerate(forms)
    ]
    latents = [
        LatentBlanket(
            name,
            leaf.shape,
            leaf.dtype,
            float(blankets[name].mean()),
            int(blankets[name].max(initial=0)),
            len(blankets[name]),
            float(shares[name]),
            int(unread[name]),
            colours.get(name),
        )
        for name, leaf in leaves.items()
    ]
    # Terms free of the latents come last, so that positions of the others stay.
    return [term for term in terms if term.reads], latents, _unused_data(model, counts)


def _read(name: str, entries: str, count: Any, size: int, found: tuple[Origin, ...]) -> Read:
    mean = float(count.mean()) if count.size else 0.0
    kind: Literal["aligned", "dense", "scalar"] = "scalar"
    if size > 1:
        kind = "dense" if mean > size * (1 - ROUNDING) else "aligned"
    return Read(name, entries, mean, kind, found)


def _counts(graph: FactorGraph) -> list[dict[str, Array]]:
    """For each term and latent, how many of the latent's entries each entry of the term reads."""
    return [{name: _count(term, graph, name) for name in term.plans} for term in graph.terms]


def _count(term: Term, graph: FactorGraph, name: str) -> Array:
    ones = jnp.ones(graph.latents[name])
    like = jax.ShapeDtypeStruct(term.shape, ones.dtype)
    (count,) = jax.linear_transpose(term.plans[name].accumulate, like)(ones)
    return count


def _blankets(graph: FactorGraph) -> dict[str, Array]:
    """For some entries of each latent, the number of other latent entries they share a term with.

    An indicator of the entry is carried to the term entries that read it, and from these back.
    """
    sizes = {name: math.prod(shape) for name, shape in graph.latents.items()}
    num_numbers = sum(sizes.values()) + sum(math.prod(term.shape) for term in graph.terms)
    num_probes = max(MIN_PROBES, MAX_WORK // num_numbers // len(sizes))
    nothing = {name: jnp.zeros(shape) for name, shape in graph.latents.items()}

    def blanket(name: str, entry: Array) -> Array:
        indicator = jnp.zeros(sizes[name]).at[entry].set(1).reshape(graph.latents[name])
        reads = graph.factor_sums({**nothing, name: indicator})
        reached = graph.blanket_sums([(total > 0).astype(float) for total in reads])
        return jnp.maximum(sum(jnp.sum(sums > 0) for sums in reached.values()) - 1, 0)

    found = {}
    for name, size in sizes.items():
        entries = np.unique(np.linspace(0, size - 1, min(size, num_probes)).astype(int))
        found[name] = jax.lax.map(
            lambda entry, name=name: blanket(name, entry),
            jnp.asarray(entries),
            batch_size=max(1, MAX_BATCH // num_numbers),
        )
    return found


def _unused_data(model: Model, counts: list[dict[str, Any]]) -> list[UnusedData]:
    """Where an analysis that knows the data is finer, and which leaves that is due to.

    Entries of a term that read nothing at all once the data are known, as those that a mask sets
    to zero, do not count: they are constant, and harmless in any blanket.
    """
    data = {name: np.asarray(leaf) for name, leaf in named_leaves(model.x, "x").items()}
    # Structure comes from indices, and from zeros.
    candidates = [name for name, leaf in data.items() if not is_floating(leaf) or (leaf == 0).any()]
    if not candidates:
        return []

    def known_counts(*names: str) -> list[dict[str, Any]]:
        return model.analyse(lambda graph, program, x: _counts(graph), frozenset(names))

    def is_finer(found: list[dict[str, Any]], k: int, name: str) -> bool:
        return bool((alive[k] * found[k][name]).sum() < before[k, name] * (1 - ROUNDING))

    known = known_counts(*candidates)
    alive = [np.asarray(sum(term.values(), np.zeros(()))) > 0 for term in known]
    before = {
        (k, name): (alive[k] * c).sum() for k, t in enumerate(counts) for name, c in t.items()
    }
    gains = [(k, name) for k, name in before if is_finer(known, k, name)]
    one_known = {leaf: known_counts(leaf) for leaf in candidates} if gains else {}
    unused: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for k, name in gains:
        due = tuple(leaf for leaf, found in one_known.items() if is_finer(found, k, name))
        unused.setdefault((k, due or tuple(candidates)), []).append(name)
    return [
        UnusedData(
            k,
            tuple(names),
            due,
            all(_is_index(data[leaf]) for leaf in due),
            int(sum(before[k, name] for name in names)),
            int(sum(known[k][name].sum() for name in names)),
        )
        for (k, due), names in unused.items()
    ]


def _is_index(leaf: np.ndarray) -> bool:
    """Whether data are indices, or one-hot rows."""
    is_one_hot = leaf.ndim == 2 and bool(((leaf != 0).sum(1) == 1).all() and (leaf <= 1).all())
    return np.issubdtype(leaf.dtype, np.integer) or is_one_hot
