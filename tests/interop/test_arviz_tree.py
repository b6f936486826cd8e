"""Fits in the form of ArviZ: values, shapes and attributes."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.diagnostics import monte_carlo_mean, psis_khat

pytest.importorskip("arviz_base")

X = {"y": np.array([1.8, 2.2, 2.0, 2.4], np.float32), "covariates": {"scale": np.float32(0.5)}}
GUIDE = bbvi.MeanField({"mu": bbvi.Normal(), "v": bbvi.LogNormal((2, 3)), "b": bbvi.Bernoulli()})


def log_joint(x, z):
    scale = x["covariates"]["scale"]
    likelihood = norm.logpdf(x["y"], z["mu"] + z["b"], scale).sum()
    return norm.logpdf(z["mu"]) + norm.logpdf(jnp.log(z["v"])).sum() + likelihood


@pytest.fixture(scope="module")
def result():
    return bbvi.fit(
        log_joint,
        GUIDE,
        X,
        estimator=bbvi.VarGrad(4),
        num_steps=50,
        optimizer=optax.adam(1e-2),
        progress=False,
    )


def test_draws_are_one_chain_and_their_densities_are_those_of_model_and_guide(result):
    tree = result.to_arviz(jax.random.key(3), 200)
    posterior = tree.posterior
    assert dict(posterior["v"].sizes) == {"chain": 1, "draw": 200, "v_dim_0": 2, "v_dim_1": 3}
    assert posterior["b"].dtype == np.int32
    for draw in (0, 57, 199):
        z = {name: jnp.asarray(posterior[name].values[0, draw]) for name in ("mu", "v", "b")}
        stats = tree.sample_stats.isel(chain=0, draw=draw)
        np.testing.assert_allclose(stats["lp"], log_joint(X, z), rtol=1e-5)
        np.testing.assert_allclose(stats["log_q"], result.log_prob(z), rtol=1e-4)
    assert float(posterior["mu"].std()) > 0.01


def test_data_are_there_by_path(result):
    data = result.to_arviz(num_samples=100).observed_data
    np.testing.assert_array_equal(data["y"], X["y"])
    assert float(data["covariates.scale"]) == 0.5


def test_attributes_are_those_of_the_draws(result):
    tree = result.to_arviz(num_samples=300)
    weights = (tree.sample_stats["lp"] - tree.sample_stats["log_q"]).values[0]
    elbo = monte_carlo_mean(weights)
    assert tree.attrs["elbo"] == pytest.approx(elbo.value, rel=1e-6)
    assert tree.attrs["elbo_standard_error"] == pytest.approx(elbo.standard_error, rel=1e-4)
    assert tree.attrs["khat"] == pytest.approx(psis_khat(weights), abs=1e-4)
    assert tree.attrs["status"] == result.status
    assert tree.attrs["num_steps"] == 50


def test_a_scoped_latent_without_data():
    lone = bbvi.fit(
        lambda x, z: norm.logpdf(z["scope/a"]),
        bbvi.MeanField({"scope/a": bbvi.Normal()}),
        num_steps=10,
        optimizer=optax.adam(1e-2),
        progress=False,
    )
    tree = lone.to_arviz(num_samples=100)
    assert list(tree.posterior) == ["scope.a"]
    assert "observed_data" not in tree.children


def test_tools_of_arviz_take_it(result):
    arviz_base = pytest.importorskip("arviz_base")
    draws = arviz_base.extract(result.to_arviz(num_samples=300))["v"]
    assert draws.sizes["sample"] == 300
    row = result.summary(num_samples=300)["v[1,2]"]
    assert float(draws[1, 2].mean()) == pytest.approx(row["mean"], abs=0.03)


def test_errors(result, monkeypatch):
    with pytest.raises(ValueError, match="at least 100 draws, got 99"):
        result.to_arviz(num_samples=99)
    with pytest.raises(TypeError, match="key must be one typed key"):
        result.to_arviz(key=3)
    original = builtins.__import__

    def without_arviz(name, *args, **kwargs):
        if name == "arviz_base":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_arviz)
    with pytest.raises(ImportError, match=r"needs arviz-base: pip install 'bbvi\[interop\]'"):
        result.to_arviz(num_samples=100)
