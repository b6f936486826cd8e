"""Logistic regression on one data point: the smallest non-conjugate posterior."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Reference, Target, register


def log_joint(x, z):
    r"""A standard Gaussian weight and one binary outcome.

    .. math:: \log N(w; 0, 1) + \log \sigma((2y - 1) w f)

    Args:
        x: `feature` () and `label` (), zero or one.
        z: `w` ().
    """
    sign = 2.0 * x["label"] - 1.0
    return norm.logpdf(z["w"]) + jax.nn.log_sigmoid(sign * z["w"] * x["feature"])


def data():
    """Returns one success at feature 1."""
    return {"feature": jnp.asarray(1.0), "label": jnp.asarray(1.0)}


def mean_field():
    """Returns a Gaussian guide for w."""
    return bbvi.MeanField({"w": bbvi.Normal(())})


def reference():
    """Integrates over w numerically."""
    from scipy import integrate, special, stats

    def moment(power):
        def integrand(w):
            return w**power * stats.norm.pdf(w) * special.expit(w)

        return integrate.quad(integrand, -12.0, 12.0, epsabs=1e-13, epsrel=1e-12)[0]

    evidence = moment(0)
    mean = moment(1) / evidence
    return Reference(
        how="quadrature",
        log_evidence=float(np.log(evidence)),
        mean={"w": mean},
        sd={"w": np.sqrt(moment(2) / evidence - mean**2)},
    )


register(
    Target(
        name="toy_logistic",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        reference=reference,
        source="Written for this registry; one data point, so that all can be done by hand.",
    )
)
