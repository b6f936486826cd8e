"""Exact variances of the gradients of ``benchmarks.toys``: closed forms and quadrature, no bbvi.

All functions give mean and variance of one draw's gradient, by name of the estimator.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

NODES = 20_001
RANGE = 12.0  # standard deviations that quadrature goes to, on either side
T = 0.499  # of the Bernoulli toys
MEAN = 0.5  # of the factorized ones

# Gaussian toys: f, and its derivative, of z and the cost's parameter k.
COSTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "(z - k)^2": (lambda z, k: (z - k) ** 2, lambda z, k: 2 * (z - k)),
    "exp(-k z^2)": (lambda z, k: np.exp(-k * z**2), lambda z, k: -2 * k * z * np.exp(-k * z**2)),
    "cos(k z)": (lambda z, k: np.cos(k * z), lambda z, k: -k * np.sin(k * z)),
}
PLACES = {
    "(z - k)^2": np.linspace(-3, 3, 9),
    "exp(-k z^2)": np.linspace(0.1, 2, 9),
    "cos(k z)": np.linspace(0.5, 5, 9),
}
MU, SIGMA = 1.0, 1.5


def moments(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Mean and variance of values under weights that sum to one."""
    mean = float(np.sum(weights * values))
    return mean, float(np.sum(weights * (values - mean) ** 2))


def grid(low: float, high: float, density: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Points and weights of the trapezoid rule, normalized."""
    points = np.linspace(low, high, NODES)
    weights = density(points)
    return points, weights / weights.sum()


def exact_gaussian(cost: str, k: float) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and variance of one draw's gradient of E f, in mu and log sigma, by quadrature."""
    f, slope = (lambda z, g=g: g(z, k) for g in COSTS[cost])
    epsilon, q = grid(-RANGE, RANGE, lambda e: np.exp(-0.5 * e**2))
    z = MU + SIGMA * epsilon
    score = {"mu": f(z) * epsilon / SIGMA, "log sigma": f(z) * (epsilon**2 - 1)}
    path = {"mu": slope(z), "log sigma": slope(z) * SIGMA * epsilon}
    found = {
        "score function": {name: moments(g, q) for name, g in score.items()},
        "pathwise": {name: moments(g, q) for name, g in path.items()},
    }
    # Steps of a Rayleigh variable to both sides; a Maxwell one of which the draw is a uniform part.
    steps, rayleigh = grid(0.0, RANGE, lambda r: r * np.exp(-0.5 * r**2))
    change = f(MU + SIGMA * steps) - f(MU - SIGMA * steps)
    weak = {"mu": moments(change / (SIGMA * np.sqrt(2 * np.pi)), rayleigh)}
    length, maxwell = (a[::20] for a in grid(0.0, RANGE, lambda m: m**2 * np.exp(-0.5 * m**2)))
    part = (np.arange(400) + 0.5) / 400
    both = [
        f(MU + s * SIGMA * length[:, None]) - f(MU + s * SIGMA * length[:, None] * part)
        for s in (1, -1)
    ]
    joint = np.repeat(maxwell[:, None], 400, axis=1) / maxwell.sum() / 800
    weak["log sigma"] = moments(np.stack(both), np.stack([joint, joint]))
    return found | {"measure-valued": weak}


def exact_coins(theta: float, num_latents: int) -> dict[str, tuple[float, float]]:
    """Mean and variance of the gradient in one logit, in closed form.

    With p = theta (1 - theta), s = 1 - 2 t, and m the smaller of theta and 1 - theta. Terms of the
    other latents add (D - 1) times the variance that their differences have.
    """
    p, s, m = theta * (1 - theta), (1 - 2 * T) / num_latents, min(theta, 1 - theta)
    others = num_latents - 1
    big = max(theta, 1 - theta)
    pair = 2 * p  # of two draws, that they differ
    f1, f0 = (1 - T) ** 2, T**2
    found = {
        "leave-one-out": s**2 / 4 * (pair * (1 - pair) + others * pair**2),
        "DisARM": s**2 / 4 * big**2 * (2 * m * (1 - 2 * m) + others * 4 * m**2),
        "leave-one-out, blanket": s**2 / 4 * pair * (1 - pair),
        "local expectation": 0.0,
    }
    # f = c + s (b - theta) summed: its first draw times (b_j - theta).
    mean_f = theta * f1 + (1 - theta) * f0
    third = p * (1 - 2 * theta)
    fourth = p * (1 - 3 * p)
    second = mean_f**2 * p + 2 * mean_f * s * third + s**2 * (fourth + others * p**2)
    found["score function"] = second - (s * p) ** 2
    if num_latents == 1:
        found["ARM"] = 2 * s**2 / 3 * (1 / 8 - (1 / 2 - m) ** 3) - (s * p) ** 2
    return {name: (s * p, variance) for name, variance in found.items()}


def exact_squares(num_latents: int) -> dict[str, tuple[float, float]]:
    """Score function in one mean of q = N(MEAN, 1) for f the sum of squares, in closed form."""
    second, spread, cross = MEAN**2 + 1, 2 + 4 * MEAN**2, MEAN**2 + 3
    own = MEAN**4 + 18 * MEAN**2 + 15 - 4 * MEAN**2
    rest = num_latents - 1
    added = 2 * cross * rest * second + rest**2 * second**2 + rest * spread
    return {"Rao-Blackwellized": (2 * MEAN, own), "full signal": (2 * MEAN, own + added)}
