"""What a printed result says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi.diagnostics import MonteCarlo, monte_carlo_mean, psis_khat
from bbvi.infer.loader import Loader

if TYPE_CHECKING:
    from bbvi.infer.result import FitResult, Restarts

ADVICE = {
    "converged": "the ELBO has levelled off.",
    "max_steps": "the ELBO had not provably levelled off when the steps ran out; continue with "
    "fit(..., init_state=result.state) or raise num_steps.",
    "diverged": "the ELBO ended lower than it had been; lower the learning rate, or start from "
    "init_params=guide.params_at(z).",
    "nonfinite": "the loss or its gradient stopped being finite; the state before that step is "
    "kept in result.state.",
    "stopped": "a callback stopped the run.",
    "failed": "an exception ended the run; the state before it is kept in result.state.",
    "interrupted": "interrupted by the keyboard; continue with fit(..., init_state=result.state).",
}
NUM_DRAWS = 4096  # with 1000 draws the k-hat of too narrow a guide often passes for a good one
# With minibatches: about as many rows as the data have, and k-hats of some of them.
MIN_BATCHES, MAX_BATCHES = 16, 256
NUM_ROWS, ROW_DRAWS = 32, 1000


def verdict(result: FitResult) -> str:
    """Status, ELBO, k-hat and how the run went, a line each."""
    lines = [f"status   {result.status}: {result.detail or ADVICE[result.status]}"]
    lines.extend(_describe_weights(result))
    if result.estimator.is_biased:
        name = type(result.estimator).__name__
        lines.append(f"bias     {name}'s gradient is not the objective's: nor is its optimum")
    if result.trend is not None:
        gain = MonteCarlo(result.trend.gain, result.trend.standard_error)
        lines.append(f"trend    {gain} nats gained over the last {result.trend.num_steps} steps")
    if int(result.state.skipped):
        lines.append(f"skipped  {int(result.state.skipped)} steps that were not finite")
    if result.restarts is not None:
        lines.append(_describe_restarts(result.restarts))
    if result.ladder:
        tried = (f"{type(r.guide).__name__} {r.elbo}" for r in result.ladder)
        lines.append(f"ladder   {', '.join(tried)} nats; the best is kept")
    steps, batching = int(result.state.step), result.batching
    epochs = f" ({steps / batching.steps_per_epoch:.3g} epochs)" if batching else ""
    lines.append(f"run      {steps} steps{epochs} in {result.seconds:.1f} s, {result.estimator!r}")
    return "\n".join(lines)


def _describe_weights(result: FitResult) -> list[str]:
    batching, num_draws, of = result.batching, NUM_DRAWS, ""
    if batching is not None:
        num_draws = min(MAX_BATCHES, max(MIN_BATCHES, batching.steps_per_epoch))
        of = f" (of all data, by {num_draws} random batches)"
    try:
        weights = result.log_weights(jax.random.key(0), num_draws)
    except Exception as error:
        if not isinstance(result.x, Loader):
            raise
        return [f"ELBO     not known: {error}"]  # it may have no more batches
    if not bool(jnp.isfinite(weights).all()):
        bad = int(jnp.sum(~jnp.isfinite(weights)))
        return [f"ELBO     not finite at {bad} of {num_draws} draws"]
    elbo = monte_carlo_mean(weights)
    return [f"ELBO     {elbo} nats{of}", f"k-hat    {_khat(result, weights)}"]


def _khat(result: FitResult, weights: Array) -> str:
    batching = result.batching
    if batching is None:
        return _describe_khat(psis_khat(weights))
    if not all(site.is_local for site in result.problem.guide.sites()):
        return "not known from minibatches where the data share latents"
    if isinstance(result.x, Loader):
        return "not known from a loader; ask result.at(x) for some rows"
    keys = jax.random.split(jax.random.key(1))
    num_rows = min(NUM_ROWS, batching.num_data)
    rows = jax.random.choice(keys[0], batching.num_data, (num_rows,), replace=False)
    few = result.at(batching.map_rows(lambda leaf: leaf[np.asarray(rows)], result.x), rows=rows)
    by_datum = np.asarray(few.component_log_weights(keys[1], ROW_DRAWS))
    if by_datum.shape[1] != num_rows or not np.isfinite(by_datum).all():
        return "not known: the data do not have log weights of their own"
    khats = [psis_khat(jnp.asarray(column)) for column in by_datum.T]
    good = np.mean(np.array(khats) < 0.7)
    return (
        f"{np.median(khats):.2f} in the median of {num_rows} random data; below 0.7, where the "
        f"guide covers the posterior, in {good:.0%}"
    )


def _describe_khat(khat: float) -> str:
    if khat < 0.7:
        return f"{khat:.2f} (below 0.7: the guide covers the posterior)"
    return (
        f"{khat:.2f} (above 0.7: do not trust the moments; try a richer guide, FullRank for "
        "correlations)"
    )


def _describe_restarts(restarts: Restarts) -> str:
    values = [elbo.value for elbo in restarts.elbos]
    return (
        f"restarts {len(values)}, ELBOs {min(values):.2f} to {max(values):.2f}; posterior means "
        f"differ from the best run's by up to {restarts.disagreement.max():.2g} sd"
    )
