"""A drug's concentration, which follows an ordinary differential equation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import cauchy, norm

from bbvi.supports import positive
from models.posteriors.stored import register_posterior

# Steps between two measurements in the runs that are extrapolated, and the weights that cancel the
# errors of order one to three in the length of a step.
STEPS = (3, 6, 9, 12)
WEIGHTS = (-1.0 / 6.0, 4.0, -27.0 / 2.0, 32.0 / 3.0)


def _ends_of_steps(times, num_steps):
    """Returns times (1 + T num_steps,) from zero on, with so many steps up to each of (T,) times.

    Steps are equal but for those up to the first time, whose ends grow like cubes: elimination is
    in proportion to the concentration at first and soon, where K_m is small, at a constant rate.
    """
    starts = jnp.append(jnp.zeros_like(times[:1]), times[:-1])
    powers = np.ones((times.size, 1))
    powers[0] = 3.0
    shares = np.linspace(0.0, 1.0, num_steps + 1)[None, 1:] ** powers
    ends = starts[:, None] + (times - starts)[:, None] * jnp.asarray(shares, times.dtype)
    return jnp.append(jnp.zeros_like(times[:1]), ends)


def log_concentrations(theta, dose, times):
    r"""Solves for the concentration in one compartment after a dose at time zero.

    .. math:: \dot C = d k_a e^{-k_a t} - v \frac{C}{K_m + C}, \quad C(0) = 0

    A step of the implicit Euler method, with the exact integral of the uptake, is a quadratic
    equation. Its positive root exists for steps of any length, so that concentrations stay positive
    where elimination is so fast that an explicit method is unstable. Runs with more and more steps
    are extrapolated to order four, in logarithms for the same reason.

    Args:
        theta: k_a, K_m and v.
        dose: d () per volume.
        times: When to return log C (T,).
    """
    k_a, k_m, fastest = theta

    def step(concentration, interval):
        start, length = interval
        uptake = -dose * jnp.exp(-k_a * start) * jnp.expm1(-k_a * length)
        total = concentration + uptake
        half = 0.5 * (total - k_m - fastest * length)
        larger = jnp.abs(half) + jnp.sqrt(half**2 + k_m * total)
        concentration = jnp.where(half > 0.0, larger, k_m * total / larger)
        # The logarithm of one that underflows would have no derivative.
        least = float(jnp.finfo(concentration.dtype).tiny) ** 0.5
        concentration = jnp.maximum(concentration, least)
        return concentration, concentration

    def run(num_steps):
        ends = _ends_of_steps(times, num_steps)
        _, path = jax.lax.scan(step, jnp.zeros_like(k_a), (ends[:-1], jnp.diff(ends)))
        return jnp.log(path[num_steps - 1 :: num_steps])

    return sum(weight * run(steps) for weight, steps in zip(WEIGHTS, STEPS, strict=True))


def one_comp_mm_elim_abs(x, z):
    r"""A drug that is absorbed and, by Michaelis-Menten kinetics, eliminated, seen with errors.

    .. math:: \log p(z) + \sum_n \log \mathrm{LogNormal}(y_n; \log C(t_n), \sigma)

    with C as in `log_concentrations` and :math:`d = D / V`, :math:`v = V_m / V`. All priors are
    half-Cauchy(1). Concentrations stay so large that the data hardly tell a K_m of zero from a
    large one with a V_m in proportion: the posterior of K_m spans four decades, and both have
    densities that fall like a cube, so that their variance does not exist. The reference's is that
    of its 10,000 draws.

    Args:
        x: `times` (20,), concentrations `y` (20,), the dose `D` () and the volume `V` ().
        z: `k_a` (), `K_m` (), `V_m` () and `sigma` (), all positive.
    """
    latents = jnp.stack([z["k_a"], z["K_m"], z["V_m"], z["sigma"]])
    theta = z["k_a"], z["K_m"], z["V_m"] / x["V"]
    log_fitted = log_concentrations(theta, x["D"] / x["V"], x["times"])
    log_y = jnp.log(x["y"])
    return (cauchy.logpdf(latents) + jnp.log(2.0)).sum() + (
        norm.logpdf(log_y, log_fitted, z["sigma"]) - log_y
    ).sum()


register_posterior(
    "one_comp_mm_elim_abs",
    one_comp_mm_elim_abs,
    {"k_a": ((), positive), "K_m": ((), positive), "V_m": ((), positive), "sigma": ((), positive)},
    posteriordb="one_comp_mm_elim_abs-one_comp_mm_elim_abs",
)
