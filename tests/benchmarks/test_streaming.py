import json

import numpy as np
import pytest

from benchmarks import streaming


def test_data_are_those_of_the_model(tmp_path):
    streaming.write(tmp_path, 2000)
    x = streaming.stored(tmp_path)
    assert x["features"].shape == (2000, streaming.NUM_FEATURES)
    assert isinstance(x["features"], np.memmap)
    weights = np.random.default_rng(0).normal(size=streaming.NUM_FEATURES)
    share = np.mean((x["features"] @ weights > 0) == x["label"])
    assert 0.75 < share < 0.95


def test_an_epoch_is_timed(tmp_path):
    streaming.write(tmp_path, 2000)
    row = streaming.epochs(tmp_path, 100, rounds=2)
    assert row["steps"] == 20
    for name in ("reading_wall_s", "stored_wall_s", "to_reading"):
        assert 0.0 < row[name]["min"] <= row[name]["median"]


@pytest.mark.slow
def test_quick_run(tmp_path):
    out = tmp_path / "streaming.json"
    options = ["--quick", "--rounds=1", "--batch-size=1024", f"--folder={tmp_path}"]
    streaming.main([*options, "--out", str(out)])
    cases = json.loads(out.read_text())["cases"]
    assert [case["size"] for case in cases] == [10_000, 100_000]
    assert cases[1]["memory"]["files_mb"] == pytest.approx(100_000 * 41 / 2**20)
    assert 0 < cases[1]["memory"]["peak_anonymous_mb"] <= cases[1]["memory"]["peak_mb"]
    assert "| 100000 | 1024 | 97 |" in out.with_suffix(".md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streaming.json", "streaming.md"]
