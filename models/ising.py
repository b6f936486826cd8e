"""A small Ising grid: 12 dependent binary latents, no data, an intractable constant made exact."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import bbvi
from models.registry import Reference, Target, register

SHAPE = (3, 4)


def log_joint(x, z):
    r"""Minus the energy of a grid of spins :math:`s = 2 b - 1`: not normalised.

    .. math:: J \sum_{i \sim j} s_i s_j + h \sum_i s_i

    Args:
        x: `coupling` J () and `field` h ().
        z: `s` (3, 4) of integers b, zero or one; neighbours are up, down, left and right.
    """
    s = 2.0 * z["s"].astype(x["coupling"].dtype) - 1.0
    bonds = (s[1:, :] * s[:-1, :]).sum() + (s[:, 1:] * s[:, :-1]).sum()
    return x["coupling"] * bonds + x["field"] * s.sum()


def _arrays():
    return {"coupling": np.array(0.3), "field": np.array(0.1)}


def data():
    """Returns a ferromagnetic coupling of 0.3 and a field of 0.1."""
    return jax.tree.map(jnp.asarray, _arrays())


def mean_field():
    """Returns an independent Bernoulli guide: the mean-field theory of magnets."""
    return bbvi.MeanField({"s": bbvi.Bernoulli(SHAPE)})


def reference():
    """Sums over all 4096 grids; the log evidence is the log of the partition function."""
    x = _arrays()
    grids = np.array(list(itertools.product([0, 1], repeat=12))).reshape(-1, *SHAPE)
    s = 2.0 * grids - 1.0
    bonds = (s[:, 1:] * s[:, :-1]).sum(axis=(1, 2)) + (s[..., 1:] * s[..., :-1]).sum(axis=(1, 2))
    log_weights = x["coupling"] * bonds + x["field"] * s.sum(axis=(1, 2))
    log_evidence = np.logaddexp.reduce(log_weights)
    mean = np.tensordot(np.exp(log_weights - log_evidence), grids, axes=1)
    return Reference(
        how="enumeration",
        log_evidence=float(log_evidence),
        mean={"s": mean},
        sd={"s": np.sqrt(mean * (1.0 - mean))},
    )


register(
    Target(
        name="ising",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        reference=reference,
        source="Ising (1925), Beitrag zur Theorie des Ferromagnetismus.",
    )
)
