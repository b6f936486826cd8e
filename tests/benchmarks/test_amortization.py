"""The amortization gap: what a short run finds, and what it writes."""

import json

import pytest

from benchmarks import amortization


@pytest.mark.slow
def test_steps_from_the_network_close_the_gap(tmp_path):
    path = tmp_path / "results.json"
    sizes = ["--num-steps", "100", "--num-seeds", "1", "--num-draws", "1000"]
    amortization.main([*sizes, "--out", str(path)])
    found = json.loads(path.read_text())

    elbos = {guide["guide"]: guide["elbos"][0] for guide in found["guides"]}
    assert list(elbos) == list(amortization.GUIDES)
    for elbo in elbos.values():
        assert elbo["value"] < found["log_evidence"] + 4 * elbo["standard_error"]
    # So early, the network's own output is far from each county's optimum.
    gain = elbos["4 steps of 32 draws"]["value"] - elbos["amortized"]["value"]
    assert gain > 5 * elbos["amortized"]["standard_error"]

    rows = amortization.table(found).splitlines()[4:8]
    assert [row.split("|")[1].strip() for row in rows] == list(elbos)
    assert float(rows[0].split("|")[5]) == 0.0
    assert path.with_suffix(".md").read_text() == amortization.table(found) + "\n"
    assert path.with_suffix(".png").stat().st_size > 10_000
