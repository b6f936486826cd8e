"""The suite on accuracy: the yardstick, the peers, the metrics, failures and a quick run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal

import bbvi
import models
from benchmarks import accuracy, accuracy_methods, report
from benchmarks.accuracy_methods import METHODS, Approximation, Posterior

MEAN = np.array([3.0, -1.0])
CORRELATION = 0.8
COVARIANCE = np.array([[4.0, 2.0 * CORRELATION], [2.0 * CORRELATION, 1.0]])
# Of a correlated pair from its best mean field.
DIVERGENCE = {"mean_field": -0.5 * np.log(1.0 - CORRELATION**2), "full_rank": 0.0}


@pytest.fixture
def gaussian(x64, monkeypatch):
    """A correlated pair, with reference draws that are off in mean and covariance."""
    sites = {"w": bbvi.Normal((2,))}
    target = models.Target(
        name="gaussian",
        log_joint=lambda x, z: multivariate_normal.logpdf(z["w"], MEAN, COVARIANCE),
        data=lambda: None,
        guides={
            "mean_field": lambda: bbvi.MeanField(sites),
            "full_rank": lambda: bbvi.FullRank(sites),
        },
        source="A test.",
    )
    rng = np.random.default_rng(0)
    off = rng.multivariate_normal(MEAN + 0.5, 1.5 * COVARIANCE + 0.3 * np.eye(2), size=1000)
    monkeypatch.setattr(accuracy_methods.posteriors, "draws", lambda name: {"w": off})
    return Posterior(target, None)


def test_weights_of_the_exact_gaussian_are_one(gaussian):
    exact = gaussian.gaussian(jnp.asarray(MEAN), jnp.linalg.cholesky(COVARIANCE), None)
    np.testing.assert_allclose(exact.log_weights(jax.random.key(0), 100), 0.0, atol=1e-12)
    draws = exact.sample(jax.random.key(0), 20_000)["w"]
    np.testing.assert_allclose(draws.mean(axis=0), MEAN, atol=5.0 * 2.0 / np.sqrt(20_000))


def test_best_full_rank_finds_a_gaussian(gaussian):
    found = accuracy_methods.best("full_rank", gaussian, 1000)(jax.random.key(0))
    np.testing.assert_allclose(found.log_weights(jax.random.key(1), 1000), 0.0, atol=1e-2)


def test_best_mean_field_is_the_one_of_a_gaussian(gaussian):
    found = accuracy_methods.best("mean_field", gaussian, 1000)(jax.random.key(0))
    sd = np.diag(np.linalg.inv(COVARIANCE)) ** -0.5
    closed = gaussian.gaussian(jnp.asarray(MEAN), jnp.diag(jnp.asarray(sd)), None)

    def drawn(approximation):
        """Common draws, so that little of a difference is noise."""
        key = jax.random.key(1)
        with jax.debug_key_reuse(False):
            return approximation.sample(key, 1000)["w"], approximation.log_weights(key, 1000)

    (draws, log_weights), (expected, closed_log_weights) = drawn(found), drawn(closed)
    np.testing.assert_allclose(draws.mean(axis=0), expected.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(draws.std(axis=0), expected.std(axis=0), rtol=0.02)
    elbo, expected_elbo = float(log_weights.mean()), float(closed_log_weights.mean())
    assert elbo == pytest.approx(expected_elbo, abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in METHODS if n.startswith(("numpyro", "blackjax"))])
def test_peers_approach_a_gaussian(name, gaussian):
    # Peers rely on broadcasting.
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        found = METHODS[name].prepare(gaussian, 4000)(jax.random.key(0))
        log_weights = np.asarray(found.log_weights(jax.random.key(1), 4000))
        draws = found.sample(jax.random.key(2), 4000)["w"]
    # At a rate that stays, steps of one draw end about a quarter of a deviation away.
    np.testing.assert_array_less(
        np.abs(draws.mean(axis=0) - MEAN) / np.diag(COVARIANCE) ** 0.5, 0.8
    )
    assert -log_weights.mean() == pytest.approx(DIVERGENCE[METHODS[name].family], abs=0.4)


def test_errors_are_those_of_moments_in_deviations():
    posterior = Posterior.of("gp_regr")
    reference = posterior.target.reference()

    def sample(key, num_draws):
        """Means of rho off by one deviation, deviations of alpha twice too large."""
        del key
        signs = np.resize([-1.0, 1.0], num_draws)
        width, shift = {"alpha": 2.0}, {"rho": 1.0}
        return {
            latent: mean
            + reference.sd[latent] * (shift.get(latent, 0.0) + width.get(latent, 1.0) * signs)
            for latent, mean in reference.mean.items()
        }

    found = accuracy.errors(posterior, Approximation(sample, lambda *_: None, None), None)
    expected = {"max_mean_error": 1.0, "max_sd_error": np.log(2.0)}
    expected |= {key.replace("max", "mean", 1): value / 3.0 for key, value in expected.items()}
    assert found == pytest.approx(expected, abs=1e-9)


QUICK = ["--models", "gp_regr", "--methods", "bbvi_mean_field", "best_mean_field", "--quick"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("accuracy") / "found.json"
    accuracy.main([*QUICK, "--out", str(out)])
    return out


def test_quick_run(found):
    ours, yardstick = json.loads(found.read_text())["cases"]
    assert ours["case"] == "gp_regr, bbvi_mean_field"
    assert "failed" not in ours, ours["failed"]
    assert ours["settings"] == {
        "seed": 0,
        "how": METHODS["bbvi_mean_field"].how,
        "num_steps": accuracy.QUICK_STEPS,
    }
    assert ours["environment"]["dtype"] == "float64"
    assert yardstick["gradients"] == accuracy.QUICK_STEPS * accuracy_methods.BEST_SAMPLES
    assert yardstick["max_mean_error"] < 0.1
    assert yardstick["elbo"] == pytest.approx(-27.56, abs=0.05)
    assert yardstick["elbo"] > ours["elbo"] - 5.0 * np.hypot(
        ours["elbo_error"], yardstick["elbo_error"]
    )
    text = found.with_suffix(".md").read_text()
    assert text == report.markdown(json.loads(found.read_text()))
    for title in accuracy.TABLES.values():
        assert f"## {title}" in text
    assert found.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_measured_again(found, monkeypatch):
    def fail(*_):
        raise AssertionError("measured again")

    before = found.read_text()
    monkeypatch.setattr(accuracy, "run_case", fail)
    accuracy.main([*QUICK, "--out", str(found)])
    assert found.read_text() == before
    with pytest.raises(AssertionError, match="measured again"):
        accuracy.main([*QUICK, "--seed", "1", "--out", str(found)])


def test_a_failure_is_a_result(found, monkeypatch):
    def prepare(*_):
        raise ValueError("no such luck\nand a long story")

    failing = dataclasses.replace(METHODS["blackjax_pathfinder"], prepare=prepare)
    monkeypatch.setitem(METHODS, "blackjax_pathfinder", failing)
    settings = {"seed": 0, "how": failing.how, "num_steps": None}
    case = accuracy.run_case("sblri", "blackjax_pathfinder", settings)
    results = json.loads(found.read_text())
    text = "\n".join(accuracy.tables(results | {"cases": [*results["cases"], case]}))
    assert "| sblri | blackjax_pathfinder | ValueError: no such luck |" in text
    # One of `posteriors.MORE` has its row in each table too.
    assert text.count("| sblri |") == len(accuracy.TABLES) + 1
    row, _ = [line for line in text.splitlines() if line.startswith("| blackjax_pathfinder")]
    assert row.split(" | ")[2:6] == ["1", "inf", "0%", "100%"]
