"""A Gaussian mixture of any number of points, with parameters and assignments as latents.

The points lie in the plane and are drawn from a known truth. In a fit with batches the parameters
of the mixture move with every batch, and of the assignments those of its points alone:

    x = data(100_000)
    guide = local(100_000)
    result = bbvi.fit(
        *(log_joint, guide, x),
        init_params=start(guide, x),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 4000)),
        batch_size=500,
        num_epochs=20,
    )
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.scipy.stats import norm

import bbvi
from models.registry import Target, register

NUM_DATA = 500
NUM_COMPONENTS = 4
NUM_CLUSTERED = 1000  # points to find a start from
TRUTH = {
    "weights": np.array([0.1, 0.2, 0.3, 0.4]),
    "means": np.array([[-4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, -2.0]]),
    "scales": np.array([[0.5, 1.0], [1.0, 0.5], [0.7, 0.7], [1.0, 0.6]]),
}


def log_joint(x, z):
    r"""A mixture with a mean and two deviations for each component.

    .. math:: \log p(\pi, \mu, \sigma) + \sum_n \log \pi_{c_n} +
      \sum_{nd} \log N(x_{nd}; \mu_{c_n d}, \sigma_{c_n d})

    The priors are a uniform Dirichlet distribution of the weights, :math:`\mu_{kd} \sim N(0, 5)`
    and half-normal(2) for the deviations. Components have no order: a permutation of their names
    changes nothing.

    Args:
        x: Points (N, 2).
        z: `weights` (4,) on the simplex, `means` (4, 2), `scales` (4, 2) > 0, and `assignment`
            (N,) of integers in 0..3.
    """
    c = z["assignment"]
    log_prior = (
        gammaln(float(NUM_COMPONENTS))
        + norm.logpdf(z["means"], 0.0, 5.0).sum()
        + (norm.logpdf(z["scales"], 0.0, 2.0) + jnp.log(2.0)).sum()
    )
    log_assignments = jnp.log(z["weights"])[c].sum()
    return log_prior + log_assignments + norm.logpdf(x, z["means"][c], z["scales"][c]).sum()


def draw_data(num_data=NUM_DATA, seed=0):
    """Returns points (N, 2) drawn from the truth, and their components (N,)."""
    rng = np.random.default_rng(seed)
    c = rng.choice(NUM_COMPONENTS, size=num_data, p=TRUTH["weights"])
    return TRUTH["means"][c] + TRUTH["scales"][c] * rng.normal(size=(num_data, 2)), c


def data(num_data=NUM_DATA):
    """Returns points (N, 2) drawn from the truth."""
    return jnp.asarray(draw_data(num_data)[0], float)


def _shared():
    return bbvi.MeanField(
        {
            # Not Dirichlet: noisy gradients are slow to raise its concentration, which is about N.
            "weights": bbvi.Normal((NUM_COMPONENTS,), support=bbvi.supports.simplex),
            "means": bbvi.Normal((NUM_COMPONENTS, 2)),
            "scales": bbvi.LogNormal((NUM_COMPONENTS, 2)),
        }
    )


def local(num_data=NUM_DATA):
    """Returns an independent guide with free probabilities for the component of every point."""
    sites = {"assignment": bbvi.Categorical(NUM_COMPONENTS, (num_data,))}
    return bbvi.Product(_shared(), bbvi.Local(sites))


class Encoder(nn.Module):
    """Logits of the components (N, 4), quadratic in the point as those of the posterior are."""

    @nn.compact
    def __call__(self, x):
        features = jnp.concatenate([x, x**2], axis=1)
        return nn.Dense(NUM_COMPONENTS, name="logits")(features)


def amortized(num_data=NUM_DATA):
    """Returns the same with probabilities of components computed from the point."""
    sites = {"assignment": bbvi.Categorical(NUM_COMPONENTS, (num_data,))}
    return bbvi.Product(_shared(), bbvi.Amortized(sites, Encoder()))


def start(guide, x, seed=0):
    """Returns parameters of a guide to start from, with the components at clusters of points.

    From the guide's own start, where all components are alike, some may never part.
    """
    from sklearn.cluster import KMeans

    few = np.asarray(x[:NUM_CLUSTERED])
    clusters = KMeans(NUM_COMPONENTS, n_init=10, random_state=seed).fit(few)
    z = {
        "weights": np.bincount(clusters.labels_) / len(few),
        "means": clusters.cluster_centers_,
        "scales": np.stack([few[clusters.labels_ == k].std(axis=0) for k in range(NUM_COMPONENTS)]),
    }
    shared, own = guide.guides
    at = shared.params_at(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), z), 0.1)
    network = posterior_network(**z)
    if isinstance(own, bbvi.Amortized):
        return at, network
    return at, {"assignment": {"logits": Encoder().apply(network, x)}}


def posterior_network(weights, means, scales):
    """Returns the parameters of `Encoder` with which it is the posterior, given the others."""
    precisions = 1.0 / scales**2
    bias = np.log(weights) - (0.5 * means**2 * precisions + np.log(scales)).sum(axis=1)
    kernel = np.concatenate([means * precisions, -0.5 * precisions], axis=1).T
    logits = {"bias": jnp.asarray(bias, float), "kernel": jnp.asarray(kernel, float)}
    return {"params": {"logits": logits}}


register(
    Target(
        name="large_mixture",
        log_joint=log_joint,
        data=data,
        guides={"local": local, "amortized": amortized},
        source="Made up. Guide: Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational "
        "Inference.",
    )
)
