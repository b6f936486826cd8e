"""Time series: autoregressions, a changing volatility and two populations that follow an ODE."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import cauchy, norm

from bbvi.supports import positive, real, unit_interval
from models.posteriors.stored import register_posterior

STEPS_PER_YEAR = 20


def ark(x, z):
    r"""An autoregression of order five, given the first five values.

    .. math:: \log p(z) + \sum_t \log N(y_t; \alpha + \sum_k \beta_k y_{t-k}, \sigma)

    The priors are N(0, 10) for :math:`\alpha` and :math:`\beta`, half-Cauchy(2.5) for
    :math:`\sigma`.

    Args:
        x: `y` (195,) and `lags` (195, 5), of which column k is the value k + 1 steps before.
        z: `alpha` (), `beta` (5,) and `sigma` () > 0.
    """
    return (
        norm.logpdf(z["alpha"], 0.0, 10.0)
        + norm.logpdf(z["beta"], 0.0, 10.0).sum()
        + cauchy.logpdf(z["sigma"], 0.0, 2.5)
        + jnp.log(2.0)
        + norm.logpdf(x["y"], z["alpha"] + x["lags"] @ z["beta"], z["sigma"]).sum()
    )


def arma11(x, z):
    r"""A series that follows its last value and its last error, ARMA(1, 1).

    .. math::
        \log p(z) + \sum_t \log N(e_t; 0, \sigma), \quad
        e_t = y_t - \mu - \phi y_{t-1} - \theta e_{t-1}

    The value before the first is :math:`\mu`, the error before it zero. The priors are N(0, 10) for
    :math:`\mu`, N(0, 2) for :math:`\phi` and :math:`\theta`, and half-Cauchy(2.5) for
    :math:`\sigma`.

    Args:
        x: `y` (200,).
        z: `mu` (), `phi` (), `theta` () and `sigma` () > 0.
    """
    before = jnp.append(z["mu"], x["y"][:-1])

    def step(error, surprise):
        error = surprise - z["theta"] * error
        return error, error

    surprises = x["y"] - z["mu"] - z["phi"] * before
    _, errors = jax.lax.scan(step, jnp.zeros_like(surprises[0]), surprises)
    return (
        norm.logpdf(z["mu"], 0.0, 10.0)
        + norm.logpdf(jnp.stack([z["phi"], z["theta"]]), 0.0, 2.0).sum()
        + cauchy.logpdf(z["sigma"], 0.0, 2.5)
        + jnp.log(2.0)
        + norm.logpdf(errors, 0.0, z["sigma"]).sum()
    )


def garch11(x, z):
    r"""A series whose variance follows its own past, GARCH(1, 1), with flat priors.

    .. math::
        \log(1 - \alpha_1) + \sum_t \log N(y_t; \mu, \sigma_t), \quad
        \sigma_t^2 = \alpha_0 + \alpha_1 (y_{t-1} - \mu)^2 + \beta_1 \sigma_{t-1}^2

    The variance is stationary where :math:`\beta_1 < 1 - \alpha_1`, so the latent is the fraction
    of that bound; the first term is the Jacobian of this change.

    Args:
        x: `y` (200,) and the first deviation, `sigma1` ().
        z: `mu` (), `alpha0` () > 0, `alpha1` () and `beta1_frac` (), both between zero and one.
    """
    beta1 = z["beta1_frac"] * (1.0 - z["alpha1"])
    shocks = z["alpha0"] + z["alpha1"] * (x["y"][:-1] - z["mu"]) ** 2

    def step(variance, shock):
        variance = shock + beta1 * variance
        return variance, variance

    first = x["sigma1"] ** 2
    _, rest = jax.lax.scan(step, first, shocks)
    scale = jnp.sqrt(jnp.append(first, rest))
    return jnp.log1p(-z["alpha1"]) + norm.logpdf(x["y"], z["mu"], scale).sum()


def log_populations(theta, log_start, num_years):
    r"""Solves the equations of Lotka and Volterra by the classical Runge-Kutta method.

    .. math:: \dot u = (a - b v) u, \quad \dot v = (d u - g) v

    In logarithms, where populations stay positive.

    Args:
        theta: Rates (a, b, g, d).
        log_start: Logarithms of prey u and predators v at the start (2,).
        num_years: How many years to simulate.

    Returns:
        Logarithms of both at the end of each year (num_years, 2).
    """
    a, b, g, d = theta
    size = 1.0 / STEPS_PER_YEAR

    def slope(state):
        prey, predators = jnp.exp(state)
        return jnp.stack([a - b * predators, d * prey - g])

    def step(state, _):
        first = slope(state)
        second = slope(state + 0.5 * size * first)
        third = slope(state + 0.5 * size * second)
        fourth = slope(state + size * third)
        return state + size / 6.0 * (first + 2.0 * second + 2.0 * third + fourth), None

    def year(state, _):
        state, _ = jax.lax.scan(step, state, length=STEPS_PER_YEAR)
        return state, state

    return jax.lax.scan(year, log_start, length=num_years)[1]


def lotka_volterra(x, z):
    r"""Hares and lynxes that follow an ordinary differential equation, seen with errors.

    .. math:: \log p(z) + \sum_{t,i} \log \mathrm{LogNormal}(y_{ti}; \log u_{ti}(\theta), \sigma_i)

    The priors are N(1, 0.5) for the rates a and g, N(0.05, 0.05) for b and d, left unnormalised
    on the positive reals, LogNormal(log 10, 1) for both populations at the start, and
    LogNormal(-1, 1) for both deviations.

    Args:
        x: pelts `y_init` (2,) of hares and lynxes in 1900, and `y` (20, 2) from 1901 to 1920.
        z: `theta` (4,), rates (a, b, g, d) as in `log_populations`, `z_init` (2,) and `sigma`
            (2,), all positive.
    """
    log_start = jnp.log(z["z_init"])[None]
    log_rest = log_populations(z["theta"], log_start[0], len(x["y"]))
    log_pelts = jnp.log(jnp.concatenate([x["y_init"][None], x["y"]]))
    log_fitted = jnp.concatenate([log_start, log_rest])
    log_sigma = jnp.log(z["sigma"])
    return (
        norm.logpdf(z["theta"][::2], 1.0, 0.5).sum()
        + norm.logpdf(z["theta"][1::2], 0.05, 0.05).sum()
        + (norm.logpdf(log_start, jnp.log(10.0), 1.0) - log_start).sum()
        + (norm.logpdf(log_sigma, -1.0, 1.0) - log_sigma).sum()
        + (norm.logpdf(log_pelts, log_fitted, z["sigma"][None]) - log_pelts).sum()
    )


register_posterior(
    "arK",
    ark,
    {"alpha": ((), real), "beta": ((5,), real), "sigma": ((), positive)},
    posteriordb="arK-arK",
)
register_posterior(
    "arma11",
    arma11,
    {"mu": ((), real), "phi": ((), real), "theta": ((), real), "sigma": ((), positive)},
    posteriordb="arma-arma11",
)
register_posterior(
    "garch11",
    garch11,
    {
        "mu": ((), real),
        "alpha0": ((), positive),
        "alpha1": ((), unit_interval),
        "beta1_frac": ((), unit_interval),
    },
    posteriordb="garch-garch11",
)
register_posterior(
    "lotka_volterra",
    lotka_volterra,
    {"theta": ((4,), positive), "z_init": ((2,), positive), "sigma": ((2,), positive)},
    posteriordb="hudson_lynx_hare-lotka_volterra",
)
