"""Peers on the same problems, each in its fastest mode found: NumPyro and BlackJAX.

Every ``prepare`` returns ``run(num_steps, seed) -> losses`` from a fresh start, or None where the
peer cannot do the problem. Settings were chosen by trying: NumPyro's mean-field ELBO beats its
general one, AutoNormal beats AutoDiagonalNormal on one site and loses on several; BlackJAX is
fastest with stick-the-landing, its default.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems import LEARNING_RATE, Problem

Run = Callable[[int, int], np.ndarray]


def _looped(init: Any, step: Any, x: Any, restarts: int) -> Run:
    """Scan ``step(state, key, x) -> (state, loss)`` from ``init(key, x)``, under one jit."""

    @functools.partial(jax.jit, static_argnums=2)
    def loop(key: jax.Array, x: Any, num_steps: int) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            init_key, step_key = jax.random.split(key)
            keys = jax.random.split(step_key, num_steps)
            return jax.lax.scan(lambda state, key: step(state, key, x), init(init_key, x), keys)[1]

        return one(key) if restarts == 1 else jax.vmap(one)(jax.random.split(key, restarts)).T

    return lambda num_steps, seed: np.asarray(loop(jax.random.key(seed), x, num_steps))


def numpyro_scan(problem: Problem, x: Any) -> Run | None:
    """``svi.update`` in a scan jitted by hand: NumPyro's fastest mode."""
    svi = _svi(problem, plate=False)

    def rows(x: Any, key: jax.Array) -> Any:
        if problem.batch is None:
            return x
        picked = jax.random.randint(key, (problem.batch,), 0, len(x["signs"]))
        return jax.tree.map(lambda leaf: leaf[picked], x)

    def step(state: Any, key: jax.Array, x: Any) -> tuple[Any, jax.Array]:
        return svi.update(state, rows(x, key))

    # The first init of a guide keeps what it traces, so it may not happen under jit.
    first = functools.cache(lambda: svi.init(jax.random.key(0), rows(x, jax.random.key(0))))
    looped = _looped(lambda key, x: svi.init(key, rows(x, key)), step, x, problem.restarts)

    def run(num_steps: int, seed: int) -> np.ndarray:
        first()
        return looped(num_steps, seed)

    return run


def numpyro_run(problem: Problem, x: Any) -> Run | None:
    """``svi.run(progress_bar=False)``: NumPyro's documented mode."""
    if problem.restarts > 1:
        return None
    svi = _svi(problem, plate=True)

    def run(num_steps: int, seed: int) -> np.ndarray:
        key = jax.random.key(seed)
        return np.asarray(svi.run(key, num_steps, x, progress_bar=False).losses)

    return run


def _svi(problem: Problem, *, plate: bool) -> Any:
    from numpyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, autoguide

    model = _numpyro_model(problem, plate=plate)
    if problem.estimator == "score_function":
        guide, loss = _score_guide(problem), TraceGraph_ELBO
    elif problem.family == "full_rank":
        guide, loss = autoguide.AutoMultivariateNormal(model), Trace_ELBO
    else:
        single = problem.kind == "logistic"
        guide = (autoguide.AutoNormal if single else autoguide.AutoDiagonalNormal)(model)
        loss = TraceMeanField_ELBO
    return SVI(model, guide, optax.adam(LEARNING_RATE), loss(num_particles=problem.num_samples))


def _numpyro_model(problem: Problem, *, plate: bool) -> Callable[[Any], None]:
    import numpyro
    from numpyro import distributions as dist

    num_rows = len(problem.data()["signs"]) if problem.batch is not None else 0

    def logistic(x: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([problem.dim]).to_event(1))
        if problem.batch is not None and plate:
            with numpyro.plate("rows", len(x["signs"]), subsample_size=problem.batch) as rows:
                logits, labels = x["features"][rows] @ w, x["signs"][rows] > 0
                numpyro.sample("y", dist.Bernoulli(logits=logits), obs=labels.astype(jnp.float32))
            return
        weight = 1.0 if problem.batch is None else num_rows / problem.batch
        logits, labels = x["features"] @ w, (x["signs"] > 0).astype(jnp.float32)
        with numpyro.handlers.scale(scale=weight):
            numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=labels)

    def eight_schools(x: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
        effects = dist.Normal(mu + tau * theta, x["sigma"]).to_event(1)
        numpyro.sample("y", effects, obs=x["y"])

    def gaussian(x: Any) -> None:
        flat = dist.ImproperUniform(dist.constraints.real_vector, (), (problem.dim,))
        w = numpyro.sample("w", flat)
        numpyro.factor("log_joint", problem.log_joint(x, {"w": w}))

    return {"logistic": logistic, "eight_schools": eight_schools, "gaussian": gaussian}[
        problem.kind
    ]


def _score_guide(problem: Problem) -> Callable[[Any], None]:
    """NumPyro uses the score function only for distributions that declare no pathwise gradient."""
    import numpyro
    from numpyro import distributions as dist

    class ScoreNormal(dist.Normal):
        reparametrized_params = ()

    def guide(x: Any) -> None:
        loc = numpyro.param("loc", jnp.zeros(problem.dim))
        log_scale = numpyro.param("log_scale", jnp.full(problem.dim, jnp.log(0.1)))
        numpyro.sample("w", ScoreNormal(loc, jnp.exp(log_scale)).to_event(1))

    return guide


def blackjax_scan(problem: Problem, x: Any) -> Run | None:
    """``meanfield_vi`` or ``fullrank_vi`` in a scan."""
    if problem.estimator == "score_function":
        return None
    import blackjax

    family = blackjax.fullrank_vi if problem.family == "full_rank" else blackjax.meanfield_vi
    optimizer = optax.adam(LEARNING_RATE)

    def algorithm(x: Any) -> Any:
        target = functools.partial(problem.target, x)
        return family(target, optimizer, problem.num_samples)

    def init(_: jax.Array, x: Any) -> Any:
        return algorithm(x).init(jnp.zeros(problem.dim))

    def step(state: Any, key: jax.Array, x: Any) -> tuple[Any, jax.Array]:
        if problem.batch is not None:
            key, row_key = jax.random.split(key)
            rows = jax.random.randint(row_key, (problem.batch,), 0, len(x["signs"]))
            weight = len(x["signs"]) / problem.batch
            x = jax.tree.map(lambda leaf: leaf[rows], x) | {"weight": weight}
        state, info = algorithm(x).step(key, state)
        return state, info.elbo  # despite its name, minus the bound

    return _looped(init, step, x, problem.restarts)
