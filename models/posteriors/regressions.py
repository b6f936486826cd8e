"""Linear regressions, most of them in raw units, and a logistic one.

Linear ones differ in data and prior only, so that those of one prior share their log joint.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import cauchy, norm, t

from bbvi.supports import positive, real
from models.posteriors.stored import register_posterior


def flat_priors(x, z):
    r"""A linear regression with flat priors.

    .. math:: \sum_n \log N(y_n; x_n^\top \beta, \sigma)

    Args:
        x: `X` (N, D) with a first column of ones, and `y` (N,).
        z: `beta` (D,) and `sigma` () > 0.
    """
    return norm.logpdf(x["y"], x["X"] @ z["beta"], z["sigma"]).sum()


def half_cauchy_prior(x, z):
    r"""A linear regression of children's test scores, whose intercept is far from the data.

    .. math:: \log p(\sigma) + \sum_n \log N(y_n; x_n^\top \beta, \sigma)

    The prior of :math:`\sigma` is half-Cauchy(2.5), that of :math:`\beta` flat. Where mother's IQ
    is a covariate, its mean is 100, so that its slope and the intercept are highly correlated.

    Args:
        x: `X` (434, D) with a first column of ones, and `y` (434,).
        z: `beta` (D,) and `sigma` () > 0.
    """
    return cauchy.logpdf(z["sigma"], 0.0, 2.5) + jnp.log(2.0) + flat_priors(x, z)


def normal_priors(x, z):
    r"""A linear regression with proper priors.

    .. math:: \log p(\beta) + \log p(\sigma) + \sum_n \log N(y_n; x_n^\top \beta, \sigma)

    The priors are N(0, 10) for each slope and half-normal(10) for :math:`\sigma`.

    Args:
        x: `X` (100, 5) without a column of ones, and `y` (100,).
        z: `beta` (5,) and `sigma` () > 0.
    """
    log_prior = norm.logpdf(z["beta"], 0.0, 10.0).sum() + norm.logpdf(z["sigma"], 0.0, 10.0)
    return log_prior + jnp.log(2.0) + flat_priors(x, z)


def kilpisjarvi(x, z):
    r"""A trend of summer temperatures, whose intercept lies 2,000 years before the data.

    .. math:: \log p(\alpha) + \log p(\beta) + \sum_n \log N(y_n; \alpha + \beta x_n, \sigma)

    The priors of :math:`\alpha` and :math:`\beta` are normal and wide, that of :math:`\sigma` flat.

    Args:
        x: years `x` (62,), temperatures `y` (62,), and `prior_mean` (2,) and `prior_sd` (2,) of
            intercept and slope.
        z: `alpha` (), `beta` () and `sigma` () > 0.
    """
    line = jnp.stack([z["alpha"], z["beta"]])
    log_likelihood = norm.logpdf(x["y"], z["alpha"] + z["beta"] * x["x"], z["sigma"]).sum()
    return norm.logpdf(line, x["prior_mean"], x["prior_sd"]).sum() + log_likelihood


def diamonds(x, z):
    r"""A linear regression of log prices, with covariates that are nearly collinear.

    .. math:: \log p(z) + \sum_n \log N(y_n; \alpha + x_n^\top b, \sigma)

    The priors are N(0, 1) for each slope b, Student's t with three degrees of freedom, location 8
    and scale 10 for the intercept :math:`\alpha`, and its half with scale 10 for :math:`\sigma`.

    Args:
        x: `X` (5000, 24) of columns with mean zero, and `y` (5000,).
        z: `b` (24,), `Intercept` () and `sigma` () > 0.
    """
    return (
        norm.logpdf(z["b"]).sum()
        + t.logpdf(z["Intercept"], 3.0, 8.0, 10.0)
        + t.logpdf(z["sigma"], 3.0, 0.0, 10.0)
        + jnp.log(2.0)
        + norm.logpdf(x["y"], z["Intercept"] + x["X"] @ z["b"], z["sigma"]).sum()
    )


def wells_daae_c(x, z):
    r"""A logistic regression of changing to another well, with flat priors.

    .. math:: \sum_n \log \mathrm{Bernoulli}(y_n; \mathrm{logit} = \alpha + x_n^\top \beta)

    Args:
        x: `X` (3020, 5) and `y` (3020,), zero or one.
        z: `alpha` () and `beta` (5,).
    """
    logits = z["alpha"] + x["X"] @ z["beta"]
    return (x["y"] * logits - jax.nn.softplus(logits)).sum()


# Name, posterior in posteriordb, log joint and number of coefficients.
_LINEAR = (
    ("earn_height", "earnings-earn_height", flat_priors, 2),
    ("kidscore_interaction", "kidiq-kidscore_interaction", half_cauchy_prior, 4),
    ("kidscore_interaction_c", "kidiq_with_mom_work-kidscore_interaction_c", flat_priors, 4),
    ("kidscore_interaction_c2", "kidiq_with_mom_work-kidscore_interaction_c2", flat_priors, 4),
    ("kidscore_interaction_z", "kidiq_with_mom_work-kidscore_interaction_z", flat_priors, 4),
    ("kidscore_mom_work", "kidiq_with_mom_work-kidscore_mom_work", flat_priors, 4),
    ("kidscore_momhs", "kidiq-kidscore_momhs", half_cauchy_prior, 2),
    ("kidscore_momhsiq", "kidiq-kidscore_momhsiq", half_cauchy_prior, 3),
    ("kidscore_momiq", "kidiq-kidscore_momiq", half_cauchy_prior, 2),
    ("log10earn_height", "earnings-log10earn_height", flat_priors, 2),
    ("logearn_height", "earnings-logearn_height", flat_priors, 2),
    ("logearn_height_male", "earnings-logearn_height_male", flat_priors, 3),
    ("logearn_interaction", "earnings-logearn_interaction", flat_priors, 4),
    ("logearn_interaction_z", "earnings-logearn_interaction_z", flat_priors, 4),
    ("logearn_logheight_male", "earnings-logearn_logheight_male", flat_priors, 3),
    ("logmesquite", "mesquite-logmesquite", flat_priors, 7),
    ("logmesquite_logva", "mesquite-logmesquite_logva", flat_priors, 4),
    ("logmesquite_logvas", "mesquite-logmesquite_logvas", flat_priors, 7),
    ("logmesquite_logvash", "mesquite-logmesquite_logvash", flat_priors, 6),
    ("logmesquite_logvolume", "mesquite-logmesquite_logvolume", flat_priors, 2),
    ("mesquite", "mesquite-mesquite", flat_priors, 7),
    *((f"nes{year}", f"nes{year}-nes", flat_priors, 9) for year in (1972, 1976, 1980, 1984)),
    *((f"nes{year}", f"nes{year}-nes", flat_priors, 9) for year in (1988, 1992, 1996, 2000)),
    ("sblrc", "sblrc-blr", normal_priors, 5),
    ("sblri", "sblri-blr", normal_priors, 5),
)
for _name, _posteriordb, _log_joint, _num_coefficients in _LINEAR:
    register_posterior(
        _name,
        _log_joint,
        {"beta": ((_num_coefficients,), real), "sigma": ((), positive)},
        posteriordb=_posteriordb,
    )
register_posterior(
    "kilpisjarvi",
    kilpisjarvi,
    {"alpha": ((), real), "beta": ((), real), "sigma": ((), positive)},
    posteriordb="kilpisjarvi_mod-kilpisjarvi",
)
register_posterior(
    "diamonds",
    diamonds,
    {"b": ((24,), real), "Intercept": ((), real), "sigma": ((), positive)},
    posteriordb="diamonds-diamonds",
)
register_posterior(
    "wells_daae_c",
    wells_daae_c,
    {"alpha": ((), real), "beta": ((5,), real)},
    posteriordb="wells_data-wells_daae_c_model",
)
