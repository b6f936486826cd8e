"""What takes part: name -> how to prepare it, the modules it needs, and how it is timed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from benchmarks import floors, peers
from benchmarks.problems import LEARNING_RATE, Problem

Run = Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One implementation.

    Attributes:
      name: how the tables call it.
      prepare: ``(problem, x) -> run`` or None where it cannot do the problem; ``run(num_steps,
        seed)`` starts afresh, waits for the end and returns the losses.
      is_peer: whether it is another library.
      compiles_every_call: whether its time per step cannot be had as a difference of two calls.
    """

    name: str
    prepare: Callable[[Problem, Any], Run | None]
    is_peer: bool = False
    compiles_every_call: bool = False


def bbvi_fit(problem: Problem, x: Any) -> Run | None:
    """``bbvi.fit`` as a user calls it."""
    if problem.batch is not None:
        return None
    import jax

    import bbvi

    if problem.kind == "eight_schools":
        sites = {"theta": bbvi.Normal((8,)), "mu": bbvi.Normal(()), "tau": bbvi.LogNormal(())}
    else:
        sites = {"w": bbvi.Normal((problem.dim,))}
    guide = (bbvi.FullRank if problem.family == "full_rank" else bbvi.MeanField)(sites)
    estimator = bbvi.Reparameterization(num_samples=problem.num_samples)
    if problem.estimator == "score_function":
        estimator = bbvi.ScoreFunction(problem.num_samples, signal="full")
    optimizer = optax.adam(LEARNING_RATE)

    def run(num_steps: int, seed: int) -> np.ndarray:
        result = bbvi.fit(
            problem.log_joint,
            guide,
            x,
            key=jax.random.key(seed),
            estimator=estimator,
            optimizer=optimizer,
            num_steps=num_steps,
            num_restarts=problem.restarts,
            progress=False,
        )
        return np.asarray(result.history.loss)

    return run


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("floor", floors.prepare),
        Contestant("bbvi", bbvi_fit),
        Contestant("numpyro scan", peers.numpyro_scan, is_peer=True),
        Contestant("numpyro run", peers.numpyro_run, is_peer=True, compiles_every_call=True),
        Contestant("blackjax scan", peers.blackjax_scan, is_peer=True),
    )
}
