"""The amortization gap: what a short run finds, and what it writes."""

import json

import pytest

from benchmarks import amortization


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("amortization") / "results.json"
    sizes = ["--num-steps", "2000", "--num-seeds", "1", "--num-draws", "4000"]
    amortization.main([*sizes, "--out", str(path)])
    return json.loads(path.read_text()), path


def test_distances_are_those_of_bounds(results):
    found, _ = results
    for guide in found["guides"]:
        for elbo in guide["elbos"]:
            assert elbo["value"] < found["log_evidence"] + 4 * elbo["standard_error"]
            assert elbo["value"] > found["log_evidence"] - 8.0
        assert guide["elbo_until"][-1] > guide["elbo_until"][0] + 50.0


def test_steps_from_the_network_close_the_gap(results):
    final = {
        guide["guide"]: max(elbo["value"] for elbo in guide["elbos"])
        for guide in results[0]["guides"]
    }
    error = results[0]["guides"][0]["elbos"][0]["standard_error"]
    assert final["4 steps of 32 draws"] > final["amortized"] + 4 * error


def test_table_and_figure(results):
    found, path = results
    rows = amortization.table(found).splitlines()[4:8]
    assert [row.split("|")[1].strip() for row in rows] == list(amortization.GUIDES)
    assert float(rows[0].split("|")[5]) == 0.0
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert path.with_suffix(".md").read_text() == amortization.table(found) + "\n"
