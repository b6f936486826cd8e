"""Classical algorithms beside bbvi: the same optima, on short runs."""

import json

import numpy as np
import pytest

from benchmarks import classics, report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("classics") / "found.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classics, "NUM_POINTS", 60)
        classics.main(["--quick", "--out", str(out)])
    return out


def case(found, name):
    return next(c for c in json.loads(found.read_text())["cases"] if c["case"] == name)


def test_no_run_is_above_coordinate_ascent_and_all_come_near(found):
    best, *others = case(found, "mixture")["methods"]
    assert len(others) == 2
    for row in others:
        gaps = best["finals"][0] - np.array(row["elbo"])
        assert np.all(gaps > 0)
        assert gaps[-1] < 0.1 * gaps[0]
        assert row["passes"][-1] == 199 * row["passes"][0]  # before the last of 200 steps
        assert np.all(np.diff(row["seconds"]) > 0)


def test_long_phases_are_iterations_of_em(found):
    rows = {row["method"]: row for row in case(found, "em")["methods"]}
    exact, phases = (
        rows[name]["log_likelihood"] for name in ("exact EM", "alternating, long phases")
    )
    assert exact[1] - exact[0] > 50
    np.testing.assert_allclose(phases, exact, atol=0.1)


def test_the_bound_is_that_of_the_fixed_point(found):
    rows = case(found, "ising")["rows"]
    assert [row["coupling"] for row in rows] == [0.3, 0.5]
    for row in rows:
        assert abs(row["bbvi"][0] - row["mean_field"]) < 2e-3
        assert row["exact"] - row["mean_field"] > 0.5
        assert abs(row["bethe"] - row["exact"]) < 0.2


def test_report_and_figure(found):
    assert found.with_suffix(".md").read_text() == report.markdown(json.loads(found.read_text()))
    assert found.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_named_is_kept(found, monkeypatch):
    def fail(*_):
        raise AssertionError("measured again")

    before = json.loads(found.read_text())["cases"]
    monkeypatch.setattr(classics, "run_mixture", fail)
    monkeypatch.setattr(classics, "run_em", fail)
    monkeypatch.setattr(classics, "run_ising", lambda *_: before[-1])
    classics.main(["--only", "ising", "--out", str(found)])
    assert [c["case"] for c in json.loads(found.read_text())["cases"]] == ["mixture", "em", "ising"]
