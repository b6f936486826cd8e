"""Exact curves of the toys: against published closed forms and enumeration."""

import numpy as np
import pytest

from benchmarks import toys_exact


@pytest.mark.parametrize("k", [-0.7, 2.0])
def test_quadrature_gives_the_closed_forms_of_a_quadratic(k):
    """Mohamed et al. (2020), figure 2, in sigma; here in log sigma, which is sigma times that."""
    d, s = toys_exact.MU - k, toys_exact.SIGMA
    exact = {
        "score function": (
            d**4 / s**2 + 14 * d**2 + 15 * s**2,
            2 * d**4 / s**2 + 60 * d**2 + 74 * s**2,
        ),
        "pathwise": (4 * s**2, 4 * d**2 + 8 * s**2),
        "measure-valued": (d**2 * (16 / np.pi - 4), 4 * d**2 + 4 * s**2),
    }
    found = toys_exact.exact_gaussian("(z - k)^2", k)
    for name, (in_mu, in_sigma) in exact.items():
        np.testing.assert_allclose(found[name]["mu"], (2 * d, in_mu), rtol=1e-4)
        if name != "measure-valued":  # its coupling of the scale is another than the paper's
            np.testing.assert_allclose(
                found[name]["log sigma"], (2 * s**2, s**2 * in_sigma), rtol=1e-4
            )
        np.testing.assert_allclose(found[name]["log sigma"][0], 2 * s**2, rtol=1e-4)


def test_quadrature_gives_the_closed_form_of_a_cosine():
    k, s, mu = 2.0, toys_exact.SIGMA, toys_exact.MU
    mean = -k * np.exp(-(k**2) * s**2 / 2) * np.sin(k * mu)
    far = np.exp(-2 * k**2 * s**2) * np.cos(2 * k * mu)
    found = toys_exact.exact_gaussian("cos(k z)", k)
    np.testing.assert_allclose(
        found["pathwise"]["mu"], (mean, k**2 * (1 - far) / 2 - mean**2), rtol=1e-5
    )
    score = (1 + (1 - 4 * k**2 * s**2) * far) / (2 * s**2) - mean**2
    np.testing.assert_allclose(found["score function"]["mu"], (mean, score), rtol=1e-5)


def test_coins_by_enumeration(monkeypatch):
    """Three coins: all draws of the score function, of pairs of draws for leave-one-out."""
    monkeypatch.setattr(toys_exact, "T", 0.3)
    theta, size = 0.2, 3
    states = np.array(list(np.ndindex(*[2] * size)))
    q = np.prod(np.where(states, theta, 1 - theta), axis=1)
    f, score = ((states - 0.3) ** 2).mean(axis=1), states[:, 0] - theta
    exact = toys_exact.exact_coins(theta, size)
    np.testing.assert_allclose(exact["score function"], toys_exact.moments(f * score, q))
    pair = (f[:, None] - f) * (score[:, None] - score) / 2
    np.testing.assert_allclose(
        exact["leave-one-out"], toys_exact.moments(pair, np.outer(q, q)), atol=1e-12
    )
