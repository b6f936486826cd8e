import json

import pytest

from benchmarks import scale


@pytest.mark.parametrize("known", [True, False], ids=["known", "traced"])
def test_analysis_counts_latents(known):
    row = scale.analysis(scale.CASES["ising"], 100, known=known)
    assert row["latents"] == 100
    assert row["cpu_s"] > 0.0
    if known:
        assert row["factor_entries"] == 2 * 10 * 9 + 100  # bonds and fields


@pytest.mark.usefixtures("optimized")
def test_steps_of_both_signals_are_timed():
    row = scale.steps(scale.CASES["hidden_markov"], 50, rounds=2)
    assert row["size"] == 50
    for signal in ("full", "adaptive"):
        assert 0.0 < row[f"{signal}_wall_ms"]["min"] <= row[f"{signal}_wall_ms"]["median"]


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_quick_run(tmp_path):
    out = tmp_path / "scale.json"
    scale.main(["--quick", "--only", "hidden_markov", "--out", str(out)])
    (case,) = json.loads(out.read_text())["cases"]
    assert case["known_data"]["latents"] == case["traced_data"]["latents"] == 1000
    assert [row["size"] for row in case["steps"]] == [100, 1000]
    assert "| hidden_markov | 1000 states | 1000 |" in out.with_suffix(".md").read_text()
