"""Variance of score-function gradients with and without Rao-Blackwellization.

``python -m benchmarks.rao_blackwellization [--quick] [--only CASE] [--out results.json]``

All estimators are measured at the same three points of one run of ``bbvi.fit`` with its defaults:
the start, step 100, and the optimum (the converged run, polished at a falling rate); and at random
parameters, for the guide's own start is unusually tame: undecided, with all latents alike. There,
from the same draws, the trace of the gradient's covariance is taken per site of the guide. Ratios
have intervals from a jackknife over batches of replicates. Learned coefficients come from the
preceding steps at the point, and are frozen while the variance is measured.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy import stats

import bbvi
from bbvi.dependence.local_values import num_colours
from benchmarks import graph_elbo, measure, report, store, targets

PACKAGES = ("jax", "jaxlib", "optax", "distrax", "numpyro", "numpy")
NUM_SAMPLES = 8
LEARNING_STEPS = 300
MID_RUN = 100
BATCHES = 20

Moments = dict[str, tuple[np.ndarray, np.ndarray]]  # by site
# Estimator, factor that brings its variance to the common cost, and the sites it is for.
Contestant = tuple[bbvi.Estimator, float, list[str]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what is measured on it.

    Attributes:
      name: how the command line and the tables call it.
      build: makes the model.
      replicates: gradients per estimator and point.
      points: where.
      structure_only: only leave-one-out, blanket and adaptive, to show growth with size.
    """

    name: str
    build: Callable[[], targets.Model]
    replicates: int = 4000
    points: tuple[str, ...] = ("init", "random", "mid", "optimum")
    structure_only: bool = False


def _case(name: str, build: Callable[..., targets.Model], *sizes: Any, **options: Any) -> Case:
    return Case(name, functools.partial(build, *sizes), **options)


def _growth(name: str, build: Callable[..., targets.Model], *sizes: Any) -> Case:
    options = {"replicates": 2000, "points": ("init", "random"), "structure_only": True}
    return _case(name, build, *sizes, **options)


