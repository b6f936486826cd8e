"""``Auto``: it climbs where there is something to gain, from where it was, and no further."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.diagnostics import MonteCarlo
from bbvi.infer.ladder import Rung, _is_better, _is_enough

pytestmark = pytest.mark.usefixtures("optimized")


def names(result):
    return [type(rung.guide).__name__ for rung in result.ladder]


def chosen(result):
    return type(result.problem.guide).__name__


def elbo(result):
    return result.elbo(jax.random.key(7), 4000)


def test_independent_latents_stay_independent():
    def log_joint(x, z):
        return norm.logpdf(z["a"], 3.0, 0.1).sum() + norm.logpdf(jnp.log(z["b"])) - jnp.log(z["b"])

    sites = {"a": bbvi.Normal((2,)), "b": bbvi.LogNormal()}
    result = bbvi.fit(log_joint, bbvi.Auto(sites), progress=False)
    assert names(result) == ["MeanField"]
    assert abs(elbo(result).value) < 0.01
    assert "ladder   MeanField" in repr(result)


def test_correlated_latents_get_a_covariance_and_no_more():
    def log_joint(x, z):
        a, b = z["w"]
        return norm.logpdf(a, 500.0, 10.0) + norm.logpdf(b, a / 100.0, 0.01)

    result = bbvi.fit(log_joint, bbvi.Auto({"w": bbvi.Normal((2,))}), progress=False)
    assert names(result) == ["MeanField", "FullRank"]
    assert chosen(result) == "FullRank"
    assert -0.04 < elbo(result).value < 0.01  # the evidence is 1
    assert result.ladder[0].elbo.value < -0.5


def test_a_bent_posterior_gets_a_flow():
    def log_joint(x, z):
        a, b = z["w"]
        return norm.logpdf(a) + norm.logpdf(b, a**2, 0.5)

    result = bbvi.fit(log_joint, bbvi.Auto({"w": bbvi.Normal((2,))}), progress=False)
    assert names(result)[:2] == ["MeanField", "FullRank"]
    assert chosen(result) == "NormalizingFlow"
    assert elbo(result).value > -0.03 > -0.3 > result.ladder[1].elbo.value
    assert result.ladder[-1].gap < 0.01


def test_two_modes_get_a_mixture_though_each_alone_looks_good():
    def log_joint(x, z):
        near = norm.logpdf(z["w"], -1.0, 0.1).sum() + jnp.log(0.3)
        return jnp.logaddexp(near, norm.logpdf(z["w"], 1.0, 0.1).sum() + jnp.log(0.7))

    result = bbvi.fit(log_joint, bbvi.Auto({"w": bbvi.Normal((2,))}), progress=False)
    assert chosen(result) == "Mixture"
    # A Gaussian at one mode has weights that do not vary: nothing to be seen in its k-hat.
    assert result.ladder[0].gap < 0.01
    assert -0.04 < elbo(result).value < 0.01
    share = (result.sample(jax.random.key(1), 10_000)["w"][:, 0] > 0).mean()
    assert abs(float(share) - 0.7) < 0.02


def test_discrete_latents_stay_beside_a_covariance():
    def log_joint(x, z):
        a, b = z["w"]
        prior = jnp.where(z["c"] == 1, jnp.log(0.8), jnp.log(0.2))
        return norm.logpdf(a, 1.0 * z["c"]) + norm.logpdf(b, a, 0.2) + prior

    sites = {"w": bbvi.Normal((2,)), "c": bbvi.Bernoulli()}
    result = bbvi.fit(log_joint, bbvi.Auto(sites), progress=False)
    assert names(result) == ["MeanField", "Product"]
    assert chosen(result) == "Product"
    assert result.ladder[1].elbo.value > result.ladder[0].elbo.value + 0.5


def test_a_learned_model_is_handed_on():
    def log_joint(x, z, theta):
        a, b = z["w"]
        noise = norm.logpdf(x, a + theta["shift"], 0.1).sum()
        return norm.logpdf(a, 0.0, 0.1) + norm.logpdf(b, a, 0.01) + noise

    x = jnp.array([2.0, 2.1])
    auto, theta = bbvi.Auto({"w": bbvi.Normal((2,))}), {"shift": jnp.zeros(())}
    result = bbvi.fit(log_joint, auto, x, model_params=theta, progress=False)
    assert chosen(result) == "FullRank"
    assert abs(float(result.params.model["shift"]) - 2.05) < 0.02


def rung(value, error, khat, gap):
    return Rung(None, "converged", MonteCarlo(value, error), khat, gap, 1.0)


def test_what_is_enough_and_what_is_better():
    assert _is_enough(rung(0.0, 0.01, 1.0, 0.01))  # weights that hardly vary
    assert _is_enough(rung(0.0, 0.01, 0.5, 0.09))
    assert not _is_enough(rung(0.0, 0.01, 0.8, 0.09))
    assert not _is_enough(rung(0.0, 0.01, 0.5, 0.2))
    assert _is_better(rung(0.0, 0.01, 0.5, 0.2), rung(-0.1, 0.01, 0.5, 0.2))
    assert not _is_better(rung(0.0, 0.05, 0.5, 0.2), rung(-0.1, 0.05, 0.5, 0.2))
    assert not _is_better(rung(-np.inf, np.inf, np.inf, np.inf), rung(0.0, 0.1, 0.5, 0.2))


def test_options_that_belong_to_one_guide_are_refused():
    def log_joint(x, z):
        return -0.5 * z["a"] ** 2

    auto = bbvi.Auto({"a": bbvi.Normal()})
    with pytest.raises(ValueError, match="Auto chooses optimizer by itself"):
        bbvi.fit(log_joint, auto, optimizer=optax.adam(0.1))
    with pytest.raises(ValueError, match="Auto chooses batch_size, num_restarts by itself"):
        bbvi.fit(log_joint, auto, batch_size=2, num_restarts=2)
    with pytest.raises(ValueError, match="on all data at once, got a Loader"):
        bbvi.fit(log_joint, auto, bbvi.Loader([jnp.zeros(2)], num_data=2))
    with pytest.raises(TypeError, match=r"bbvi.Auto\(\{...\}\) for fit to choose one, got 'auto'"):
        bbvi.fit(log_joint, "auto")
    with pytest.raises(TypeError, match="MeanField got 3 for latent 'a'"):
        bbvi.Auto({"a": 3})
    with pytest.raises(ValueError, match="latent"):  # as for any guide: b is not there
        bbvi.fit(lambda x, z: z["b"], auto)
