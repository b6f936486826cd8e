"""What to change in a log joint for smaller Markov blankets, in full sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bbvi._tree import is_floating
from bbvi.dependence.findings import LatentBlanket, Read, TermReads, UnusedData
from bbvi.dependence.jaxprs import DERIVATIVE_CALLS
from bbvi.dependence.rules.mixing import NUM_CORE_AXES
from bbvi.dependence.widening import Origin

# Operations whose outputs do read all of what they sum, or look up at a latent index.
TRUE_SUMS = frozenset(
    {"reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or"}
    | {"argmax", "argmin", "dot_general", "gather", "dynamic_slice", "dynamic_update_slice"}
)
LOOPS = frozenset({"scan", "while"})
LINEAR_ALGEBRA = frozenset(NUM_CORE_AXES) | {"triangular_solve"}
CUMULATIVE = frozenset({"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"})
# More colours than this, and exact sums over integers cost more than they save.
MANY_COLOURS = 8


def advise(
    terms: Sequence[TermReads], latents: Sequence[LatentBlanket], unused: Sequence[UnusedData]
) -> list[str]:
    """Sentences, each about something that was found; those that would help most come first."""
    causes = [
        *(_data(terms[found.term], found) for found in unused),
        *_derivatives(terms),
        *_widenings(terms, unused),
    ]
    return [*_unread(latents), *(causes or _density(terms, latents)), *_integers(latents)]


def _unread(latents: Sequence[LatentBlanket]) -> list[str]:
    sentences = []
    for latent in latents:
        if latent.num_unread == latent.size:
            sentences.append(
                f"Latent '{latent.name}' is never read: nothing but the guide's entropy decides on "
                "it, and fit refuses it. Remove it from the guide, or add its prior to log_joint."
            )
        elif latent.num_unread:
            sentences.append(
                f"{latent.num_unread} of {latent.size} entries of latent '{latent.name}' are never "
                "read: nothing but the guide's entropy decides on them. Remove them from the "
                "guide, or add their prior to log_joint."
            )
    return sentences


def _data(term: TermReads, found: UnusedData) -> str:
    leaves = _listed(found.leaves)
    reads = [read for read in term.reads if read.latent in found.latents]
    if found.is_index and all(_follows(read, "dot_general") for read in reads):
        cure = (
            "Instead of a product with one-hot rows, look entries up by integers: "
            f"z['{found.latents[0]}'][index]."
        )
    else:
        cure = (
            f"If {leaves} is the same in every fit, close over it as a constant; if it is sparse, "
            "write it as pairs of indices and look the entries up by them."
        )
    return (
        f"'{term.label}' reads entries of {_listed(found.latents)} {found.count} times; with the "
        f"values of data {leaves} known it would {found.known_count} times, but fit traces x. "
        f"{cure}"
    )


def _follows(read: Read, primitive: str) -> bool:
    return any(origin.primitive == primitive for origin in read.origins)


def _derivatives(terms: Sequence[TermReads]) -> list[str]:
    return [
        f"'{term.label}' is one number that reads {_reads(term.reads)}: a function with a "
        "derivative rule of its own (jax.custom_vjp, jax.custom_jvp) is not taken apart. Let it "
        "return its terms as an array, and sum outside of it."
        for term in terms
        if term.shape == () and term.label.split(" ")[0] in DERIVATIVE_CALLS and _is_wide(term)
    ]


def _num_read(term: TermReads) -> float:
    return sum(read.count for read in term.reads)


def _is_wide(term: TermReads) -> bool:
    return _num_read(term) > 1


def _widenings(terms: Sequence[TermReads], unused: Sequence[UnusedData]) -> list[str]:
    by_data = {(terms[found.term].label, name) for found in unused for name in found.latents}
    reads: dict[Origin, dict[str, list[Read]]] = {}
    for term in terms:
        for read in term.reads:
            for origin in read.origins:
                if origin.primitive in TRUE_SUMS or (term.label, read.latent) in by_data:
                    continue
                of_term = reads.setdefault(origin, {}).setdefault(term.label, [])
                if read not in of_term:
                    of_term.append(read)
    return [
        f"{_listed(list(labels))} {'reads' if len(labels) == 1 else 'read'} "
        f"{_reads([read for of_term in labels.values() for read in of_term])} because of "
        f"`{origin}`: {_cure(origin)}"
        for origin, labels in reads.items()
    ]


def _cure(origin: Origin) -> str:
    if origin.is_unknown:
        return (
            "there is no rule for this operation, so each of its results is taken to read all that "
            "goes in. Write it with operations of jax.numpy, apply it to one row at a time, or "
            "declare the terms in a bbvi.FactorizedLogJoint."
        )
    if origin.primitive in CUMULATIVE:
        return (
            "it is taken to read its whole axis, not only what comes before. Make the running "
            "total itself the latent; its increments are then differences of neighbours."
        )
    if origin.primitive in LOOPS:
        return (
            "the loop carries what it read along for many steps. If its state is a function of all "
            "latents so far, make the state itself the latent: each step then reads the one before."
        )
    if origin.primitive in LINEAR_ALGEBRA:
        return (
            "linear algebra mixes all entries of its matrix. If the matrix is block diagonal, give "
            "the blocks a leading axis, which stays apart; if it consists of data, compute it "
            "outside of log_joint. Otherwise this is how the model is."
        )
    return (
        "it mixes all entries along its axis. Move it behind the sum over terms or out of "
        "log_joint, if the model allows it."
    )


def _density(terms: Sequence[TermReads], latents: Sequence[LatentBlanket]) -> list[str]:
    num_entries = sum(latent.size for latent in latents)
    if num_entries < 2 or not terms:
        return []
    if sum(math.prod(term.shape) for term in terms) == 1:
        return [
            f"log_joint is a single term, '{terms[0].label}', that reads "
            f"{_reads(terms[0].reads)}: no sum is found behind this operation, and there is "
            "nothing to Rao-Blackwellize. If it is a sum, add its terms up in the last "
            "operations of log_joint, or declare them in a bbvi.FactorizedLogJoint."
        ]
    # Terms of one entry each, such as independent priors, make no difference.
    shared = [term for term in terms if _is_wide(term)]
    if shared and all(np.isclose(_num_read(term), num_entries) for term in shared):
        return [
            f"There is nothing to gain: every term that is shared reads everything, as "
            f"'{shared[0].label}' reads {_reads(shared[0].reads)}. Rao-Blackwellization neither "
            "helps nor harms."
        ]
    return []


def _integers(latents: Sequence[LatentBlanket]) -> list[str]:
    sentences = []
    for latent in latents:
        if is_floating(latent) or latent.num_unread == latent.size:
            continue
        if latent.num_colours is None:
            how = (
                "which of its entries share a term depends on data, so that LocalExpectation "
                "cannot change them together. Close over these data, or use ScoreFunction."
            )
        elif latent.num_colours > MANY_COLOURS:
            how = (
                f"LocalExpectation would need {latent.num_colours} evaluations of log_joint for "
                "each of its values; ScoreFunction is cheaper."
            )
        else:
            groups = "1 group" if latent.num_colours == 1 else f"{latent.num_colours} groups"
            how = (
                f"LocalExpectation sums its entries out exactly, in {groups} that are changed "
                "together: one evaluation of log_joint for each group and value."
            )
        sentences.append(f"Latent '{latent.name}' holds integers and has no derivative: {how}")
    return sentences


def _reads(reads: Sequence[Read]) -> str:
    names = dict.fromkeys(f"{read.latent}{read.entries}" for read in reads)
    return ", ".join(names)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
