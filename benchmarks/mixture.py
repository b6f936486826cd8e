"""End to end: a Gaussian mixture with many discrete assignments and unknown means.

``python -m benchmarks.mixture [--quick] [--size N] [--out results.json]``

All contestants fit the same mean-field family, a normal for each coordinate of the means and a
categorical for each assignment, to the same data from the same start, and their ELBO is computed
in closed form, outside the clock. The reference is coordinate ascent, whose updates are exact. The
marginal model has no assignments: its ELBO is that of its means with the best assignments.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm
from scipy import special

import bbvi
from benchmarks import measure, report, store
from models import wine_mixture

PACKAGES = ("jax", "jaxlib", "optax", "distrax", "numpyro", "numpy")
NUM_COMPONENTS, NUM_FEATURES = 5, 2
NUM_SAMPLES = 8
DEFAULT_RATE = 0.05  # of bbvi.fit
RATES = (0.05, 0.1, 0.2)  # all contestants' learning rates
CHUNK = 20  # steps between two looks at the ELBO
NEAR = 1e-3  # share of the reference ELBO within which a run has arrived


class Factors(NamedTuple):
    """The mean-field posterior: means ``[K, D]``, log scales ``[K, D]``, logits ``[N, K]``."""

    loc: Any
    log_scale: Any
    logits: Any


class Run(NamedTuple):
    """One contestant, ready to go: ``advance`` takes ``chunk`` steps from a state."""

    state: Any
    advance: Callable[[Any], Any]
    read: Callable[[Any], Factors]
    chunk: int = CHUNK


@dataclasses.dataclass(frozen=True)
class Contestant:
    name: str
    prepare: Callable[[Any, Factors], Run]
    num_samples: int | None = NUM_SAMPLES


def data(size: int) -> dict[str, jax.Array]:
    """Points around five corners, with decreasing weights; neighbours overlap."""
    rng = np.random.default_rng(0)
    angles = 2.0 * np.pi * np.arange(NUM_COMPONENTS) / NUM_COMPONENTS
    centres = 3.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    weights = np.arange(NUM_COMPONENTS + 2.0, 2.0, -1.0)
    weights /= weights.sum()
    c = rng.choice(NUM_COMPONENTS, size=size, p=weights)
    measurements = rng.normal(centres[c], 1.0)
    x = {"measurements": measurements, "weights": weights}
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in x.items()}


def start(x: Any) -> Factors:
    """Means by k-means on the first thousand points, as is customary; undecided assignments."""
    y = np.asarray(x["measurements"], np.float64)[:1000]
    loc = [y[0]]
    while len(loc) < NUM_COMPONENTS:
        distances = np.min([np.sum((y - point) ** 2, axis=1) for point in loc], axis=0)
        loc.append(y[np.argmax(distances)])
    for _ in range(10):
        nearest = np.argmin([np.sum((y - point) ** 2, axis=1) for point in loc], axis=0)
        loc = [y[nearest == k].mean(axis=0) for k in range(NUM_COMPONENTS)]
    logits = np.zeros((len(x["measurements"]), NUM_COMPONENTS))
    return Factors(np.array(loc), np.full((NUM_COMPONENTS, NUM_FEATURES), np.log(0.1)), logits)


def expected_log_terms(x: Any, factors: Factors) -> np.ndarray:
    """``E_q(mu)`` of each point's log density under each component ``[N, K]``."""
    y, weights = (np.asarray(x[name], np.float64) for name in ("measurements", "weights"))
    loc, scale = np.asarray(factors.loc, np.float64), np.exp(np.asarray(factors.log_scale))
    squares = (y**2).sum(axis=1)[:, None] - 2.0 * y @ loc.T + (loc**2 + scale**2).sum(axis=1)
    return np.log(weights) - 0.5 * squares - 0.5 * y.shape[1] * np.log(2.0 * np.pi)


def exact_elbo(x: Any, factors: Factors) -> float:
    """The ELBO of a mean-field posterior, in closed form."""
    loc, log_scale, logits = (np.asarray(leaf, np.float64) for leaf in factors)
    variance = wine_mixture.PRIOR_SD**2
    log_prior = -0.5 * (
        np.log(2.0 * np.pi * variance) + (loc**2 + np.exp(2 * log_scale)) / variance
    )
    entropy = log_scale + 0.5 * np.log(2.0 * np.pi * np.e)
    log_r = logits - special.logsumexp(logits, axis=1, keepdims=True)
    terms = np.exp(log_r) * (expected_log_terms(x, factors) - log_r)
    return float(np.sum(log_prior + entropy) + np.sum(terms))


def best_assignments(x: Any, loc: Any, log_scale: Any) -> Factors:
    """The factors with the assignments that are best for the means."""
    factors = Factors(loc, log_scale, None)
    return factors._replace(logits=expected_log_terms(x, factors))


