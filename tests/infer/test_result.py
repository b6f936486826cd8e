"""What a result offers, against a conjugate posterior known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from scipy import stats

import bbvi
from bbvi.diagnostics import psis_khat

X = np.array([1.8, 2.2, 2.0, 2.4])
# mu ~ N(0, 1), x_i ~ N(mu, 1): the posterior is N(sum x / 5, 1 / 5).
MEAN, SD = X.sum() / 5, 5**-0.5
LOG_EVIDENCE = stats.multivariate_normal(np.zeros(4), np.eye(4) + 1).logpdf(X)
GUIDE = bbvi.MeanField({"mu": bbvi.Normal(), "v": bbvi.Normal((2, 2))})


def log_joint(x, z):
    return norm.logpdf(z["mu"]) + norm.logpdf(x, z["mu"]).sum() + norm.logpdf(z["v"]).sum()


@functools.cache
def result(scale=1.0):
    """A fit of one step of no length, from the exact posterior (times ``scale``)."""
    start = GUIDE.params_at({"mu": MEAN, "v": jnp.zeros((2, 2))}, 1.0)
    log_scale = jnp.array([np.log(SD), 0.0, 0.0, 0.0, 0.0]) + np.log(scale)
    start = start._replace(normal=start.normal.at[1].set(log_scale))
    return bbvi.fit(
        log_joint,
        GUIDE,
        X,
        init_params=start,
        optimizer=optax.sgd(0.0),
        num_steps=200,
        progress=False,
    )


def test_draws_have_a_leading_axis():
    draws = result().sample(jax.random.key(0), 7)
    assert jax.tree.map(jnp.shape, draws) == {"mu": (7,), "v": (7, 2, 2)}
    many = result().sample(jax.random.key(0), 9000)
    assert many["mu"].mean() == pytest.approx(MEAN, abs=5 * SD / np.sqrt(9000))


def test_log_prob_is_that_of_the_guide():
    z = {"mu": np.float32(1.0), "v": np.full((2, 2), 0.5, np.float32)}
    wanted = stats.norm(MEAN, SD).logpdf(1.0) + 4 * stats.norm.logpdf(0.5)
    assert float(result().log_prob(z)) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="latent 'v' has shape"):
        result().log_prob(z | {"v": np.zeros((3, 2))})


def test_elbo_is_the_log_evidence_at_the_posterior():
    # The log weights are constant there, so the error is rounding.
    elbo = result().elbo(jax.random.key(0), 2000)
    assert elbo.value == pytest.approx(LOG_EVIDENCE, abs=1e-4)
    assert elbo.standard_error < 1e-5


def test_elbo_of_a_wrong_scale_is_lower_by_the_divergence_and_its_error_is_calibrated():
    scale = 1.5
    divergence = 5 * (0.5 * (scale**2 - 1) - np.log(scale))
    exact = LOG_EVIDENCE - divergence
    estimates = [result(scale).elbo(jax.random.key(seed), 500) for seed in range(40)]
    scores = [(estimate.value - exact) / estimate.standard_error for estimate in estimates]
    assert abs(np.mean(scores)) < 4 / np.sqrt(40)
    assert 0.6 < np.std(scores) < 1.5


def test_the_elbo_is_minus_the_loss():
    assert result(1.5).history.loss.mean() == pytest.approx(
        -result(1.5).elbo(jax.random.key(0), 4000).value, abs=0.5
    )


def test_summary_holds_the_posterior():
    rows = result().summary()
    assert list(rows) == ["mu", "v[0,0]", "v[0,1]", "v[1,0]", "v[1,1]"]
    row = rows["mu"]
    assert row["mean"] == pytest.approx(MEAN, abs=0.04)
    assert row["sd"] == pytest.approx(SD, rel=0.06)
    low, high = stats.norm(MEAN, SD).ppf([0.05, 0.95])
    assert (row["5%"], row["95%"]) == pytest.approx((low, high), abs=0.08)
    assert row["50%"] == pytest.approx(MEAN, abs=0.05)
    assert rows == result().summary()
    assert rows != result().summary(jax.random.key(5))


def test_printing_gives_a_verdict():
    text = repr(result(1.5))
    for part in ("status ", "ELBO ", "nats", "k-hat ", "trend ", "200 steps", "Reparameterization"):
        assert part in text
    assert "below 0.7" in text


def test_khat_finds_a_guide_that_is_too_narrow():
    # The exact shape is 1 - 0.25**2; with 1000 draws the estimate may still fall below 0.7.
    for seed in range(3):
        assert psis_khat(result(0.25).log_weights(jax.random.key(seed), 4000)) > 0.7
        assert psis_khat(result(1.2).log_weights(jax.random.key(seed), 4000)) < 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.sample(jax.random.key(0), 0), ValueError, "num_samples must be an int >= 1"),
        (lambda r: r.sample(jax.random.key(0), 2.0), ValueError, "num_samples must be an int >= 1"),
        (lambda r: r.sample(0, 10), TypeError, "key must be one typed key, got 0"),
        (lambda r: r.elbo(jax.random.key(0), 1), ValueError, "at least 2 draws, got 1"),
        (lambda r: r.log_prob({"mu": 1.0}), ValueError, "names and nesting must match"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(result())


def test_resampled_draws_are_the_posteriors():
    wide = result(1.4)
    z = wide.resample(jax.random.key(5), 20_000)
    assert z["v"].shape == (20_000, 2, 2)
    assert float(wide.sample(jax.random.key(5), 20_000)["mu"].std()) > 1.35 * SD
    # Weights of five latents leave some thousand effective draws: errors of about 0.015 sd.
    assert abs(float(z["mu"].mean()) - MEAN) < 0.08 * SD
    np.testing.assert_allclose(z["mu"].std(), SD, rtol=0.06)
    np.testing.assert_allclose(z["v"].std(axis=0), 1.0, rtol=0.06)
    again = wide.resample(jax.random.key(5), 20_000)
    np.testing.assert_array_equal(z["mu"], again["mu"])


def test_what_weights_cannot_correct_is_refused():
    with pytest.raises(ValueError, match=r"k-hat is .* above 0.7"):
        result(0.3).resample(jax.random.key(0), 100)
    half = bbvi.fit(
        lambda x, z: jnp.where(z["a"] > 0, -z["a"], -jnp.inf),
        bbvi.MeanField({"a": bbvi.Normal()}),
        optimizer=optax.sgd(0.0),
        num_steps=1,
        nonfinite="skip",
        progress=False,
    )
    with pytest.raises(ValueError, match="log weights are not finite"):
        half.resample(jax.random.key(0), 100)
    with pytest.raises(ValueError, match="num_samples must be an int >= 1"):
        result().resample(jax.random.key(0), 0)
