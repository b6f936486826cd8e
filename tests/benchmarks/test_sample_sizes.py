"""Variances as draws are added: slopes, and what a small run finds."""

import json

import numpy as np
import pytest

import bbvi
from benchmarks import report, sample_sizes, targets


def test_slope_of_a_power_law():
    sizes = [2, 4, 8]
    variances = [5.0 * n**-1.5 for n in sizes]
    fitted = sample_sizes.slope(sizes, variances, [0.05 * v for v in variances])
    assert fitted["value"] == pytest.approx(-1.5)
    # Weighted equally: 0.05 over the root of the summed squares of centred logarithms.
    half = 1.96 * 0.05 / np.sqrt(2 * np.log(2) ** 2)
    assert fitted["high"] - fitted["value"] == pytest.approx(half)


def test_interval_covers_the_slope():
    rng = np.random.default_rng(0)
    sizes, covered = np.array([2, 4, 8, 16]), 0
    for _ in range(400):
        found = 3.0 / sizes * (1 + 0.03 * rng.standard_normal(4))
        fitted = sample_sizes.slope(sizes, found, 0.03 * found)
        covered += fitted["low"] < -1 < fitted["high"]
    assert 0.91 < covered / 400 < 0.99


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    kept = ("leave-one-out", "pathwise")
    contestants = {name: sample_sizes.CONTESTANTS[name] for name in kept}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_sizes, "CONTESTANTS", contestants)
        patch.setattr(targets, "registered", lambda _: small())
        out = tmp_path_factory.mktemp("sizes") / "found.json"
        sample_sizes.main(["--quick", "--out", str(out)])
    return out


def small():
    guide = bbvi.MeanField({"w": bbvi.Normal((2,))})
    return targets.Model(lambda x, z: -0.5 * ((z["w"] - x) ** 2).sum(), guide, np.ones(2))


def test_pathwise_gradients_are_means_of_independent_draws(found):
    cases = json.loads(found.read_text())["cases"]
    assert len(cases) == 2 * 3
    for case in cases:
        assert case["draws"] == [2, 8, 32]
        cost = 3 if case["case"] == "pathwise" else 1
        assert case["evaluations"] == [cost * n for n in case["draws"]]
        if case["case"] == "pathwise":
            half = case["slope"]["high"] - case["slope"]["value"]
            assert abs(case["slope"]["value"] + 1) < 2.5 * half
            assert half < 0.1


def test_report_and_figure(found):
    assert found.with_suffix(".md").read_text() == report.markdown(json.loads(found.read_text()))
    assert found.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
