"""Bayesian logistic regression on the Wisconsin breast cancer data: 31 correlated weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.data import load
from models.registry import Reference, Target, register


def log_joint(x, z):
    r"""Independent standard Gaussian weights and a logistic likelihood.

    .. math:: \log N(w; 0, I) + \sum_n \log \sigma((2 y_n - 1) f_n^\top w)

    Args:
        x: `features` (569, 31), of which the first is one, and `labels` (569,), zero or one.
        z: `w` (31,).
    """
    signs = 2.0 * x["labels"] - 1.0
    return norm.logpdf(z["w"]).sum() + jax.nn.log_sigmoid(signs * (x["features"] @ z["w"])).sum()


def data():
    """Returns 30 standardised measurements with an intercept, and whether a tumour is benign."""
    from sklearn import datasets

    features, labels = datasets.load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    features = np.concatenate([np.ones((len(features), 1)), features], axis=1)
    return {"features": jnp.asarray(features), "labels": jnp.asarray(labels.astype(float))}


def mean_field():
    """Returns an independent Gaussian guide."""
    return bbvi.MeanField({"w": bbvi.Normal((31,))})


def full_rank():
    """Returns a correlated Gaussian guide."""
    return bbvi.FullRank({"w": bbvi.Normal((31,))})


def low_rank():
    """Returns a Gaussian guide with a covariance of rank five plus a diagonal."""
    return bbvi.LowRank({"w": bbvi.Normal((31,))}, rank=5)


def interactions(x):
    """All pairs: a row of features has no zeros, and its log sigmoid is not additive."""
    num_features = x["features"].shape[1]
    return {("w", "w"): np.ones((num_features, num_features), bool)}


def reference():
    """Returns the stored summary of a long NUTS run; `run_nuts` made it."""
    stored = load("breast_cancer_nuts")
    return Reference(
        how="NumPyro NUTS, 4 chains of 1000 + 10,000 draws in float64: worst R-hat "
        f"{stored['max_rhat']:.4f}, smallest effective sample size {stored['min_ess']:.0f}; "
        f"importance sampling for the evidence, s.e. {stored['log_evidence_se']:.4f}",
        log_evidence=float(stored["log_evidence"]),
        mean={"w": stored["mean_w"]},
        sd={"w": stored["sd_w"]},
    )


def run_nuts(num_samples=10_000, num_chains=4, seed=0):
    """Draws from the posterior in float64 and returns the arrays that `reference` reads.

    The evidence is estimated by importance sampling, from a Student's t distribution with the
    moments of the draws.
    """
    from numpyro import diagnostics, infer
    from scipy import special, stats

    with jax.enable_x64(True):  # noqa: FBT003
        x = data()
        kernel = infer.NUTS(potential_fn=lambda z: -log_joint(x, z))
        mcmc = infer.MCMC(
            kernel,
            num_warmup=1000,
            num_samples=num_samples,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        start = {"w": jnp.zeros((num_chains, 31))}
        mcmc.run(jax.random.key(seed), init_params=start)
        draws = np.asarray(mcmc.get_samples(group_by_chain=True)["w"])

        flat = draws.reshape(-1, 31)
        mean, cov = flat.mean(axis=0), np.cov(flat.T)
        proposal = stats.multivariate_t(mean, 0.95 * cov, df=40, seed=seed)
        proposed = proposal.rvs(40_000)
        log_weights = jax.lax.map(lambda w: log_joint(x, {"w": w}), proposed, batch_size=1000)
        log_weights = np.asarray(log_weights) - proposal.logpdf(proposed)
    log_evidence = special.logsumexp(log_weights) - np.log(len(log_weights))
    relative = np.exp(log_weights - log_evidence)
    return {
        "mean_w": mean,
        "sd_w": np.sqrt(np.diag(cov)),
        "log_evidence": log_evidence,
        "log_evidence_se": relative.std() / np.sqrt(len(relative)),
        "max_rhat": np.max(diagnostics.split_gelman_rubin(draws)),
        "min_ess": np.min(diagnostics.effective_sample_size(draws)),
    }


register(
    Target(
        name="breast_cancer",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field, "full_rank": full_rank, "low_rank": low_rank},
        reference=reference,
        interactions=interactions,
        source="Data: Street, Wolberg and Mangasarian (1993), Nuclear Feature Extraction for "
        "Breast Tumor Diagnosis, as shipped with scikit-learn.",
    )
)