def coordinate_ascent(x: Any, start: Factors) -> Run:
    """Exact updates in turn: assignments given the means, means given the assignments."""
    y = np.asarray(x["measurements"], np.float64)

    def sweep(factors: Factors) -> Factors:
        factors = best_assignments(x, factors.loc, factors.log_scale)
        r = special.softmax(factors.logits, axis=1)
        precision = wine_mixture.PRIOR_SD**-2 + r.sum(axis=0)
        loc = (r.T @ y) / precision[:, None]
        log_scale = np.broadcast_to(-0.5 * np.log(precision)[:, None], loc.shape)
        return best_assignments(x, loc, log_scale)

    return Run(start, sweep, lambda factors: factors, chunk=1)


def family(x: Any, start: Factors) -> tuple[bbvi.MeanField, Any]:
    """bbvi's guide, and its parameters at some factors."""
    mu, c = (NUM_COMPONENTS, NUM_FEATURES), len(x["measurements"])
    guide = bbvi.MeanField({"mu": bbvi.Normal(mu), "c": bbvi.Categorical(NUM_COMPONENTS, (c,))})
    own = guide.init(jax.random.key(0), x)
    normal = jnp.asarray(np.stack([start.loc.ravel(), start.log_scale.ravel()]), jnp.float32)
    logits = jnp.asarray(start.logits, jnp.float32)
    return guide, own._replace(normal=normal, families={"c": {"logits": logits}})


def factors_of(guide_params: Any) -> Factors:
    """The factors that the guide's parameters stand for."""
    loc, log_scale = np.asarray(guide_params.normal).reshape(2, NUM_COMPONENTS, NUM_FEATURES)
    return Factors(loc, log_scale, guide_params.families["c"]["logits"])


def fitted(estimator: Any, rate: float, x: Any, start: Factors) -> Run:
    """``bbvi.fit``, some steps at a time."""
    guide, phi = family(x, start)

    def read(state: Any) -> Factors:
        return factors_of(state.params.guide)

    return _run(wine_mixture.log_joint_gather, guide, estimator, rate, x, phi, read)


def marginal(rate: float, x: Any, start: Factors) -> Run:
    """``bbvi.fit`` of the means alone, the assignments summed out by hand in ``log_joint``."""

    def log_joint(x: Any, z: Any) -> jax.Array:
        y, mu = x["measurements"], z["mu"]
        squares = (y**2).sum(axis=1)[:, None] - 2.0 * y @ mu.T + (mu**2).sum(axis=1)[None, :]
        log_terms = jnp.log(x["weights"])[None, :] - 0.5 * squares
        log_likelihood = jax.nn.logsumexp(log_terms, axis=1).sum() - y.size * 0.5 * np.log(
            2 * np.pi
        )
        return norm.logpdf(mu, 0.0, wine_mixture.PRIOR_SD).sum() + log_likelihood

    shape = (NUM_COMPONENTS, NUM_FEATURES)
    guide = bbvi.MeanField({"mu": bbvi.Normal(shape)})
    normal = jnp.asarray(np.stack([start.loc.ravel(), start.log_scale.ravel()]), jnp.float32)
    phi = guide.init(jax.random.key(0), x)._replace(normal=normal)

    def read(state: Any) -> Factors:
        return best_assignments(x, *np.asarray(state.params.guide.normal).reshape(2, *shape))

    return _run(log_joint, guide, bbvi.Reparameterization(NUM_SAMPLES), rate, x, phi, read)


def _run(
    log_joint: Any, guide: Any, estimator: Any, rate: float, x: Any, phi: Any, read: Any
) -> Run:
    optimizer = optax.adam(rate)
    init, _ = bbvi.make_step(log_joint, guide, estimator=estimator, optimizer=optimizer)
    fit = functools.partial(bbvi.fit, log_joint, guide, x, estimator=estimator, optimizer=optimizer)

    def advance(state: Any) -> Any:
        return fit(init_state=state, num_steps=CHUNK, progress=False).state

    return Run(init(jax.random.key(1), x, phi), advance, read)


def numpyro_svi(rate: float, x: Any, start: Factors) -> Run:
    """``svi.update`` with ``TraceGraph_ELBO`` and plates, in a scan under one jit."""
    import numpyro
    from numpyro import distributions as dist
    from numpyro.infer import SVI, TraceGraph_ELBO

    num_data = len(x["measurements"])
    prior = dist.Normal(0.0, wine_mixture.PRIOR_SD).expand(start.loc.shape).to_event(2)

    def model(x: Any) -> None:
        mu = numpyro.sample("mu", prior)
        with numpyro.plate("data", num_data):
            c = numpyro.sample("c", dist.Categorical(probs=x["weights"]))
            numpyro.sample("y", dist.Normal(mu[c], 1.0).to_event(1), obs=x["measurements"])

    def guide(x: Any) -> None:
        named = start._asdict().items()
        params = {n: numpyro.param(n, jnp.asarray(leaf, jnp.float32)) for n, leaf in named}
        scale = jnp.exp(params["log_scale"])
        numpyro.sample("mu", dist.Normal(params["loc"], scale).to_event(2))
        with numpyro.plate("data", num_data):
            numpyro.sample("c", dist.Categorical(logits=params["logits"]))

    svi = SVI(model, guide, optax.adam(rate), TraceGraph_ELBO(num_particles=NUM_SAMPLES))

    @jax.jit
    def advance(state: Any, x: Any) -> Any:
        def step(state: Any, _: Any) -> tuple[Any, Any]:
            return svi.update(state, x)

        return jax.lax.scan(step, state, length=CHUNK)[0]

    def read(state: Any) -> Factors:
        return Factors(**svi.get_params(state))

    return Run(svi.init(jax.random.key(1), x), lambda state: advance(state, x), read)


