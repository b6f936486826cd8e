"""The suite on variances: budgets, resuming, tables and figures."""

import json

import jax
import numpy as np
import pytest

import bbvi
from benchmarks import report, variance


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("variance") / "found.json"
    for budget in variance.BUDGETS:
        run = ["--models", "beta_bernoulli", "--estimators", "Reparameterization", "--quick"]
        variance.main([*run, "--budget", budget, "--out", str(out)])
    return out


def test_every_case_has_points_blocks_and_both_estimators(found):
    cases = json.loads(found.read_text())["cases"]
    assert [case["case"] for case in cases] == [
        "beta_bernoulli, samples",
        "beta_bernoulli, evaluations",
    ]
    for case in cases:
        rows = case["rows"]
        assert {row["estimator"] for row in rows} == {"Reparameterization", "VarGrad"}
        assert {row["point"] for row in rows} == {"start", "1 %", "10 %", "100 %", "optimum"}
        assert {row["block"] for row in rows} == {"p.loc", "p.log_scale", "all"}
        gain, low, high = case["gains"]["100 %"]["Reparameterization"]
        by_name = {
            row["estimator"]: row["trace"]
            for row in rows
            if (row["point"], row["block"]) == ("100 %", "all")
        }
        np.testing.assert_allclose(gain, by_name["VarGrad"] / by_name["Reparameterization"])
        assert low < gain < high


def test_equal_evaluations(found):
    cases = json.loads(found.read_text())["cases"]
    draws = {row["estimator"]: row["draws"] for row in cases[1]["rows"]}
    assert draws == {"VarGrad": 48, "Reparameterization": 16}
    assert {row["draws"] for row in cases[0]["rows"]} == {8}


def test_what_is_there_is_not_measured_again(found, monkeypatch):
    def fail(*_):
        raise AssertionError("measured again")

    before = found.read_text()
    monkeypatch.setattr(variance, "run_case", fail)
    run = ["--models", "beta_bernoulli", "--estimators", "Reparameterization", "--quick"]
    variance.main([*run, "--out", str(found)])
    assert found.read_text() == before
    with pytest.raises(AssertionError, match="measured again"):
        variance.main([*run, "--seed", "1", "--out", str(found)])


def test_tables_and_figures(found):
    text = found.with_suffix(".md").read_text()
    assert text == report.markdown(json.loads(found.read_text()))
    assert "## beta_bernoulli, equal evaluations" in text
    for picture in (found.with_suffix(".png"), found.parent / "found/beta_bernoulli-samples.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_wrong_means_are_not_shown(found):
    results = json.loads(found.read_text())
    for row in results["cases"][0]["rows"]:
        row["passes"] = row["estimator"] != "VarGrad"
    lines = "\n\n".join(variance.tables(results)).splitlines()
    (shown,) = [line for line in lines if line.startswith("| VarGrad | 8")]
    assert "mean is wrong" in shown


@pytest.mark.parametrize("name", variance.MODELS)
def test_every_model_has_estimators_within_the_budget(name):
    model = variance.MODELS[name]()
    problem = bbvi.Problem(model.log_joint, model.guide)
    params = jax.eval_shape(lambda: problem.init(jax.random.key(0), model.x))
    kinds = ["ScoreFunction", "Reparameterization", "LocalExpectation"]
    chosen = variance.chosen_estimators(model, "evaluations", kinds)
    assert {"VarGrad", "ScoreFunction"} <= set(chosen)
    for estimator in chosen.values():
        values, gradients = estimator.cost_for(problem, params, model.x)
        assert values + 3 * gradients <= variance.EVALUATIONS or estimator.num_samples == 2
