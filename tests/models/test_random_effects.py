import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

import bbvi
from models import random_effects
from models.data import load


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_scipy_house_by_house(draw):
    """From the list of houses as it is stored, rather than from counties."""
    z, houses = draw("random_effects"), load("radon")
    beta, tau, effect = (np.asarray(z[name]) for name in ("beta", "tau", "effect"))
    fitted = beta[0] + beta[1] * houses["floor"] + beta[2] * houses["log_uppm"]
    probs = special.expit(fitted + effect[houses["county"]])
    is_high = houses["log_radon"] > np.log(4.0)
    expected = stats.bernoulli.logpmf(is_high, probs).sum()
    expected += stats.norm.logpdf(beta, 0.0, 2.0).sum() + stats.halfnorm.logpdf(tau)
    expected += stats.norm.logpdf(effect, 0.0, tau).sum()
    actual = random_effects.log_joint(random_effects.data(), z)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_what_is_masked_changes_nothing(draw):
    x, z = random_effects.data(), draw("random_effects")
    altered = x | {name: jnp.where(x["mask"], x[name], 7.0) for name in ("outcome", "floor")}
    assert random_effects.log_joint(altered, z) == random_effects.log_joint(x, z)
    guide = random_effects.amortized()
    params = guide.init(jax.random.key(0), x)
    for name in ("loc", "log_scale"):
        own = [guide.guides[1].network.apply(params[1], data)["effect"] for data in (x, altered)]
        np.testing.assert_array_equal(own[0][name], own[1][name])


def test_reference_does_not_change_with_finer_quadrature():
    coarse, fine = random_effects.reference(), random_effects.reference(num_nodes=6)
    assert fine.log_evidence == pytest.approx(coarse.log_evidence, abs=0.005)
    for name, mean in coarse.mean.items():
        sd = coarse.sd[name]
        np.testing.assert_array_less(np.abs(fine.mean[name] - mean), 0.01 * sd)
        np.testing.assert_allclose(fine.sd[name], sd, rtol=0.01)


@pytest.mark.parametrize(
    "build", [random_effects.local, random_effects.amortized, random_effects.semi_amortized]
)
def test_batches_of_counties_approach_the_posterior(build):
    """The ELBO is 2.1 nats below log p(x) at the optimum without batches: near that, and below."""
    num_steps, x = 5000, random_effects.data()
    result = bbvi.fit(
        *(random_effects.log_joint, build(), x),
        estimator=bbvi.Reparameterization(4),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, num_steps)),
        batch_size=17,
        num_steps=num_steps,
        progress=False,
    )
    result = result.at(x, rows=np.arange(85))
    reference, elbo = random_effects.reference(), result.elbo(jax.random.key(1), 4000)
    assert elbo.standard_error < 0.05
    assert -3.5 < elbo.value - reference.log_evidence < -2.0
    draws = result.sample(jax.random.key(2), 2000)
    for name, mean in reference.mean.items():
        gap = np.abs(np.mean(draws[name], axis=0) - mean) / reference.sd[name]
        assert gap.max() < 0.5
