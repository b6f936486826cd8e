"""Pictures of a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.diagnostics import psis_khat
from bbvi.plotting import plot_result

pytest.importorskip("matplotlib")


def log_joint(x, z):
    return norm.logpdf(z["w"]).sum() + 0.3 * z["b"]


def fitted(shape=(), **options):
    guide = bbvi.MeanField({"w": bbvi.Normal(shape), "b": bbvi.Bernoulli()})
    settings = {"num_steps": 100, "optimizer": optax.adam(1e-2), "progress": False}
    return bbvi.fit(log_joint, guide, **(settings | options))


def test_a_panel_for_the_elbo_the_weights_and_each_marginal(tmp_path):
    result, path = fitted((2,)), tmp_path / "fit.png"
    figure = plot_result(result, str(path))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["ELBO (nats), ± 2 s.e.", "largest importance weights", "b", "w[0]", "w[1]"]
    assert path.read_bytes().startswith(b"\x89PNG")
    (line,) = figure.axes[0].lines
    assert np.mean(line.get_ydata()) == pytest.approx(-result.history.loss.mean(), rel=1e-3)
    log_weights = result.log_weights(jax.random.key(0), 4000)
    assert f"k-hat {psis_khat(log_weights):.2f}" in figure.get_suptitle()
    largest = np.exp(np.asarray(log_weights)).max() / np.exp(np.asarray(log_weights)).mean()
    drawn, smoothed = figure.axes[1].lines
    assert drawn.get_ydata()[0] == pytest.approx(largest, rel=1e-4)
    assert len(drawn.get_ydata()) == len(smoothed.get_ydata()) == int(3 * 4000**0.5)


def test_what_was_traced_is_drawn():
    def trace(info):
        return {"norm": info.gradient_norm, "phi": info.params.guide.normal}

    result = fitted((7,), trace_fn=trace)
    axes = plot_result(result).axes
    assert [axis.get_title() for axis in axes[1:3]] == ["norm", "phi (the first 7 of 14)"]
    (line,) = axes[1].lines
    np.testing.assert_allclose(line.get_ydata(), result.history.trace["norm"])
    np.testing.assert_allclose(axes[2].lines[5].get_ydata(), result.history.trace["phi"][:, 0, 5])


def test_the_prior_is_drawn_over_the_marginals():
    result = fitted()
    prior = {"w": 3 * np.random.default_rng(0).normal(size=20_000), "b": np.arange(1000) % 4 == 0}
    axes = {axis.get_title(): axis for axis in result.plot(prior=prior).axes}
    # A density of 1 / (3 sqrt(2 pi)) in the middle, whatever part of the prior is shown.
    (stairs,) = [p for p in axes["w"].patches if hasattr(p, "get_data")]
    heights = stairs.get_data().values
    assert heights[15:25].mean() == pytest.approx(1 / (3 * (2 * np.pi) ** 0.5), rel=0.1)
    bars = [bar.get_height() for bar in axes["b"].patches]
    assert bars[2:] == pytest.approx([0.75, 0.25])
    with pytest.raises(ValueError, match=r"prior must hold draws of the latents, \{b: int32"):
        result.plot(prior={"w": prior["w"]})


def test_many_marginals_are_cut_short():
    figure = fitted((20,)).plot()
    assert len(figure.axes) == 13
    assert "the first 11 of 21 marginals" in figure.get_suptitle()


def test_minibatches_have_no_weights_for_all_data():
    x = jnp.linspace(-1.0, 1.0, 20)
    result = bbvi.fit(
        lambda x, z: norm.logpdf(z) + norm.logpdf(x, z).sum(),
        bbvi.MeanField(bbvi.Normal()),
        x,
        batch_size=5,
        num_steps=20,
        progress=False,
    )
    assert [axis.get_title() for axis in result.plot().axes][1:] == ["latents"]


def test_a_run_without_finite_losses_can_be_plotted():
    result = bbvi.fit(
        lambda x, z: z["w"] * jnp.nan,
        bbvi.MeanField({"w": bbvi.Normal()}),
        num_steps=10,
        throw=False,
        progress=False,
    )
    figure = plot_result(result)
    assert "nonfinite, 0 steps" in figure.get_suptitle()
