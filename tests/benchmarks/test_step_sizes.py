"""Grids of step sizes: exact ELBOs, and runs that are those of make_step."""

import json

import jax
import numpy as np
import optax
import pytest

import bbvi
from benchmarks import report, step_sizes

FULL = step_sizes.breast_cancer_suite()
KINDS = ("ScoreFunction", "Reparameterization")
SMALL = FULL._replace(estimators={name: FULL.estimators[name] for name in KINDS})


def test_elbo_of_a_logistic_regression_by_draws():
    loc, scale = np.full(31, 0.3), np.full(31, 0.2)
    phi = FULL.guide.params_at({"w": np.float32(loc)}, 0.2)
    w = loc + scale * np.random.default_rng(0).normal(size=(4000, 31))
    x = {name: np.asarray(leaf, np.float64) for name, leaf in FULL.x.items()}
    at = (2 * x["labels"] - 1) * (w @ x["features"].T)
    ratios = 0.5 * (((w - loc) / scale) ** 2 - w**2).sum(axis=1) + 31 * np.log(0.2)
    values = ratios - np.logaddexp(0.0, -at).sum(axis=1)
    error = values.std() / np.sqrt(len(values))
    found = float(step_sizes.logistic_elbo(bbvi.Params(phi), FULL.x))
    assert error < 0.005 * abs(found)
    assert abs(found - values.mean()) < 4 * error


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("step_sizes") / "found.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(step_sizes.SUITES, "breast_cancer", lambda: SMALL)
        step_sizes.main(["--quick", "--only", "breast_cancer", "--out", str(out)])
    return out


def test_equal_evaluations(found):
    (case,) = json.loads(found.read_text())["cases"]
    assert case["budget"] == 1600
    steps = {row["estimator"]: row["steps"][-1] for row in case["rows"]}
    assert steps == {"ScoreFunction": 200, "Reparameterization": 66}


def test_runs_are_those_of_adam_at_each_rate(found):
    (case,) = json.loads(found.read_text())["cases"]
    row = next(row for row in case["rows"] if row["estimator"] == "Reparameterization")
    problem = bbvi.Problem(FULL.log_joint, FULL.guide)
    phi = problem.init(jax.random.key(0), FULL.x).guide
    for number, rate in enumerate(case["rates"]):
        key = jax.random.split(jax.random.key(1), 2)[1]
        init, step = bbvi.make_step(
            FULL.log_joint,
            FULL.guide,
            estimator=bbvi.Reparameterization(8),
            optimizer=optax.adam(rate),
        )
        state = jax.lax.fori_loop(
            0, 66, lambda _, s, step=step: step(s, FULL.x)[0], init(key, FULL.x, phi)
        )
        elbo = float(step_sizes.logistic_elbo(state.params, FULL.x))
        assert elbo == pytest.approx(row["grid"][number][1][-1], rel=1e-3)


def test_curves_are_at_the_best_rate(found):
    (case,) = json.loads(found.read_text())["cases"]
    for row in case["rows"]:
        ends = np.array(row["grid"])[:, :, -1].mean(axis=1)
        assert case["rates"][int(np.argmax(ends))] == row["best_rate"]
        np.testing.assert_allclose(np.array(row["curves"])[:, -1].mean(), ends.max())


def test_report_and_figure(found):
    assert found.with_suffix(".md").read_text() == report.markdown(json.loads(found.read_text()))
    assert found.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
