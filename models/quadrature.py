"""Integrals for the reference answers, in float64 NumPy whatever the precision of JAX."""

import functools
from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp


def product_rule(nodes: np.ndarray, weights: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Repeats a one-dimensional rule along `dim` axes.

    Args:
        nodes: Nodes of the rule, `(n,)`.
        weights: Weights of the rule, `(n,)`.
        dim: Number of axes.

    Returns:
        Points `(n**dim, dim)` and the log of their weights `(n**dim,)`.
    """
    points = np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    log_weights = functools.reduce(np.add.outer, [np.log(weights)] * dim)
    return points, log_weights.ravel()


def adaptive_gauss_hermite(
    log_density: Callable[[np.ndarray], np.ndarray],
    mean: np.ndarray,
    cov: np.ndarray,
    *,
    num_nodes: int,
    num_adaptations: int = 8,
) -> tuple[float, np.ndarray, np.ndarray]:
    r"""Integrates a near-Gaussian density with a Gauss-Hermite rule fitted to its own moments.

    The product rule is laid out along the Cholesky factor L of a covariance,

    .. math:: \int p(u) du \approx |L| \sum_i w_i e^{|t_i|^2 / 2} p(m + L t_i)

    the moments under the rule replace (m, L L'), and so on.

    Args:
        log_density: Log density at points `(n, dim)`, returns `(n,)`.
        mean: First guess of the mean, `(dim,)`.
        cov: First guess of the covariance, `(dim, dim)`.
        num_nodes: Nodes per axis.
        num_adaptations: How often the moments are replaced.

    Returns:
        The log of the integral, the points `(n, dim)` and their normalised weights `(n,)`, with
        which any posterior expectation is a weighted sum.

    Source:
        Naylor and Smith (1982), Applications of a Method for the Efficient Computation of
        Posterior Distributions.
    """
    nodes, log_weights = product_rule(
        *np.polynomial.hermite_e.hermegauss(num_nodes), dim=np.size(mean)
    )
    log_weights = log_weights + 0.5 * np.sum(nodes**2, axis=1)
    for _ in range(num_adaptations + 1):
        scale_tril = np.linalg.cholesky(cov)
        points = mean + nodes @ scale_tril.T
        log_terms = log_weights + log_density(points)
        log_total = logsumexp(log_terms)
        weights = np.exp(log_terms - log_total)
        mean, sd_points = weights @ points, points - weights @ points
        cov = sd_points.T @ (weights[:, None] * sd_points)
    return float(log_total + np.log(np.diag(scale_tril)).sum()), points, weights


def moments(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of values `(n, ...)` under weights `(n,)`."""
    mean = np.tensordot(weights, values, axes=1)
    return mean, np.sqrt(np.tensordot(weights, (values - mean) ** 2, axes=1))
