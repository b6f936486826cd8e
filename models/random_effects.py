"""Houses with much radon in the counties of Minnesota: a logistic regression with random effects.

Every county has an effect of its own and several binary outcomes. A county is a row of the data, so
that batches are of counties and a guide may have free parameters for the effect of each, or compute
them from its outcomes:

    result = bbvi.fit(log_joint, amortized(), data(), batch_size=17, num_epochs=400)
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models import quadrature
from models.data import load
from models.registry import Reference, Target, register

NUM_COUNTIES = 85
ACTION_LEVEL = 4.0  # pCi/l, above which the United States advise to act
NUM_UNITS = 16  # of the network in the amortized guide


def log_joint(x, z):
    r"""Outcomes of houses given the effect of their county.

    .. math:: \log p(\beta, \tau) + \sum_g \Big( \log N(u_g; 0, \tau) +
      \sum_i \log \mathrm{Bernoulli}(y_{gi}; \sigma(\beta_0 + \beta_1 f_{gi} + \beta_2 v_g + u_g))
      \Big)

    with floor f (zero for the basement) and log uranium v of the county's soil. The priors are
    :math:`\beta \sim N(0, 2)` and :math:`\tau` half-normal(1).

    Args:
        x: `outcome` (G, M), zero or one, and `floor` (G, M); `mask` (G, M), false where a county
            has fewer than M houses; `uranium` (G,).
        z: `beta` (3,), `tau` () > 0, and `effect` (G,).
    """
    beta = z["beta"]
    of_county = beta[0] + beta[2] * x["uranium"] + z["effect"]
    logits = of_county[:, None] + beta[1] * x["floor"]
    log_outcomes = x["outcome"] * logits - jax.nn.softplus(logits)
    return (
        norm.logpdf(beta, 0.0, 2.0).sum()
        + norm.logpdf(z["tau"])
        + jnp.log(2.0)
        + norm.logpdf(z["effect"], 0.0, z["tau"]).sum()
        + jnp.where(x["mask"], log_outcomes, 0.0).sum()
    )


@functools.cache
def _tables():
    """The houses as arrays with a row for each county."""
    stored = load("radon")
    counties = stored["county"]
    place = np.zeros_like(counties)  # of a house among those of its county
    for county in range(NUM_COUNTIES):
        place[counties == county] = np.arange(np.sum(counties == county))
    shape = (NUM_COUNTIES, place.max() + 1)
    outcome, floor, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    outcome[counties, place] = stored["log_radon"] > np.log(ACTION_LEVEL)
    floor[counties, place] = stored["floor"]
    mask[counties, place] = True
    uranium = np.zeros(NUM_COUNTIES)
    uranium[counties] = stored["log_uppm"]
    return {"outcome": outcome, "floor": floor, "mask": mask, "uranium": uranium}


def data():
    """Returns outcome, floor, mask (85, 116) and uranium (85,) of 919 houses in 85 counties."""
    return {name: jnp.asarray(table) for name, table in _tables().items()}


SHARED = bbvi.FullRank({"beta": bbvi.Normal((3,)), "tau": bbvi.LogNormal()})
EFFECTS = {"effect": bbvi.Normal((NUM_COUNTIES,))}


def local():
    """Returns a guide with free parameters for every effect, and correlated shared latents."""
    return bbvi.Product(SHARED, bbvi.Local(EFFECTS))


class Encoder(nn.Module):
    """Location and log scale of the effects, from counts of houses and of high ones by floor."""

    @nn.compact
    def __call__(self, x):
        at_ground = x["mask"] * x["floor"]
        below = x["mask"] - at_ground
        floors = [at_ground, below, at_ground * x["outcome"], below * x["outcome"]]
        counts = [jnp.log1p(part.sum(axis=1)) for part in floors]
        features = jnp.stack([*counts, x["uranium"]], axis=1)
        hidden = nn.tanh(nn.Dense(NUM_UNITS)(features))
        out = nn.Dense(2)(hidden)
        return {"effect": {"loc": out[:, 0], "log_scale": out[:, 1]}}


def amortized():
    """Returns a guide whose parameters of an effect a network computes from the county's data."""
    return bbvi.Product(SHARED, bbvi.Amortized(EFFECTS, Encoder()))


def semi_amortized(num_samples=8):
    """Returns the amortized guide with steps from the network's output to each county's own."""
    effects = bbvi.SemiAmortized(EFFECTS, Encoder(), num_samples=num_samples)
    return bbvi.Product(SHARED, effects)


@functools.cache
def reference(num_nodes=5):
    """Integrates each effect by the trapezoidal rule, and the four shared latents by quadrature.

    With `num_nodes=7` an axis, log p(x) differs by 0.003, and means and deviations by at most a
    hundredth of a posterior deviation.
    """
    from scipy import stats
    from scipy.special import logsumexp, softmax

    x = _tables()
    floors = [x["mask"] * x["floor"], x["mask"] * (1.0 - x["floor"])]
    counts = [(of.sum(axis=1), (of * x["outcome"]).sum(axis=1)) for of in floors]
    # In deviations of the prior. Twice as many change log p(x) by less than 1e-6.
    nodes = np.linspace(-5.5, 5.5, 41)
    log_weights = stats.norm.logpdf(nodes) + np.log(nodes[1] - nodes[0])

    def log_terms(points):  # (n, 4) to (n, 85, 41)
        beta, tau = points[:, :3, None, None], points[:, 3, None, None] ** 2
        below = beta[:, 0] + beta[:, 2] * x["uranium"][:, None] + tau * nodes
        total = log_weights
        for (houses, high), logits in zip(counts, (below + beta[:, 1], below), strict=True):
            total = total + high[:, None] * logits - houses[:, None] * np.log1p(np.exp(logits))
        return total

    def log_density(points):
        log_prior = stats.norm.logpdf(points[:, :3], 0.0, 2.0).sum(axis=1)
        log_prior += stats.halfnorm.logpdf(points[:, 3] ** 2) + np.log(2.0 * np.abs(points[:, 3]))
        return log_prior + logsumexp(log_terms(points), axis=2).sum(axis=1)

    guess, guessed_sd = np.array([0.1, -1.3, 2.0, 0.63]), np.array([0.11, 0.22, 0.3, 0.11])
    log_evidence, points, weights = quadrature.adaptive_gauss_hermite(
        log_density, guess, np.diag(guessed_sd**2), num_nodes=num_nodes, num_adaptations=2
    )
    tau = points[:, 3] ** 2
    given = softmax(log_terms(points), axis=2)
    effect = weights @ (tau[:, None] * (given @ nodes))
    square = weights @ (tau[:, None] ** 2 * (given @ nodes**2))
    beta_mean, beta_sd = quadrature.moments(points[:, :3], weights)
    tau_mean, tau_sd = quadrature.moments(tau, weights)
    return Reference(
        how="quadrature over the shared latents and, given them, over each effect",
        log_evidence=log_evidence,
        mean={"beta": beta_mean, "tau": tau_mean, "effect": effect},
        sd={"beta": beta_sd, "tau": tau_sd, "effect": np.sqrt(square - effect**2)},
    )


register(
    Target(
        name="random_effects",
        log_joint=log_joint,
        data=data,
        guides={"local": local, "amortized": amortized},
        reference=reference,
        source="Gelman and Hill (2007), Data Analysis Using Regression and Multilevel/Hierarchical "
        "Models, chapters 12 and 14: their data of radon in Minnesota, as in the target radon.",
    )
)
