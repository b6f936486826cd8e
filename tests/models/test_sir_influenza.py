import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

import models
from models.sir_influenza import LATENTS, simulate, simulate_in_jax


def test_simulation_equals_an_adaptive_solver():
    def slope(_, state):
        infections = 1.8 * state[0] * state[1] / 763.0
        return [-infections, infections - 0.5 * state[1]]

    days = np.arange(1.0, 15.0)
    solved = integrate.solve_ivp(slope, (0, 14), [762, 1], t_eval=days, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(simulate(1.8, 0.5, 763.0, num_days=14), solved.y[1], rtol=2e-5)


@pytest.mark.usefixtures("x64")
def test_batches_of_draws_and_of_data_are_simulated_elementwise():
    rates = np.array([[1.5, 1.7, 1.9], [1.4, 1.6, 1.8]])
    pupils = np.array([763.0, 500.0])

    def run(rate, size):
        return simulate_in_jax(rate, 0.5, size, num_days=14)

    batched = jax.jit(jax.vmap(jax.vmap(run, in_axes=(0, None))))(rates, pupils)
    looped = [
        [simulate(r, 0.5, n, num_days=14) for r in row]
        for row, n in zip(rates, pupils, strict=True)
    ]
    np.testing.assert_allclose(batched, looped, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_log_joint_is_prior_plus_likelihood():
    x = models.sir_influenza.data()
    infected = simulate(1.8, 0.5, 763.0, num_days=14)
    size = 1.0 / 0.2
    expected = (
        stats.truncnorm.logpdf(1.8, -2.0, np.inf, loc=2.0)
        + stats.truncnorm.logpdf(0.5, -0.8, np.inf, loc=0.4, scale=0.5)
        + stats.expon.logpdf(0.2, scale=1 / 5)
        + stats.nbinom.logpmf(np.asarray(x["in_bed"]), size, size / (size + infected)).sum()
    )
    z = dict(zip(LATENTS, jnp.asarray([1.8, 0.5, 0.2]), strict=True))
    assert models.sir_influenza.log_joint(x, z) == pytest.approx(expected, rel=1e-11)


def test_log_joint_refuses_to_be_differentiated():
    x = models.sir_influenza.data()
    z = dict(zip(LATENTS, jnp.asarray([1.8, 0.5, 0.2]), strict=True))
    assert not models.get("sir_influenza").differentiable
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(models.sir_influenza.log_joint, argnums=1)(x, z)


@pytest.mark.usefixtures("x64")
def test_reference_equals_importance_sampling():
    """Proposes log-Student's t draws around the reference, weighted with the log joint itself."""
    reference, x = models.sir_influenza.reference(), models.sir_influenza.data()
    mean = np.array([reference.mean[name] for name in LATENTS])
    relative = np.array([reference.sd[name] for name in LATENTS]) / mean
    standardised = stats.t.rvs(7, size=(20_000, 3), random_state=0)
    z = mean * np.exp(relative * standardised)
    log_proposal = (stats.t.logpdf(standardised, 7) - np.log(relative * z)).sum(axis=1)
    log_joint = jax.jit(jax.vmap(models.sir_influenza.log_joint, in_axes=(None, 0)))
    draws = dict(zip(LATENTS, jnp.asarray(z.T), strict=True))
    log_weights = np.asarray(log_joint(x, draws)) - log_proposal
    weights = special.softmax(log_weights)
    assert 1.0 / np.sum(weights**2) > 4000.0

    sampled = weights @ z
    sampled_sd = np.sqrt(weights @ (z - sampled) ** 2)
    np.testing.assert_allclose((sampled - mean) / (relative * mean), 0.0, atol=0.06)
    np.testing.assert_allclose(sampled_sd / (relative * mean), 1.0, atol=0.1)
    log_evidence = special.logsumexp(log_weights) - np.log(len(z))
    assert log_evidence == pytest.approx(reference.log_evidence, abs=0.05)
