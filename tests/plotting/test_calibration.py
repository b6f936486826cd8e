"""Pictures of a calibration."""

import numpy as np
import pytest

import bbvi
from bbvi.plotting import plot_calibration

pytest.importorskip("matplotlib")


def calibration(num_latents):
    rng = np.random.default_rng(0)
    p_values = {f"w[{k}]": rng.uniform(size=200) for k in range(num_latents - 1)}
    return bbvi.Calibration(p_values | {"tau": rng.beta(2, 1, 200)}, 0, {"converged": 200})


def test_a_histogram_for_each_latent(tmp_path):
    path = tmp_path / "calibration.png"
    figure = plot_calibration(calibration(3), str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [axis.get_title().split(",")[0] for axis in figure.axes] == ["tau", "w[0]", "w[1]"]
    heights = [bar.get_height() for bar in figure.axes[0].patches if bar.get_width() < 0.1]
    assert sum(heights) == 200


def test_many_latents_are_cut_short():
    figure = calibration(20).plot()
    assert len(figure.axes) == 12
    assert "12 of 20 latents" in figure.get_suptitle()
