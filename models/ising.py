"""Small Ising grids: dependent binary latents, no data, an intractable constant made exact."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

import bbvi
from models.registry import Reference, Target, register

SHAPE = (3, 4)
MATRIX_SHAPE = (4, 4)
COUPLING = 0.3


def log_joint(x, z):
    r"""Minus the energy of a grid of spins :math:`s = 2 b - 1`: not normalised.

    .. math:: J \sum_{i \sim j} s_i s_j + h \sum_i s_i

    Args:
        x: `coupling` J () and `field` h ().
        z: `s`, a grid of integers b, zero or one; neighbours are up, down, left and right.
    """
    s = 2.0 * z["s"].astype(x["coupling"].dtype) - 1.0
    bonds = (s[1:, :] * s[:-1, :]).sum() + (s[:, 1:] * s[:, :-1]).sum()
    return x["coupling"] * bonds + x["field"] * s.sum()


def _arrays():
    return {"coupling": np.array(COUPLING), "field": np.array(0.1)}


def data():
    """Returns a ferromagnetic coupling of 0.3 and a field of 0.1."""
    return jax.tree.map(jnp.asarray, _arrays())


def mean_field(shape=SHAPE):
    """Returns an independent Bernoulli guide: the mean-field theory of magnets."""
    return bbvi.MeanField({"s": bbvi.Bernoulli(shape)})


def neighbours(shape):
    """Returns which spins of a grid are neighbours (V, V), in row-major order."""
    row, column = np.indices(shape).reshape(2, -1)
    return abs(row[:, None] - row) + abs(column[:, None] - column) == 1


def interactions(x):
    """Spins interact with their neighbours."""
    del x
    return {("s", "s"): neighbours(SHAPE) | np.eye(math.prod(SHAPE), dtype=bool)}


def _enumerate(shape, coupling, field):
    grids = np.array(list(itertools.product([0, 1], repeat=math.prod(shape)))).reshape(-1, *shape)
    s = 2.0 * grids - 1.0
    bonds = (s[:, 1:] * s[:, :-1]).sum(axis=(1, 2)) + (s[..., 1:] * s[..., :-1]).sum(axis=(1, 2))
    log_weights = coupling * bonds + field * s.sum(axis=(1, 2))
    log_evidence = np.logaddexp.reduce(log_weights)
    mean = np.tensordot(np.exp(log_weights - log_evidence), grids, axes=1)
    return Reference(
        how="enumeration",
        log_evidence=float(log_evidence),
        mean={"s": mean},
        sd={"s": np.sqrt(mean * (1.0 - mean))},
    )


def reference():
    """Sums over all 4096 grids; the log evidence is the log of the partition function."""
    return _enumerate(SHAPE, **_arrays())


def make_log_joint_matrix(shape):
    """Returns a log joint over a flat vector of spins; it closes over their couplings (V, V)."""
    couplings = COUPLING * neighbours(shape)

    def log_joint_matrix(x, z):
        r"""The same energy as a quadratic form in the spins of a larger grid.

        .. math:: \frac12 s^\top J s + h^\top s

        Args:
            x: `field` h (V,).
            z: `s` (V,) of integers b, zero or one.
        """
        field = x["field"]
        s = 2.0 * z["s"].astype(field.dtype) - 1.0
        return 0.5 * s @ (couplings.astype(field.dtype) @ s) + field @ s

    return log_joint_matrix


def data_matrix(shape=MATRIX_SHAPE):
    """Returns a field of 0.1 at every spin."""
    return {"field": jnp.full(math.prod(shape), 0.1)}


def mean_field_matrix(shape=MATRIX_SHAPE):
    """Returns an independent Bernoulli guide for a flat vector of spins."""
    return bbvi.MeanField({"s": bbvi.Bernoulli((math.prod(shape),))})


def interactions_matrix(x):
    """Spins interact with their neighbours."""
    return {("s", "s"): neighbours(MATRIX_SHAPE) | np.eye(x["field"].size, dtype=bool)}


def reference_matrix():
    """Sums over all 65,536 grids."""
    answer = _enumerate(MATRIX_SHAPE, **_arrays())
    flat = {moment: {"s": getattr(answer, moment)["s"].reshape(-1)} for moment in ("mean", "sd")}
    return dataclasses.replace(answer, **flat)


_SOURCE = "Ising (1925), Beitrag zur Theorie des Ferromagnetismus."

register(
    Target(
        name="ising",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        reference=reference,
        interactions=interactions,
        source=_SOURCE,
    )
)
register(
    Target(
        name="ising_matrix",
        log_joint=make_log_joint_matrix(MATRIX_SHAPE),
        data=data_matrix,
        guides={"mean_field": mean_field_matrix},
        reference=reference_matrix,
        interactions=interactions_matrix,
        source=_SOURCE,
    )
)
