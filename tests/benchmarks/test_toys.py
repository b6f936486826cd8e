"""Toys: the exact curves against published closed forms, and against bbvi's gradients."""

import json

import jax
import numpy as np
import pytest

from benchmarks import report, toys


@pytest.mark.parametrize("k", [-0.7, 2.0])
def test_quadrature_gives_the_closed_forms_of_a_quadratic(k):
    """Mohamed et al. (2020), figure 2, in sigma; here in log sigma, which is sigma times that."""
    d, s = toys.MU - k, toys.SIGMA
    exact = {
        "score function": (
            d**4 / s**2 + 14 * d**2 + 15 * s**2,
            2 * d**4 / s**2 + 60 * d**2 + 74 * s**2,
        ),
        "pathwise": (4 * s**2, 4 * d**2 + 8 * s**2),
        "measure-valued": (d**2 * (16 / np.pi - 4), 4 * d**2 + 4 * s**2),
    }
    found = toys.exact_gaussian("(z - k)^2", k)
    for name, (in_mu, in_sigma) in exact.items():
        np.testing.assert_allclose(found[name]["mu"], (2 * d, in_mu), rtol=1e-4)
        if name != "measure-valued":  # its coupling of the scale is another than the paper's
            np.testing.assert_allclose(
                found[name]["log sigma"], (2 * s**2, s**2 * in_sigma), rtol=1e-4
            )
        np.testing.assert_allclose(found[name]["log sigma"][0], 2 * s**2, rtol=1e-4)


def test_quadrature_gives_the_closed_form_of_a_cosine():
    k, s, mu = 2.0, toys.SIGMA, toys.MU
    mean = -k * np.exp(-(k**2) * s**2 / 2) * np.sin(k * mu)
    far = np.exp(-2 * k**2 * s**2) * np.cos(2 * k * mu)
    found = toys.exact_gaussian("cos(k z)", k)
    np.testing.assert_allclose(
        found["pathwise"]["mu"], (mean, k**2 * (1 - far) / 2 - mean**2), rtol=1e-5
    )
    score = (1 + (1 - 4 * k**2 * s**2) * far) / (2 * s**2) - mean**2
    np.testing.assert_allclose(found["score function"]["mu"], (mean, score), rtol=1e-5)


def test_coins_by_enumeration(monkeypatch):
    """Three coins: all draws of the score function, of pairs of draws for leave-one-out."""
    monkeypatch.setattr(toys, "T", 0.3)
    theta, size = 0.2, 3
    states = np.array(list(np.ndindex(*[2] * size)))
    q = np.prod(np.where(states, theta, 1 - theta), axis=1)
    f, score = ((states - 0.3) ** 2).mean(axis=1), states[:, 0] - theta
    exact = toys.exact_coins(theta, size)
    np.testing.assert_allclose(exact["score function"], toys.moments(f * score, q))
    pair = (f[:, None] - f) * (score[:, None] - score) / 2
    np.testing.assert_allclose(
        exact["leave-one-out"], toys.moments(pair, np.outer(q, q)), atol=1e-12
    )


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
