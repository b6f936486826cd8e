"""Pictures of a fit."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.plotting import plot_result

pytest.importorskip("matplotlib")


def fitted(shape=(), **options):
    guide = bbvi.MeanField({"w": bbvi.Normal(shape), "b": bbvi.Bernoulli()})
    return bbvi.fit(
        lambda x, z: norm.logpdf(z["w"]).sum() + 0.3 * z["b"],
        guide,
        num_steps=100,
        optimizer=optax.adam(1e-2),
        progress=False,
        **options,
    )


def test_a_panel_for_the_elbo_and_each_marginal(tmp_path):
    result, path = fitted((2,)), tmp_path / "fit.png"
    figure = plot_result(result, str(path))
    titles = [axis.get_title() for axis in figure.axes]
    assert sorted(titles[1:]) == ["b", "w[0]", "w[1]"]
    assert "ELBO" in titles[0]
    assert path.read_bytes().startswith(b"\x89PNG")
    (line,) = figure.axes[0].lines
    assert np.mean(line.get_ydata()) == pytest.approx(-result.history.loss.mean(), rel=1e-3)


def test_many_marginals_are_cut_short():
    figure = fitted((20,)).plot()
    assert len(figure.axes) == 12
    assert "the first 11 of 21 marginals" in figure.get_suptitle()


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
