"""What the theory of magnets knows of an Ising grid without gradients: exact, mean field, Bethe.

All take the ``shape`` of the grid, its ``coupling`` J and ``field`` h, as ``models/ising.py`` does,
and spins s of -1 and 1.
"""

import itertools

import numpy as np
from scipy import special

from models.ising import neighbours

MAX_SWEEPS = 10_000
TOLERANCE = 1e-12  # of a mean spin or a message
DAMPING = 0.5  # of messages, which swing where the coupling is strong


def exact_log_partition(shape: tuple[int, int], coupling: float, field: float) -> float:
    """log Z by transfer matrices, from column to column; 2^rows states of a column.

    References:
      Kramers and Wannier (1941), Statistics of the Two-Dimensional Ferromagnet.
    """
    rows, columns = shape
    s = 2.0 * np.array(list(itertools.product([0, 1], repeat=rows))) - 1.0
    own = coupling * (s[:, 1:] * s[:, :-1]).sum(axis=1) + field * s.sum(axis=1)
    between = coupling * s @ s.T
    total = own
    for _ in range(columns - 1):
        total = own + special.logsumexp(total[:, None] + between, axis=0)
    return float(special.logsumexp(total))


def mean_field_bound(mean: np.ndarray, coupling: float, field: float) -> float:
    """The ELBO of independent spins with these means, in closed form: below log Z."""
    bonds = (mean[1:] * mean[:-1]).sum() + (mean[:, 1:] * mean[:, :-1]).sum()
    up, down = (1.0 + mean) / 2.0, (1.0 - mean) / 2.0
    entropy = special.entr(up).sum() + special.entr(down).sum()
    return float(coupling * bonds + field * mean.sum() + entropy)


def mean_field(shape: tuple[int, int], coupling: float, field: float) -> tuple[np.ndarray, int]:
    r"""Means by the fixed-point iteration, and the sweeps it took.

    .. math:: m_i \leftarrow \tanh(h + J \sum_{j \sim i} m_j)

    One colour of the chessboard after the other, so that no update of a half depends on another:
    each maximises the bound in its spins, which never falls.

    References:
      Wainwright and Jordan (2008), Graphical Models, Exponential Families, and Variational
      Inference.
    """
    is_white = np.indices(shape).sum(axis=0) % 2 == 0
    mean = np.zeros(shape)
    for sweep in range(1, MAX_SWEEPS + 1):
        before = mean
        for half in (is_white, ~is_white):
            padded = np.pad(mean, 1)
            around = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
            mean = np.where(half, np.tanh(field + coupling * around), mean)
        if np.abs(mean - before).max() < TOLERANCE:
            return mean, sweep
    raise RuntimeError(f"no fixed point in {MAX_SWEEPS} sweeps at coupling {coupling}.")


def bethe_log_partition(shape: tuple[int, int], coupling: float, field: float) -> tuple[float, int]:
    r"""Bethe's log Z at a fixed point of loopy belief propagation, and the sweeps it took.

    .. math:: u_{i \to j} = \operatorname{artanh}(\tanh J \tanh(h + \sum_{k \ne j} u_{k \to i}))

    Exact on chains and trees; elsewhere neither above nor below log Z.

    References:
      Yedidia, Freeman and Weiss (2005), Constructing Free-Energy Approximations and Generalized
      Belief Propagation Algorithms; Mézard and Montanari (2009), Information, Physics, and
      Computation.
    """
    edges = neighbours(shape)
    messages = np.zeros(edges.shape)  # from i to j
    for sweep in range(1, MAX_SWEEPS + 1):
        cavity = field + messages.sum(axis=0)[:, None] - messages.T
        new = np.where(edges, np.arctanh(np.tanh(coupling) * np.tanh(cavity)), 0.0)
        change = np.abs(new - messages).max()
        messages = DAMPING * messages + (1.0 - DAMPING) * new
        if change < TOLERANCE:
            return _bethe(edges, messages, coupling, field), sweep
    raise RuntimeError(f"no fixed point in {MAX_SWEEPS} sweeps at coupling {coupling}.")


def _bethe(edges: np.ndarray, messages: np.ndarray, coupling: float, field: float) -> float:
    """Of the spins with all their neighbours, less of the pairs, which were counted twice."""
    cavity = field + messages.sum(axis=0)[:, None] - messages.T
    spins = np.array([-1.0, 1.0])
    # Of the sender's spin without the receiver, and what the receiver's spin makes of it.
    log_q = cavity[..., None] * spins - np.logaddexp(cavity, -cavity)[..., None]
    pairs = coupling * spins[:, None] * spins
    received = special.logsumexp(log_q[..., :, None] + pairs, axis=-2)
    incoming = np.where(edges[..., None], received, 0.0).sum(axis=0)
    of_spins = special.logsumexp(field * spins + incoming, axis=1).sum()
    reverse = np.swapaxes(log_q, 0, 1)
    joint = log_q[..., :, None] + reverse[..., None, :] + pairs
    of_pairs = special.logsumexp(joint, axis=(-2, -1))
    return float(of_spins - of_pairs[edges].sum() / 2.0)
