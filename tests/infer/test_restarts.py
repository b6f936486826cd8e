"""Runs from different starts: the best is returned, and disagreement is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi


def fit(joint, family, **options):
    settings = {"optimizer": optax.adam(0.05), "progress": False}
    return bbvi.fit(joint, family, **(settings | options))


def test_restarts_return_the_best_mode_and_report_disagreement():
    def bimodal(x, z):  # modes at -4 and 4; the right one has 20 times the mass
        return jnp.logaddexp(
            jnp.log(0.05) + norm.logpdf(z["mu"], -4.0, 0.5),
            jnp.log(0.95) + norm.logpdf(z["mu"], 4.0, 0.5),
        )

    family = bbvi.MeanField({"mu": bbvi.Normal()})
    result = fit(bimodal, family, num_restarts=6, num_steps=600, key=jax.random.key(1))
    elbos = [elbo.value for elbo in result.restarts.elbos]
    assert len(elbos) == 6
    assert np.argmax(elbos) == result.restarts.best
    assert result.restarts.disagreement[result.restarts.best] == 0
    assert result.summary()["mu"]["mean"] == pytest.approx(4.0, abs=0.3)
    located = np.asarray(result.restarts.states.params.guide.normal)[:, 0, 0]
    if (located < 0).any():
        assert result.restarts.disagreement.max() > 5
    assert result.history.loss.shape == (600,)
    assert "restarts 6" in repr(result)
    assert family == result.problem.guide


def test_disagreement_is_measured_in_standard_deviations_of_both_runs():
    # A site saturated in the best run has no spread of its own.
    family = bbvi.MeanField({"b": bbvi.Bernoulli()})
    result = fit(lambda x, z: 8.0 * z["b"], family, num_restarts=3, num_steps=800)
    assert (result.restarts.disagreement < 1.0).all()
