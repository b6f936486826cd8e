"""Calibration on simulated data: where the posterior is known, and where the family is wrong."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from scipy import stats

import bbvi
from bbvi.calibration import symmetry_p

FULL = bbvi.FullRank({"m": bbvi.Normal((2,))})
NUM_DATA = 4


def simulate(key):
    """Two means, of which the data see the sum: they are correlated in the posterior."""
    prior, noise = jax.random.split(key)
    m = jax.random.normal(prior, (2,))
    return {"m": m}, m.sum() + jax.random.normal(noise, (NUM_DATA,))


def log_joint(x, z):
    return norm.logpdf(z["m"]).sum() + norm.logpdf(x, z["m"].sum()).sum()


def check(joint=log_joint, guide=FULL, simulator=simulate, **options):
    settings = {"num_replications": 100, "num_steps": 400, "progress": False} | options
    return bbvi.check_calibration(simulator, joint, guide, **settings)


# The test of symmetry.


def test_symmetry_p_is_exact():
    """Against all 2^8 assignments of signs to eight distances from 1/2."""
    distances = np.array([0.05, 0.11, 0.18, 0.2, 0.29, 0.33, 0.4, 0.47])

    def statistic(values):
        grid = np.sort(np.r_[values, 1 - values])
        below = (values[:, None] <= grid[None]).mean(axis=0)
        mirrored = (1 - values[:, None] <= grid[None]).mean(axis=0)
        return np.max(np.abs(below - mirrored))

    everything = [0.5 + np.array(s) * distances for s in itertools.product((-1, 1), repeat=8)]
    all_statistics = np.array([statistic(values) for values in everything])
    for values, own in list(zip(everything, all_statistics, strict=True))[::17]:
        assert symmetry_p(values) == pytest.approx(np.mean(all_statistics >= own - 1e-9))


def test_symmetry_p_of_symmetric_values_is_seldom_small():
    """The share of p-values below 5 % is at most that: the statistic is discrete."""
    rng = np.random.default_rng(0)
    small = np.mean([symmetry_p(rng.beta(0.5, 0.5, 200)) < 0.05 for _ in range(1000)])
    assert 0.02 < small < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_symmetry_p_sees_half_a_deviation():
    values = stats.norm.cdf(np.random.default_rng(0).normal(0.5, 1.0, 100))
    assert symmetry_p(values) < 1e-3


# Fits.


def test_exact_posteriors_are_calibrated():
    found = check(num_replications=100)
    assert found.biased == ()
    assert list(found.p_values) == ["m[0]", "m[1]"]
    for row in found.rows:
        assert abs(row.bias) < 4 * np.sqrt(1 / 12 / 100)
        assert abs(row.coverage - 0.9) < 4 * row.coverage_error
    for values in found.p_values.values():
        assert stats.kstest(values, "uniform").pvalue > 1e-3
    text = str(found)
    assert "100 replications: fits ended as" in text
    assert "no significant bias (5 % over all 2 latents)" in text


def test_a_bias_of_half_a_deviation_is_found():
    """Data shifted by h move the posterior mean of m by 4 h / 9, whose sd is sqrt(5 / 9)."""
    shift = 0.5 * np.sqrt(5 / 9) * 9 / 4
    found = check(lambda x, z: log_joint(x + shift, z))
    assert set(found.biased) == {"m[0]", "m[1]"}
    # P(z < z0) is Phi(e - 1/2), e standard normal: 0.5 - its mean is Phi(1 / sqrt(8)) - 0.5.
    wanted = stats.norm.cdf(0.5 / np.sqrt(2)) - 0.5
    for row in found.rows:
        assert row.bias == pytest.approx(wanted, abs=4 * np.sqrt(1 / 12 / 100))
    assert "too high" in str(found)


def test_mean_field_is_too_narrow_on_correlated_means():
    """Its sd is sqrt(1 / 5) where the posterior's is sqrt(5 / 9): no bias, but low coverage."""
    found = check(guide=bbvi.MeanField({"m": bbvi.Normal((2,))}))
    inside = stats.norm.cdf(stats.norm.ppf(0.95) * np.sqrt(9 / 25))
    for row in found.rows:
        assert row.coverage == pytest.approx(2 * inside - 1, abs=4 * np.sqrt(0.22 / 100))
    assert found.biased == ()


def test_the_scale_of_a_centred_hierarchy_is_biased():
    """Data say little about a small tau: its posterior has a long tail that mean field lacks."""

    def simulate(key):
        keys = jax.random.split(key, 3)
        tau = jnp.exp(2.0 * jax.random.normal(keys[0]))
        theta = tau * jax.random.normal(keys[1], (8,))
        return {"tau": tau, "theta": theta}, theta + jax.random.normal(keys[2], (8,))

    def log_joint(x, z):
        tau = z["tau"]
        prior = norm.logpdf(jnp.log(tau), 0.0, 2.0) - jnp.log(tau)
        prior = prior + norm.logpdf(z["theta"], 0.0, tau).sum()
        return prior + norm.logpdf(x, z["theta"]).sum()

    guide = bbvi.MeanField({"tau": bbvi.LogNormal(), "theta": bbvi.Normal((8,))})
    found = check(log_joint, guide, simulate, num_replications=100)
    assert found.biased == ("tau",)
    assert found.rows[0].bias > 0.1  # too high


def test_discrete_latents_are_ranked_within_their_value():
    """Two states seen through noise: exact posteriors are uniform only if ties are broken."""

    def simulate(key):
        prior, noise = jax.random.split(key)
        b = jax.random.bernoulli(prior, 0.3).astype(jnp.int32)
        return {"b": b}, b + 0.7 * jax.random.normal(noise)

    def log_joint(x, z):
        return jnp.log(jnp.where(z["b"] == 1, 0.3, 0.7)) + norm.logpdf(x, 1.0 * z["b"], 0.7)

    guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
    found = check(log_joint, guide, simulate, optimizer=optax.adam(0.1))
    assert stats.kstest(found.p_values["b"], "uniform").pvalue > 1e-3


def test_all_fits_are_one_program():
    traces = []

    def counted(x, z):
        traces.append(None)
        return log_joint(x, z)

    check(counted, num_replications=20, num_steps=50)
    first = len(traces)
    check(counted, num_replications=40, num_steps=50)
    assert len(traces) == first


def test_fits_that_are_not_finite_are_counted():
    def sometimes(x, z):
        return jnp.where(x.mean() > 0, log_joint(x, z), jnp.nan)

    found = check(sometimes, num_replications=20, num_steps=20)
    assert 0 < found.num_failed < 20
    assert len(found.p_values["m[0]"]) == 20 - found.num_failed
    with pytest.raises(ValueError, match="none of 20 fits stayed finite"):
        check(lambda x, z: log_joint(x, z) * jnp.nan, num_replications=20, num_steps=20)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_replications": 5}, ValueError, "num_replications must be an int >= 20, got 5"),
        ({"num_samples": 10}, ValueError, "num_samples must be an int >= 100, got 10"),
        ({"simulator": lambda key: {"m": 0.0}}, TypeError, "must return latents and data"),
        (
            {"simulator": lambda key: ({"m": jnp.zeros(3)}, jnp.zeros(4))},
            ValueError,
            r"latents \{m: float32\[3\]\}, but those of the guide are \{m: float32\[2\]\}",
        ),
        ({"key": 0}, TypeError, "key must be one typed key"),
        ({"learning_rate": 1}, TypeError, "unexpected keyword argument 'learning_rate'"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        check(**options)
