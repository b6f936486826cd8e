"""The unknown probability of a binary event: the smallest conjugate posterior."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import bernoulli, beta

import bbvi
from models.registry import Reference, Target, register


def log_joint(x, z):
    r"""A Beta prior and independent Bernoulli outcomes.

    .. math:: \log \mathrm{Beta}(p; a, b) + \sum_n \log \mathrm{Bernoulli}(y_n; p)

    Args:
        x: `outcomes` (N,) of zeros and ones, prior shapes `a` () and `b` ().
        z: `p` () in the unit interval.
    """
    return beta.logpdf(z["p"], x["a"], x["b"]) + bernoulli.logpmf(x["outcomes"], z["p"]).sum()


def data():
    """Returns Roberto Clemente's 45 first at bats of the 1970 season, 18 of them hits.

    Only the totals are published, so the hits come first.
    """
    outcomes = np.repeat([1.0, 0.0], [18, 27])
    return {"outcomes": jnp.asarray(outcomes), "a": jnp.asarray(2.0), "b": jnp.asarray(2.0)}


def conjugate():
    """Returns a Beta guide, which contains the posterior."""
    return bbvi.MeanField({"p": bbvi.Beta(())})


def logit_normal():
    """Returns a Gaussian guide carried to the unit interval, which does not contain it."""
    return bbvi.MeanField({"p": bbvi.Normal((), support=bbvi.supports.unit_interval)})


def reference():
    """Updates the shapes: the posterior is Beta(a + hits, b + misses)."""
    from scipy import special, stats

    x = data()
    hits, misses = int(x["outcomes"].sum()), int((1 - x["outcomes"]).sum())
    a, b = float(x["a"]), float(x["b"])
    posterior = stats.beta(a + hits, b + misses)
    return Reference(
        how="closed form",
        log_evidence=float(special.betaln(a + hits, b + misses) - special.betaln(a, b)),
        mean={"p": posterior.mean()},
        sd={"p": posterior.std()},
    )


register(
    Target(
        name="beta_bernoulli",
        log_joint=log_joint,
        data=data,
        guides={"conjugate": conjugate, "logit_normal": logit_normal},
        reference=reference,
        source="Efron and Morris (1975), Data Analysis Using Stein's Estimator and its "
        "Generalizations, table 1.",
    )
)