CASES = {
    case.name: case
    for case in (
        _case("mixture_120", targets.mixture, 120),
        _case("hidden_markov_30", targets.hidden_markov_chain, 30),
        _case("ising_6x7", targets.ising_grid, 6, 7),
        _case("radon", targets.registered, "radon"),
        # Where shapes below one are random too, draws underflow in float32: no random point.
        _case("topics", targets.document_topics, 10, 30, 3, 20, points=("init", "mid", "optimum")),
        _case("sigmoid_belief", targets.belief_network, 30, (4, 3)),
        _case(
            "deep_exponential",
            targets.deep_exponential_family,
            20,
            points=("init", "mid", "optimum"),
        ),
        _case("karate_club", targets.registered, "karate_club"),
        _case("crowdsourcing", targets.crowd, 100, 20),
        _case("matrix_factorization", targets.factorization, 40, 30, 2, 5),
        _case("state_space", targets.random_walk, 100),
        _case("breast_cancer", targets.registered, "breast_cancer"),
        *(_growth(f"mixture_{n}", targets.mixture, n) for n in (30, 480, 1920)),
        *(_growth(f"hidden_markov_{t}", targets.hidden_markov_chain, t) for t in (120, 480)),
        *(_growth(f"ising_{n}x{n}", targets.ising_grid, n, n) for n in (12, 24, 48)),
        *(_growth(f"radon_{n}", targets.radon, n, n // 8) for n in (80, 320, 1280)),
    )
}


def reference_points(model: targets.Model, names: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """Guide parameters on one run, by name of the point, and how the run ended."""
    log_joint, guide, x = model
    start = guide.init(jax.random.key(0), x)
    points, verdict = {"init": start, "random": spread(start)}, ""
    fit = functools.partial(bbvi.fit, log_joint, guide, x, progress=False)
    if "mid" in names:
        # With an optimizer named the rate stays: these are the first steps of the default run.
        adam = optax.adam(0.05)
        mid = fit(num_steps=MID_RUN, optimizer=adam, key=jax.random.key(1), init_params=start)
        points["mid"] = mid.params.guide
    if "optimum" in names:
        done = fit(init_state=mid.state, num_steps=20_000, stopping=bbvi.Plateau())
        polish = optax.adam(optax.cosine_decay_schedule(5e-3, 1000))
        fitted = done.params.guide
        polished = fit(num_steps=1000, optimizer=polish, init_params=fitted, key=jax.random.key(2))
        points["optimum"] = polished.params.guide
        verdict = f"{done.status} after {MID_RUN + len(done.history.loss)} steps"
    return {name: points[name] for name in names}, verdict


def spread(phi: Any) -> Any:
    """Parameters with standard normal noise on all but the scales of normal sites."""
    leaves, treedef = jax.tree.flatten(phi)
    keys = iter(jax.random.split(jax.random.key(5), len(leaves)))
    noisy = [leaf + jax.random.normal(next(keys), leaf.shape) for leaf in leaves]
    moved = jax.tree.unflatten(treedef, noisy)
    return moved._replace(normal=moved.normal.at[1].set(phi.normal[1]))


def estimators(case: Case, model: targets.Model) -> dict[str, Contestant]:
    """Contestants by name, those that the model allows."""
    problem = bbvi.Problem(model.log_joint, model.guide)
    phi = jax.eval_shape(model.guide.init, jax.random.key(0), model.x)
    params, sites = bbvi.Params(phi), model.guide.sites()
    names = [site.name for site in sites]
    score = functools.partial(bbvi.ScoreFunction, NUM_SAMPLES)
    chosen: dict[str, Contestant] = {
        "leave_one_out": (score(signal="full"), 1.0, names),
        "blanket": (score(signal="blanket"), 1.0, names),
        "adaptive": (score(), 1.0, names),
    }
    if case.structure_only:
        return chosen
    chosen["no baseline"] = (score(baseline=bbvi.NoBaseline(), signal="full"), 1.0, names)
    z = problem.draw_shapes(params, model.x)
    colours = num_colours(model.log_joint, sites, model.x, z)
    local = [site for site in sites if site.num_values and colours[site.name]]
    if local:
        # Draws are averaged independently: the variance of S draws is that of one over S.
        cost = 1 + sum(site.num_values * colours[site.name] for site in local)
        rest = {name: bbvi.ScoreFunction(2, signal="full") for name in names}
        summed = bbvi.PerSite(rest | {site.name: bbvi.LocalExpectation(2) for site in local})
        chosen["local expectation"] = (summed, 2 * cost / NUM_SAMPLES, [s.name for s in local])
    usable = problem.pathwise_leaves(params, model.x)
    smooth = [s.name for s in sites if s.reparameterized and all(usable[leaf] for leaf in s.leaves)]
    if smooth:
        rest = {name: score(signal="full") for name in names}
        paths = rest | {name: bbvi.Reparameterization(NUM_SAMPLES) for name in smooth}
        chosen["pathwise"] = (bbvi.PerSite(paths), 1.0, smooth)
    return chosen


def replicated(model: targets.Model, estimator: bbvi.Estimator) -> Callable[..., Moments]:
    """``run(phi, key, batches, size)``: the state is learned at phi first, and then left alone."""
    problem = bbvi.Problem(model.log_joint, model.guide)

    @jax.jit
    def learn(params: bbvi.Params) -> Any:
        def step(state: Any, key: jax.Array) -> tuple[Any, None]:
            noise = estimator.draw(key, problem)
            return estimator.estimate(noise, problem, params, model.x, state)[1], None

        keys = jax.random.split(jax.random.key(3), LEARNING_STEPS)
        return jax.lax.scan(step, estimator.init(problem, params, model.x), keys)[0]

    def gradient(key: jax.Array, at: Any) -> dict[str, jax.Array]:
        params, state = at
        noise = estimator.draw(key, problem)
        grads = estimator.estimate(noise, problem, params, model.x, state)[0].grads.guide
        by_site = model.guide.site_params(grads)
        return {name: ravel_pytree(leaves)[0] for name, leaves in by_site.items()}

    run = moments(gradient)

    def learn_and_run(phi: Any, *arguments: Any) -> Moments:
        params = bbvi.Params(phi)
        return run((params, learn(params)), *arguments)

    return learn_and_run


def moments(gradient: Callable[[jax.Array, Any], dict[str, jax.Array]]) -> Callable[..., Moments]:
    """``run(at, key, batches, size)``: by batch, trace of the covariance and mean gradient."""

    @functools.partial(jax.jit, static_argnames=("batches", "size"))
    def run(at: Any, key: jax.Array, batches: int, size: int) -> Any:
        def batch(key: jax.Array) -> Any:
            # A few at a time, so that millions of gradient entries fit into memory and cache.
            gradients = jax.lax.map(
                lambda key: gradient(key, at), jax.random.split(key, size), batch_size=10
            )
            return {
                name: (jnp.sum(jnp.var(g, axis=0, ddof=1)), jnp.mean(g, axis=0))
                for name, g in gradients.items()
            }

        return jax.lax.map(batch, jax.random.split(key, batches))

    return lambda *arguments: jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), run(*arguments)
    )


def factor(baseline: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Ratio of two mean variances with a 95 % interval: jackknife of its logarithm over batches."""
    n = len(baseline)
    if not other.any():
        return {"value": np.inf, "low": np.inf, "high": np.inf}
    value = np.log(baseline.mean() / other.mean())
    left_out = np.log((baseline.sum() - baseline) / (other.sum() - other))
    error = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    half = stats.t.ppf(0.975, n - 1) * error
    low, high = np.exp(value - half), np.exp(value + half)
    return {"value": float(np.exp(value)), "low": float(low), "high": float(high)}


def disagreement(a: Any, b: Any) -> float:
    """Mean squared z of the differences of two mean gradients: about 1 if their means agree."""
    difference = a.mean(axis=0) - b.mean(axis=0)
    error = (a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / len(a)
    known = error > 1e-9 * error.max()  # a saturated latent has no spread, and no z
    return float(np.mean(difference[known] ** 2 / error[known]))


def run_case(case: Case, *, quick: bool) -> dict[str, Any]:
    """Variances and factors at every point and site."""
    model = case.build()
    points, verdict = reference_points(model, ("init",) if quick else case.points)
    runs = {
        name: (replicated(model, estimator), scale, sites)
        for name, (estimator, scale, sites) in estimators(case, model).items()
    }
    peer = None if case.structure_only else graph_elbo.PEERS.get(case.name)
    if peer is not None:
        gradient, sites = peer(model, NUM_SAMPLES)
        at_phi = lambda key, phi: gradient(key, model.guide.site_params(phi))  # noqa: E731
        runs["NumPyro TraceGraph"] = (moments(at_phi), 1.0, sites)
    batches, size = (4, 25) if quick else (BATCHES, case.replicates // BATCHES)
    rows = []
    for point, phi in points.items():
        found = {}
        for name, (run, scale, sites) in runs.items():
            by_site = run(phi, jax.random.key(4), batches, size)
            found[name] = {s: (scale * by_site[s][0], by_site[s][1]) for s in sites}
        rows += [_row(point, site.name, found) for site in model.guide.sites()]
    return {
        "case": case.name,
        "environment": measure.environment(*PACKAGES),
        "latents": {name: f.shape for name, f in model.guide.named_families.items()},
        "num_samples": NUM_SAMPLES,
        "replicates": batches * size,
        "reference_run": verdict,
        "rows": rows,
    }


def _row(point: str, site: str, found: dict[str, Any]) -> dict[str, Any]:
    here = {name: by_site[site] for name, by_site in found.items() if site in by_site}
    base, mean = here.pop("leave_one_out")
    return {
        "point": point,
        "site": site,
        "leave_one_out": float(base.mean()),
        "factor": {name: factor(base, traces) for name, (traces, _) in here.items()},
        "mean_squared_z": {name: disagreement(other, mean) for name, (_, other) in here.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 replicates, at the start only")
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="repeatable")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; cases not run stay in it")
    options = parser.parse_args(arguments)
    for name in options.only or CASES:
        print(f"{name} ...", flush=True)
        row = run_case(CASES[name], quick=options.quick)
        store.merge(options.out, "rao_blackwellization", row)
        print(report.markdown({"suite": "rao_blackwellization", "cases": [row]}), flush=True)


if __name__ == "__main__":
    main()
