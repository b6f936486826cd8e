"""Toys whose variances are known exactly: curves of the literature beside what bbvi measures.

``python -m benchmarks.toys [--quick] [--out results.json]``

- A Gaussian and three costs (Mohamed et al. 2020, section 3), a quadratic, an exponential and a
  cosine: score function, pathwise and measure-valued gradients as the cost moves.
- One Bernoulli latent and (b - t)^2 at t = 0.499 (Grathwohl et al. 2018), where the two values
  differ by 0.002 and any estimator that does not see their difference is lost.
- 200 Bernoulli latents and the mean of (b - t)^2 (Titsias and Shi 2022), first as a function that
  cannot be taken apart, then as bbvi sees it.
- Factorized latents: the score function with and without Rao-Blackwellization as they become more.

Exact curves are those of ``benchmarks.toys_exact``, made without bbvi. A model's ``log_joint`` is
the cost plus log q at the parameters of the point, so that log p - log q is the cost, and its
gradient is that of the cost's expectation: of the entropy nothing is left.
"""

import argparse
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from bbvi.comparison.replicates import Replicates, Run, replicate, settle
from benchmarks import measure, report, store
from benchmarks.toys_exact import (
    COSTS,
    MEAN,
    MU,
    PLACES,
    SIGMA,
    T,
    exact_coins,
    exact_gaussian,
    exact_squares,
)

PACKAGES = ("jax", "jaxlib", "distrax", "numpy")
SETTLING_STEPS = 300
ROUNDING = 1e-12  # of the largest variance: less is none


class Curve(NamedTuple):
    """An estimator's variance along a toy.

    Attributes:
      toy: which toy.
      panel: of which parameter.
      estimator: its name.
      at: the toy's own parameter.
      exact: variance in closed form or by quadrature.
      measured: by replicates.
      error: its standard error.
      z: deviation of the mean gradient from the exact one, in standard errors.
    """

    toy: str
    panel: str
    estimator: str
    at: list[float]
    exact: list[float]
    measured: list[float]
    error: list[float]
    z: list[float]


GAUSSIAN = {
    "score function": bbvi.ScoreFunction(1, baseline=bbvi.NoBaseline(), signal="full"),
    # Its gradient of the entropy term is that of the cost alone: log q cancels.
    "pathwise": bbvi.Reparameterization(1, entropy="stick_the_landing"),
    "measure-valued": bbvi.MeasureValued(1),
}


NORMAL = bbvi.MeanField({"z": bbvi.Normal()})
JAX_COSTS: dict[str, Callable[..., jax.Array]] = {
    "(z - k)^2": lambda z, k: (z - k) ** 2,
    "exp(-k z^2)": lambda z, k: jnp.exp(-k * z**2),
    "cos(k z)": lambda z, k: jnp.cos(k * z),
}


def normal_log_joint(cost: str) -> Callable[..., jax.Array]:
    def log_joint(k: Any, z: Any) -> jax.Array:
        return JAX_COSTS[cost](z["z"], k) + norm.logpdf(z["z"], MU, SIGMA)

    return log_joint


def gaussian_curves(num_replicates: int) -> list[Curve]:
    phi = {"z": {"loc": jnp.array(MU), "log_scale": jnp.log(SIGMA)}}
    params = bbvi.Params(NORMAL.from_site_params(phi))
    curves = []
    for cost, places in PLACES.items():
        exact = [exact_gaussian(cost, k) for k in places]
        problem = bbvi.Problem(normal_log_joint(cost), NORMAL)
        for name, estimator in GAUSSIAN.items():
            found = [
                measured(problem, estimator, params, jnp.asarray(k), num_replicates) for k in places
            ]
            for panel, block in (("mu", "z.loc"), ("log sigma", "z.log_scale")):
                truth = [point[name][panel] for point in exact]
                parts = [point[block] for point in found]
                curves.append(curve(cost, panel, name, places, truth, parts))
    return curves


def measured(
    problem: bbvi.Problem, estimator: bbvi.Estimator, params: bbvi.Params, x: Any, count: int
) -> dict[str, Replicates]:
    run = Run(problem, estimator)
    state = settle(run, jax.random.key(0), params, x, SETTLING_STEPS)
    return replicate(run, jax.random.key(1), state, x, count)


