import json

import jax
import numpy as np
import pytest

import bbvi
from benchmarks import graph_elbo, rao_blackwellization, targets


def test_factor_is_exact_where_variances_are_proportional():
    traces = np.array([1.0, 2.0, 4.0, 3.0])
    found = rao_blackwellization.factor(6.0 * traces, 2.0 * traces)
    np.testing.assert_allclose([found["value"], found["low"], found["high"]], 3.0)


def test_factor_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    sizes = [rao_blackwellization.factor(*rng.chisquare(50, size=(2, 20))) for _ in range(400)]
    covered = np.mean([found["low"] < 1.0 < found["high"] for found in sizes])
    assert 0.9 < covered < 0.99  # 95 %, with a standard error of 1.1 %


def test_disagreement_shows_a_shift_and_nothing_else():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 500))
    assert 0.9 < rao_blackwellization.disagreement(a, b) < 1.3
    assert rao_blackwellization.disagreement(a, b + 2.0) > 20.0


def test_local_expectation_is_brought_to_the_common_cost():
    case = rao_blackwellization.CASES["ising_6x7"]
    estimator, scale, sites = rao_blackwellization.estimators(case, case.build())[
        "local expectation"
    ]
    # Two draws of 1 + 2 values x 2 colours each, against eight.
    assert (scale, sites) == (2 * 5 / 8, ["s"])
    assert estimator.num_samples == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "model"),
    [
        (graph_elbo.mixture, targets.mixture(12)),
        (graph_elbo.hidden_markov, targets.hidden_markov_chain(6)),
        (graph_elbo.radon, targets.radon(60, 8)),
    ],
    ids=["mixture", "hidden_markov", "radon"],
)
def test_numpyro_estimates_the_same_gradient(peer, model):
    phi = model.guide.init(jax.random.key(0), model.x)
    gradient, sites = peer(model, 8)
    by_site = model.guide.site_params(phi)
    with jax.numpy_rank_promotion("allow"):  # NumPyro relies on it
        theirs = rao_blackwellization.moments(gradient)(by_site, jax.random.key(1), 20, 100)
    ours = rao_blackwellization.replicated(model, bbvi.ScoreFunction(8))(
        phi, jax.random.key(2), 20, 100
    )
    for site in sites:
        assert rao_blackwellization.disagreement(theirs[site][1], ours[site][1]) < 3.0


@pytest.mark.slow
def test_quick_run(tmp_path):
    out = tmp_path / "found.json"
    rao_blackwellization.main(["--quick", "--only", "hidden_markov_120", "--out", str(out)])
    (case,) = json.loads(out.read_text())["cases"]
    (row,) = case["rows"]
    assert row["factor"]["adaptive"]["low"] > 20.0
    assert "hidden_markov_120 z" in out.with_suffix(".md").read_text()
