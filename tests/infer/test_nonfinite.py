"""What happens when a loss or a gradient is not finite."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi

GUIDE = bbvi.MeanField({"other": bbvi.Normal(), "tau": bbvi.Normal()})
START = GUIDE.params_at({"other": 0.0, "tau": 1.0}, 0.3)


def log_joint(x, z):
    """-inf outside tau > 0."""
    inside = jnp.where(z["tau"] > 0, -z["tau"], -jnp.inf)
    return inside + 0.5 * jnp.log(jnp.abs(z["tau"])) + norm.logpdf(z["other"], x)


# A line each: how often, which term, what it reads there, in which operation, why, and what to do.
MESSAGE = r"""(?x)step\ \d+:\ the\ loss\ is\ inf\.\n
  \ \ draws\ \ log_joint\ is\ -inf\ at\ \d\ of\ 8\ draws\ of\ the\ step\n
  \ \ term\ \ \ select_n\ at\ test_nonfinite.py:\d+,\ is\ -inf\n
  \ \ reads\ \ tau\ =\ -0\.\d+\n
  \ \ where\ \ select_n\(0,\ -inf,\ 0\.\d+\)\ at\ test_nonfinite.py:\d+\n
  \ \ cause\ \ The\ model\ is\ -inf\ here:.*support\.\n
  \ \ try\ \ \ \ Give\ latent\ 'tau'\ its\ support,.*positive\)\.\n
  \ \ state\ \ The\ last\ good\ state.*skip"""


def fit(joint=log_joint, x=0.5, **options):
    settings = {
        "key": jax.random.key(2),
        "optimizer": optax.adam(1e-2),
        "num_steps": 400,
        "init_params": START,
        "progress": False,
    }
    return bbvi.fit(joint, GUIDE, x, **(settings | options))


@pytest.mark.usefixtures("optimized")
def test_raise_names_the_step_and_the_latent_and_keeps_the_last_good_state():
    with pytest.raises(bbvi.NonFiniteError, match=MESSAGE) as caught:
        fit()
    result = caught.value.result
    halted = int(result.state.step)
    assert 0 < halted < 400
    assert f"step {halted}:" in str(caught.value)
    assert result.status == "nonfinite"
    assert result.history.loss.shape == (halted,)
    assert np.isfinite(result.history.loss).all()
    before = fit(num_steps=halted)
    chex.assert_trees_all_equal(result.state.params, before.state.params)
    chex.assert_trees_all_equal(result.state.opt_state, before.state.opt_state)
    assert result.sample(jax.random.key(1), 5)["tau"].shape == (5,)


@pytest.mark.parametrize("options", [{"throw": False}, {"nonfinite": "stop"}])
def test_a_result_is_returned_when_asked(options):
    result = fit(**options)
    assert result.status == "nonfinite"
    assert "support" in result.detail
    assert "status   nonfinite: step" in repr(result)
    assert np.isfinite(result.state.params.guide.normal).all()


def test_skip_counts_the_steps_left_out():
    result = fit(nonfinite="skip")
    bad = ~np.isfinite(result.history.loss)
    assert int(result.state.step) == 400
    assert int(result.state.skipped) == bad.sum() > 0
    assert np.isfinite(result.state.params.guide.normal).all()
    assert f"skipped  {bad.sum()} steps" in repr(result)


def test_skipped_steps_do_not_keep_a_run_from_stopping():
    def mostly_good(x, z):  # NaN beyond two and a half standard deviations
        bad = jnp.where(jnp.abs(z["other"]) > 2.5, jnp.nan, 0.0)
        return norm.logpdf(z["other"]) + norm.logpdf(z["tau"]) + bad

    result = fit(mostly_good, optimizer=None, num_steps=None, init_params=None, nonfinite="skip")
    assert int(result.state.skipped) > 0
    assert result.status == "converged"
    assert int(result.state.step) < 100_000


def test_gradient_that_is_not_finite_at_a_finite_loss():
    def joint(x, z):
        root = jnp.where(z["tau"] > 0, jnp.sqrt(jnp.maximum(z["tau"], 0.0)), 0.0)
        return norm.logpdf(z["other"]) + norm.logpdf(z["tau"]) + root

    with pytest.raises(
        bbvi.NonFiniteError, match=r"(?s)gradient is not finite.*tau.*jnp.where"
    ) as got:
        fit(joint, init_params=GUIDE.params_at({"other": 0.0, "tau": -1.0}))
    assert np.isfinite(got.value.result.history.loss).all()
    assert int(got.value.result.state.step) == 0


def test_data_with_nan_are_named():
    x = {"y": jnp.array([0.0, jnp.nan, 1.0]), "n": jnp.array(3)}

    def joint(x, z):
        return norm.logpdf(z["other"]) + norm.logpdf(x["y"], z["tau"]).sum()

    with pytest.raises(
        bbvi.NonFiniteError, match=r"(?s)step 0: .*Data 'y' holds 1 entries that are NaN"
    ):
        fit(joint, x)


def test_masked_data_are_not_to_blame():
    x = jnp.array([0.0, jnp.nan, 1.0])

    def joint(x, z):
        is_known = jnp.isfinite(x)
        terms = norm.logpdf(jnp.where(is_known, x, 0.0), z["other"])
        return jnp.where(is_known, terms, 0.0).sum() + jnp.log(z["tau"] - 2.0)

    with pytest.raises(bbvi.NonFiniteError, match=r"(?s)log\(-.*negative number.*latent 'tau'"):
        fit(joint, x)


def test_a_run_away_scale_is_explained():
    def joint(x, z):  # unbounded above in tau
        return norm.logpdf(z["other"]) + z["tau"] ** 2

    result = fit(joint, optimizer=optax.sgd(10.0), throw=False)
    assert result.status == "nonfinite"
    assert "Lower the learning rate" in result.detail


def test_a_collapsed_scale_is_explained():
    def joint(x, z):  # not integrable at 0
        return norm.logpdf(z["other"]) - 1.5 * jnp.log(jnp.abs(z["tau"]))

    start = GUIDE.params_at({"other": 0.0, "tau": 0.0}, 1e-25)
    result = fit(joint, optimizer=optax.sgd(1e30), throw=False, init_params=start)
    assert result.status == "nonfinite"
    assert "The guide has collapsed to a point in latent 'other', 'tau'" in result.detail


def test_one_failing_restart_does_not_hold_up_the_others():
    def half(x, z):  # NaN below -0.25, where some runs start
        outside = jnp.where(z["tau"] > -0.25, 0.0, jnp.nan)
        return norm.logpdf(z["other"]) + norm.logpdf(z["tau"], 3.0, 0.3) + outside

    result = bbvi.fit(
        half,
        GUIDE,
        key=jax.random.key(1),
        optimizer=optax.adam(0.05),
        num_restarts=12,
        num_steps=600,
        progress=False,
    )
    reached = np.asarray(result.restarts.states.step)
    assert (reached < 600).any()
    assert (reached == 600).any()
    assert reached[result.restarts.best] == 600
    assert np.isfinite(result.history.loss).all()
    assert result.summary()["tau"]["mean"] == pytest.approx(3.0, abs=0.2)


SUPPORTED = bbvi.MeanField({"other": bbvi.Normal((3,)), "tau": bbvi.LogNormal()})


def overflowing(x, z):
    return norm.logpdf(z["other"]).sum() - jnp.exp(100.0 * z["tau"])


def test_minibatches_name_the_term_of_the_function_that_was_given():
    def joint(x, z):
        return norm.logpdf(z["other"]).sum() - z["tau"] + jnp.log(x + z["other"][0]).sum()

    x = np.linspace(0.0, 1.0, 20, dtype=np.float32)
    result = bbvi.fit(
        *(joint, SUPPORTED, x), batch_size=5, num_steps=200, throw=False, progress=False
    )
    assert result.status == "nonfinite"
    assert "logarithm of a negative number" in result.detail
    assert re.search(r"where  log\(-0\.\d+\) at test_nonfinite.py:\d+", result.detail)
    assert re.search(r"reads  other\[0\] = -0\.\d+", result.detail)


def test_discrete_latents():
    def joint(x, z):
        return jnp.log(z["c"].sum() - 1.0) + (z["c"] * jnp.log(0.3)).sum()

    guide = bbvi.MeanField({"c": bbvi.Bernoulli((4,))})
    with pytest.raises(bbvi.NonFiniteError, match=r"(?s)log\((-1|0)\) at test_nonfinite.*cause"):
        bbvi.fit(joint, guide, num_steps=50, progress=False)


def test_an_overflow_is_told_with_its_limit():
    with pytest.raises(bbvi.NonFiniteError, match=r"(?s)exp\(\d+.*more than 88.7 is infinite in f"):
        bbvi.fit(
            *(overflowing, SUPPORTED), num_steps=50, optimizer=optax.adam(1e-2), progress=False
        )
