"""Toys: bbvi's gradients against the exact curves."""

import json

import jax
import numpy as np
import pytest

from benchmarks import report, toys


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys, "SIZES", (1, 10, 50))
        return toys.all_curves(2000)


def test_measured_variances_are_the_exact_ones(found):
    known = {(c.toy, c.estimator) for c in found if not np.isnan(c.exact).any()}
    assert len(known) == 3 * 3 + 6 + 5 + 2
    for c in found:
        exact, measured = np.array(c.exact), np.array(c.measured)
        if np.isnan(exact).any():
            assert c.estimator == "DoubleCV"
            continue
        rounding = 1e-10 * max(exact.max(), 1e-20)
        assert np.all(np.abs(measured - exact) <= 5 * np.array(c.error) + rounding), c
        assert max(c.z) < 5


def test_structure_is_worth_what_the_formulas_say(found):
    by_name = {(c.toy, c.estimator): c.measured for c in found}
    pairs, own = (by_name["200 coins", n] for n in ("leave-one-out", "leave-one-out, blanket"))
    assert pairs[-1] > 150 * own[-1]  # 200 at theta = 1/2
    full, apart = (by_name["sum of squares", n] for n in ("full signal", "Rao-Blackwellized"))
    assert full[-1] > 150 * apart[-1]  # 4315 against 18.6


def test_report_and_figure(found, tmp_path, monkeypatch):
    monkeypatch.setattr(toys, "all_curves", lambda _: found)
    out = tmp_path / "toys.json"
    toys.main(["--quick", "--out", str(out)])
    results = json.loads(out.read_text())
    assert len(results["cases"]) == len(found)
    assert results["cases"][0]["environment"]["dtype"] == "float64"
    assert out.with_suffix(".md").read_text() == report.markdown(results)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
