"""A Gaussian mixture with its discrete assignments as latents, and a tiny one to enumerate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models import quadrature
from models.registry import Reference, Target, register

NUM_COMPONENTS = 3


def log_joint(x, z):
    r"""A mixture whose weights, means and common deviation are latent too.

    .. math:: \log p(\pi, \mu, \sigma) + \sum_n \log \pi_{c_n} + \log N(y_n; \mu_{c_n}, \sigma)

    The weights have a uniform Dirichlet prior, the means independent N(1, 1) priors restricted to
    increasing order (hence log 3!), and the common deviation a half-normal(1) prior.

    Args:
        x: `width` (N,).
        z: `weights` (3,) on the simplex, `means` (3,) increasing, `scale` () > 0, and
            `assignments` (N,) of integers in 0..2.
    """
    c = z["assignments"]
    log_prior = (
        jnp.log(2.0)
        + norm.logpdf(z["means"], 1.0, 1.0).sum()
        + jnp.log(6.0)
        + norm.logpdf(z["scale"])
        + jnp.log(2.0)
    )
    log_assignments = jnp.log(z["weights"])[c].sum()
    return log_prior + log_assignments + norm.logpdf(x["width"], z["means"][c], z["scale"]).sum()


def _widths():
    from sklearn import datasets

    return datasets.load_iris().data[:, 3]


def data():
    """Returns the petal widths of 150 irises in cm, fifty of each kind."""
    return {"width": jnp.asarray(_widths())}


def mean_field():
    """Returns an independent guide: Dirichlet, ordered Gaussian, log-normal and categorical."""
    return bbvi.MeanField(
        {
            "weights": bbvi.Dirichlet((NUM_COMPONENTS,)),
            "means": bbvi.Normal((NUM_COMPONENTS,), support=bbvi.supports.ordered),
            "scale": bbvi.LogNormal(()),
            "assignments": bbvi.Categorical(NUM_COMPONENTS, (150,)),
        }
    )


def interactions(x):
    """An assignment interacts with all parameters, as it may select any component.

    The Dirichlet prior of the weights is uniform, and a width reads one component only: so weights
    do not interact with each other or with means and scale, nor do two means.
    """
    num_data = x["width"].size
    components = np.eye(NUM_COMPONENTS, dtype=bool)
    return {
        ("assignments", "assignments"): np.eye(num_data, dtype=bool),
        ("assignments", "means"): np.ones((num_data, NUM_COMPONENTS), bool),
        ("assignments", "scale"): np.ones((num_data, 1), bool),
        ("assignments", "weights"): np.ones((num_data, NUM_COMPONENTS), bool),
        ("means", "means"): components,
        ("means", "scale"): np.ones((NUM_COMPONENTS, 1), bool),
        ("scale", "scale"): np.ones((1, 1), bool),
        ("weights", "weights"): components,
    }


def _unpack(points):
    """Maps points (n, 6) to means (n, 3), scale (n,), weights (n, 3) and the log Jacobian (n,)."""
    logits = np.concatenate([points[:, 4:], np.zeros((len(points), 1))], axis=1)
    weights = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return points[:, :3], np.exp(points[:, 3]), weights, points[:, 3] + np.log(weights).sum(axis=1)


def _joint_probs(y, means, scale, weights):
    """Returns p(y_n, c_n = k) for parameters with a leading axis, `(n, N, 3)`."""
    standardised = (y[:, None] - means[:, None, :]) / scale[:, None, None]
    heights = weights / (np.sqrt(2.0 * np.pi) * scale[:, None])
    return heights[:, None, :] * np.exp(-0.5 * standardised**2)


@functools.cache
def reference():
    """Sums over the assignments exactly and integrates the six parameters by quadrature.

    The parameters are taken on the real line: means, log scale, and log ratios of the weights.
    That the means are increasing holds at every node.
    """
    from scipy import stats

    y = _widths()

    def log_density(points):
        means, scale, weights, log_jacobian = _unpack(points)
        log_prior = np.log(2.0) + np.log(6.0) + stats.norm.logpdf(means, 1.0, 1.0).sum(axis=1)
        log_prior += stats.halfnorm.logpdf(scale)
        probs = _joint_probs(y, means, scale, weights).sum(axis=2)
        return log_prior + log_jacobian + np.log(probs).sum(axis=1)

    guess = np.array([0.25, 1.35, 2.1, np.log(0.2), 0.0, 0.0])
    guessed_sd = np.array([0.03, 0.03, 0.04, 0.07, 0.2, 0.2])
    log_evidence, points, posterior = quadrature.adaptive_gauss_hermite(
        log_density, guess, np.diag(guessed_sd**2), num_nodes=5, num_adaptations=4
    )
    means, scale, weights, _ = _unpack(points)
    probs = _joint_probs(y, means, scale, weights)
    probs /= probs.sum(axis=2, keepdims=True)
    parameters = {"weights": weights, "means": means, "scale": scale}
    summary = {name: quadrature.moments(v, posterior) for name, v in parameters.items()}
    return Reference(
        how="enumeration of each assignment, adaptive Gauss-Hermite quadrature of the parameters",
        log_evidence=log_evidence,
        mean={name: mean for name, (mean, _) in summary.items()},
        sd={name: sd for name, (_, sd) in summary.items()},
        probs={"assignments": np.tensordot(posterior, probs, axes=1)},
    )


def log_joint_small(x, z):
    r"""The likelihood alone: weights, means and deviation are known.

    .. math:: \sum_n \log \pi_{c_n} + \log N(y_n; \mu_{c_n}, \sigma)

    Args:
        x: `width` (N,), `weights` (K,), `means` (K,) and `scale` ().
        z: `assignments` (N,) of integers in 0..K-1.
    """
    c = z["assignments"]
    log_assignments = jnp.log(x["weights"])[c].sum()
    return log_assignments + norm.logpdf(x["width"], x["means"][c], x["scale"]).sum()


def _small():
    return {
        "width": _widths()[::25],
        "weights": np.array([0.4, 0.35, 0.25]),
        "means": np.array([0.3, 1.3, 2.0]),
        "scale": np.array(0.3),
    }


def data_small():
    """Returns every 25th petal width, six in all, with parameters rounded by hand."""
    return jax.tree.map(jnp.asarray, _small())


def mean_field_small():
    """Returns an independent categorical guide, which contains the posterior."""
    return bbvi.MeanField({"assignments": bbvi.Categorical(3, (6,))})


def interactions_small(x):
    """No two assignments interact: the parameters are known."""
    return {("assignments", "assignments"): np.eye(x["width"].size, dtype=bool)}


def reference_small():
    """Sums out each assignment: given the parameters they are independent."""
    from scipy import stats

    x = _small()
    joint = x["weights"] * stats.norm.pdf(x["width"][:, None], x["means"], x["scale"])
    return Reference(
        how="closed form",
        log_evidence=float(np.log(joint.sum(axis=1)).sum()),
        probs={"assignments": joint / joint.sum(axis=1, keepdims=True)},
    )


_SOURCE = (
    "Data: Fisher (1936), The Use of Multiple Measurements in Taxonomic Problems, as shipped "
    "with scikit-learn."
)

register(
    Target(
        name="gaussian_mixture",
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
        name="gaussian_mixture_small",
        log_joint=log_joint_small,
        data=data_small,
        guides={"mean_field": mean_field_small},
        reference=reference_small,
        interactions=interactions_small,
        source=_SOURCE,
    )
)