def curve(
    toy: str,
    panel: str,
    name: str,
    at: Any,
    truth: list[tuple[float, float]],
    parts: list[Replicates],
) -> Curve:
    """Exact means and variances, of one entry, beside replicates; all their entries are alike."""
    size = [len(part.mean) for part in parts]
    off = [
        # The engine's gradients are those of the loss.
        float(np.abs(-part.mean - mean).max() / np.sqrt(part.mean_variance.max() + 1e-12 * mean**2))
        for part, (mean, _) in zip(parts, truth, strict=True)
    ]
    return Curve(
        *(toy, panel, name, [float(a) for a in at], [variance for _, variance in truth]),
        [part.trace / n for part, n in zip(parts, size, strict=True)],
        [part.trace_error / n for part, n in zip(parts, size, strict=True)],
        off,
    )


# Bernoulli toys: D latents, f the mean of (b - t)^2.


def coin_log_joint(x: Any, z: Any) -> jax.Array:
    b = 1.0 * z["b"]
    log_q = b * x - jnp.logaddexp(0.0, x)
    return jnp.sum((b - T) ** 2 / b.size + log_q)


def opaque(x: Any, z: Any) -> jax.Array:
    """The same, through functions that no term can be found in."""
    return jnp.sinh(jnp.arcsinh(coin_log_joint(x, z)))


# What takes the model apart; the others get the opaque one.
BY_TERMS = ("leave-one-out, blanket", "local expectation")
COINS = {
    "score function": bbvi.ScoreFunction(1, baseline=bbvi.NoBaseline(), signal="full"),
    "leave-one-out": bbvi.ScoreFunction(2, signal="full"),
    "leave-one-out, blanket": bbvi.ScoreFunction(2, signal="blanket"),
    "ARM": bbvi.Arm(2, signal="component"),
    "DisARM": bbvi.DisArm(2, signal="component"),
    "DoubleCV": bbvi.DoubleCv(2),
    "local expectation": bbvi.LocalExpectation(1),
}


def coin_curves(num_latents: int, thetas: Any, num_replicates: int) -> list[Curve]:
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((num_latents,))})
    exact = [exact_coins(theta, num_latents) for theta in thetas]
    curves = []
    for name, estimator in COINS.items():
        if name == "ARM" and num_latents > 1:
            continue
        is_seen = num_latents == 1 or name in BY_TERMS
        problem = bbvi.Problem(coin_log_joint if is_seen else opaque, guide)
        parts = []
        for theta in thetas:
            logit = jnp.full(num_latents, jnp.log(theta / (1 - theta)))
            params = bbvi.Params(guide.from_site_params({"b": {"logits": logit}}))
            parts.append(measured(problem, estimator, params, logit, num_replicates)["b.logits"])
        unknown = [(point["DisARM"][0], math.nan) for point in exact]
        truth = [point[name] for point in exact] if name in exact[0] else unknown
        toy = "one coin" if num_latents == 1 else f"{num_latents} coins"
        curves.append(curve(toy, "theta", name, thetas, truth, parts))
    return curves


# Factorized latents: f = sum of z_j^2, q = N(MEAN, 1).
SIZES = (1, 2, 5, 10, 20, 50)


def squares_log_joint(x: Any, z: Any) -> jax.Array:
    del x
    # By the density, since a constant by itself would be a term that no latent reads.
    return jnp.sum(z["z"] ** 2 + jnp.log(norm.pdf(z["z"], MEAN, 1.0)))


def factorized_curves(num_replicates: int) -> list[Curve]:
    exact = [exact_squares(size) for size in SIZES]
    curves = []
    for name, signal in (("Rao-Blackwellized", "blanket"), ("full signal", "full")):
        parts = []
        for size in SIZES:
            guide = bbvi.MeanField({"z": bbvi.Normal((size,))})
            problem = bbvi.Problem(squares_log_joint, guide)
            phi = {"z": {"loc": jnp.full(size, MEAN), "log_scale": jnp.zeros(size)}}
            params = bbvi.Params(guide.from_site_params(phi))
            estimator = bbvi.ScoreFunction(1, baseline=bbvi.NoBaseline(), signal=signal)
            parts.append(measured(problem, estimator, params, None, num_replicates)["z.loc"])
        truth = [point[name] for point in exact]
        curves.append(curve("sum of squares", "number of latents", name, SIZES, truth, parts))
    return curves