def contestants(rates: tuple[float, ...]) -> list[Contestant]:
    paths, score = bbvi.Reparameterization(NUM_SAMPLES), bbvi.ScoreFunction(NUM_SAMPLES)
    whole = dataclasses.replace(score, signal="full")
    chosen: list[tuple[str, Callable[..., Run]]] = [
        ("bbvi default: local expectations", functools.partial(fitted, None)),
        ("bbvi score function, adaptive", functools.partial(fitted, {"mu": paths, "c": score})),
        ("bbvi score function, full signal", functools.partial(fitted, {"mu": paths, "c": whole})),
        ("NumPyro TraceGraph_ELBO", numpyro_svi),
        ("bbvi, assignments summed out by hand", marginal),
    ]
    return [
        Contestant(f"{name}; adam({rate})", functools.partial(prepare, rate))
        for name, prepare in chosen
        for rate in rates
    ]


def follow(
    contestant: Contestant, x: Any, begin: Factors, target: float | None, cpu_budget: float
) -> dict[str, Any]:
    """Run until well past the target or out of time; ELBO against wall and processor seconds."""
    run = contestant.prepare(x, begin)
    first_call_s, _, _ = measure.clock(lambda: jax.block_until_ready(run.advance(run.state)))
    state, wall, cpu, step = run.state, 0.0, 0.0, 0
    trace = [{"step": 0, "wall_s": 0.0, "cpu_s": 0.0, "elbo": exact_elbo(x, run.read(state))}]
    reached = None
    while cpu < cpu_budget and not (reached and cpu > 2.0 * reached["cpu_s"]):
        wall_s, cpu_s, state = measure.clock(lambda: jax.block_until_ready(run.advance(state)))  # noqa: B023
        wall, cpu, step = wall + wall_s, cpu + cpu_s, step + run.chunk
        elbo = exact_elbo(x, run.read(state))
        trace.append({"step": step, "wall_s": wall, "cpu_s": cpu, "elbo": elbo})
        if target is not None and reached is None and elbo > target:
            reached = trace[-1]
        if target is None and elbo - trace[-2]["elbo"] < 1e-9 * abs(elbo):
            break
    return {
        "method": contestant.name,
        "num_samples": contestant.num_samples,
        "first_call_s": first_call_s,
        "reached": reached,
        "trace": trace,
    }


def run_case(size: int, cpu_budget: float, rates: tuple[float, ...]) -> dict[str, Any]:
    x = jax.block_until_ready(data(size))
    begin = start(x)
    cavi = follow(Contestant("coordinate ascent", coordinate_ascent, None), x, begin, None, 1e9)
    best = cavi["trace"][-1]["elbo"]
    target = best - NEAR * abs(best)
    cavi["reached"] = next(point for point in cavi["trace"] if point["elbo"] > target)
    methods = [cavi]
    for contestant in contestants(rates):
        methods.append(follow(contestant, x, begin, target, cpu_budget))
        print(f"  {contestant.name}: {methods[-1]['trace'][-1]}", flush=True)
    return {
        "case": f"mixture_{size}",
        "environment": measure.environment(*PACKAGES),
        "size": size,
        "about": f"{NUM_COMPONENTS} components in {NUM_FEATURES} dimensions, {NUM_SAMPLES} draws "
        f"a step, constant rates (that of bbvi.fit is {DEFAULT_RATE} by default). A run ends at "
        f"twice the processor time it took to come within 0.1 % of coordinate ascent's ELBO, or "
        f"after {cpu_budget:g} s. Times are without the first call, which compiles.",
        "cavi_elbo": best,
        "start_elbo": exact_elbo(x, begin),
        "methods": methods,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1000 points, a second each")
    parser.add_argument("--size", type=int, default=100_000, help="number of assignments")
    parser.add_argument("--cpu-budget", type=float, default=60.0, help="seconds per contestant")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; other sizes stay in it")
    options = parser.parse_args(arguments)
    size = 1000 if options.quick else options.size
    budget, rates = (1.0, RATES[:1]) if options.quick else (options.cpu_budget, RATES)
    case = run_case(size, budget, rates)
    store.merge(options.out, "mixture", case)
    print(report.markdown({"suite": "mixture", "cases": [case]}))


if __name__ == "__main__":
    main()
