"""A Gaussian mixture of Italian wines with learned weights, means and scales: exact EM is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Reference, Target, register

NUM_COMPONENTS = 3


def log_joint(x, z, theta):
    r"""Each wine has a component; given that, its measurements are independent.

    .. math:: \sum_n \log \pi_{c_n} + \sum_{nd} \log N(y_{nd}; \mu_{c_n d}, \sigma_{c_n d})

    Args:
        x: `measurements` (N, D).
        z: `assignments` (N,) of integers in 0..K-1.
        theta: `logits` (K,) of the weights, `means` (K, D) and `log_scales` (K, D).
    """
    c, scales = z["assignments"], jnp.exp(theta["log_scales"])
    log_assignments = jax.nn.log_softmax(theta["logits"])[c].sum()
    return log_assignments + norm.logpdf(x["measurements"], theta["means"][c], scales[c]).sum()


@functools.cache
def _measurements():
    from sklearn import datasets

    wines = datasets.load_wine().data
    return (wines - wines.mean(axis=0)) / wines.std(axis=0)


def data():
    """Returns thirteen standardised measurements of 178 wines."""
    return {"measurements": jnp.asarray(_measurements())}


def _start():
    y = _measurements()
    return {
        "logits": np.zeros(NUM_COMPONENTS),
        "means": y[[0, 70, 150]],
        "log_scales": np.zeros((NUM_COMPONENTS, y.shape[1])),
    }


def model_params():
    """Returns a starting value: equal weights, unit scales, and three wines as means."""
    return jax.tree.map(jnp.asarray, _start())


def mean_field():
    """Returns an independent categorical guide, which contains the posterior for every theta."""
    return bbvi.MeanField({"assignments": bbvi.Categorical(NUM_COMPONENTS, (178,))})


def e_step(theta):
    """Returns the responsibilities p(c_n = k | y_n; theta), (N, K), and log p(y; theta)."""
    standardised = (_measurements()[:, None] - theta["means"]) / np.exp(theta["log_scales"])
    log_normal = -0.5 * standardised**2 - theta["log_scales"] - 0.5 * np.log(2.0 * np.pi)
    log_probs = theta["logits"] - np.logaddexp.reduce(theta["logits"]) + log_normal.sum(axis=2)
    log_evidence = np.logaddexp.reduce(log_probs, axis=1)
    return np.exp(log_probs - log_evidence[:, None]), log_evidence.sum()


def m_step(responsibilities):
    """Returns the theta that maximises the expected log joint."""
    y, counts = _measurements(), responsibilities.sum(axis=0)
    means = responsibilities.T @ y / counts[:, None]
    squares = np.einsum("nk,nkd->kd", responsibilities, (y[:, None] - means) ** 2)
    return {
        "logits": np.log(counts / len(y)),
        "means": means,
        "log_scales": 0.5 * np.log(squares / counts[:, None]),
    }


@functools.cache
def reference():
    """Runs EM from `model_params` until the log likelihood does not change any more.

    The likelihood of a mixture has other local maxima, and none that is global: it grows without
    bound as a component closes in on one wine.

    Source: Dempster, Laird and Rubin (1977), Maximum Likelihood from Incomplete Data via the EM
    Algorithm.
    """
    theta = _start()
    for _ in range(200):
        theta = m_step(e_step(theta)[0])
    responsibilities, log_evidence = e_step(theta)
    return Reference(
        how="200 iterations of EM, to rounding error; logits up to a constant",
        log_evidence=float(log_evidence),
        probs={"assignments": responsibilities},
        model_params=theta,
    )


register(
    Target(
        name="gaussian_mixture_em",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        reference=reference,
        source="Data: Forina, Leardi, Armanino and Lanteri (1988), PARVUS: An Extendable Package "
        "for Data Exploration, Classification and Correlation, as shipped with scikit-learn.",
        model_params=model_params,
    )
)