def all_curves(num_replicates: int) -> list[Curve]:
    return [
        *gaussian_curves(num_replicates),
        *coin_curves(1, np.linspace(0.05, 0.95, 9), num_replicates),
        *coin_curves(200, (0.05, 0.2, 0.35, 0.5), num_replicates),
        *factorized_curves(num_replicates),
    ]


def curves_of(results: dict[str, Any]) -> list[Curve]:
    return [Curve(**case["curve"]) for case in results["cases"]]


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Exact curves over dots with two standard errors."""
    from matplotlib.figure import Figure

    from bbvi.plotting.comparison import COLOURS

    curves = curves_of(results)
    panels = list(dict.fromkeys((c.toy, c.panel) for c in curves))
    figure = Figure(figsize=(17, 8), layout="constrained")
    axes = list(figure.subplots(2, -(-len(panels) // 2)).T.flat)
    for toy, panel in panels:
        axis = axes.pop(0)
        here = [c for c in curves if (c.toy, c.panel) == (toy, panel)]
        most = max(max(c.measured) for c in here)
        least = min(v for c in here for v in c.measured if v > ROUNDING * most)
        for colour, c in zip(COLOURS, here, strict=False):
            if max(c.measured) < ROUNDING * most:
                continue  # no variance, for which this axis has no place
            axis.plot(c.at, c.exact, color=colour, linewidth=1.2)
            error = 2 * np.array(c.error)
            axis.errorbar(
                *(c.at, c.measured, error),
                fmt="o",
                color=colour,
                markersize=3.5,
                label=c.estimator,
            )
        axis.set_yscale("log")
        axis.set_ylim(least / 3, most * (most / least) ** 0.5)  # with room for the legend
        is_cost = toy in COSTS
        axis.set_title(f"{toy}, in {panel}" if is_cost else toy, fontsize=9)
        axis.set_xlabel("k" if is_cost else panel, fontsize=8)
        axis.set_ylabel("variance of a gradient", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(visible=True, alpha=0.25)
        axis.legend(fontsize=7, loc="upper left", ncols=2, columnspacing=0.6, handletextpad=0.2)
    for axis in axes:
        figure.delaxes(axis)
    figure.savefig(path, dpi=140)


def tables(results: dict[str, Any]) -> list[str]:
    rows = []
    for c in curves_of(results):
        known = [(m - e) / s for m, e, s in zip(c.measured, c.exact, c.error, strict=True) if s > 0]
        known = [z for z in known if np.isfinite(z)]
        widest = [s / m for m, s in zip(c.measured, c.error, strict=True) if m > 0]
        middle = len(c.at) // 2
        exact = "-" if math.isnan(c.exact[middle]) else report.number(c.exact[middle])
        found = f"{report.number(c.measured[middle])} ± {report.number(c.error[middle])}"
        off = f"{max(map(abs, known)):.1f}" if known else "-"
        relative = f"{100 * max(widest):.1f} %" if widest else "-"
        cells = [f"{c.toy}, {c.panel}", c.estimator, report.number(c.at[middle]), exact, found]
        rows.append([*cells, off, relative, f"{max(c.z):.1f}"])
    head = ("toy", "estimator", "at", "exact variance", "measured", "largest deviation, s.e.")
    head += ("largest relative s.e.", "largest deviation of the mean, s.e.")
    return [
        "# Toys",
        f"{report.machine(results['cases'][0]['environment'])}. Variances in one parameter, of "
        f"{results['cases'][0]['num_replicates']} replicates, at one place of each curve; the "
        "largest deviations from closed forms or quadrature are over all places.",
        report.table(head, rows),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the replicates")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; table and figure beside it")
    options = parser.parse_args(arguments)
    count = 2000 if options.quick else 20_000
    with jax.enable_x64(True):  # noqa: FBT003 - differences of 1e-5 beside sums of hundreds
        curves = all_curves(count)
        known = measure.environment(*PACKAGES)
    results = {
        "suite": "toys",
        "cases": [
            {
                "num_replicates": count,
                "environment": known,
                "curve": c._asdict(),
            }
            for c in curves
        ],
    }
    store.finish(options.out, results, plot)


if __name__ == "__main__":
    main()
