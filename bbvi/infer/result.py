"""What a fit returns: the run, the approximate posterior, and a verdict on it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._tree import named_leaves
from bbvi._types import Data, Key, Latents, Params, PyTree, check_key
from bbvi.diagnostics import LogEvidence, MonteCarlo, log_evidence, monte_carlo_mean, psis_khat
from bbvi.estimators import Estimator
from bbvi.guides.base import Guide
from bbvi.infer.draws import component_log_weights, draw, log_prob, log_weights, with_proposal
from bbvi.infer.step import FitState
from bbvi.infer.stopping import Trend
from bbvi.problem import Problem

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


class History(NamedTuple):
    """What was recorded at every step, ``[T]`` (of the best restart, when there are several).

    Attributes:
      loss: the objective's value.
      trace: outputs of ``trace_fn``, stacked, or ``()``.
    """

    loss: np.ndarray
    trace: PyTree = ()


class Restarts(NamedTuple):
    """Several runs from different starting points.

    Attributes:
      elbos: ELBO of each run, with standard errors.
      best: index of the run that is reported.
      disagreement: for each run, the largest difference of a posterior mean from the best run's,
        in posterior standard deviations.
      states: the final state of all runs, with a leading axis.
    """

    elbos: tuple[MonteCarlo, ...]
    best: int
    disagreement: np.ndarray
    states: FitState


VERDICT_DRAWS = 4096  # with 1000 draws the k-hat of too narrow a guide often passes for a good one


@dataclasses.dataclass(frozen=True, repr=False)
class FitResult:
    """An approximate posterior, how it was found, and whether to trust it. Print it.

    Attributes:
      status: ``converged``, ``max_steps``, ``diverged``, ``nonfinite``, ``stopped``,
        ``interrupted`` or ``failed``.
      state: the last good state; pass it as ``init_state`` to continue.
      history: the loss at every step, and what ``trace_fn`` recorded.
      trend: how the loss moved over the last part of the run, at one rate; None if too short.
      problem: the model, guide and objective.
      estimator: the gradient estimator that was used.
      x: the data.
      seconds: wall-clock time, compilation included.
      restarts: agreement of several runs, or None.
      detail: what went wrong, when something did.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal()})
      >>> result = bbvi.fit(lambda x, z: -0.5 * (z["mu"] - x) ** 2, guide, 1.5, progress=False)
      >>> result.status
      'converged'
      >>> result.sample(jax.random.key(1), 100)["mu"].shape
      (100,)
      >>> elbo = result.elbo(jax.random.key(2), 1000)
      >>> abs(elbo.value - 0.9189) < 5 * elbo.standard_error + 1e-3
      True
    """

    status: str
    state: FitState
    history: History
    trend: Trend | None
    problem: Problem
    estimator: Estimator
    x: Data
    seconds: float
    restarts: Restarts | None = None
    detail: str = ""

    @property
    def params(self) -> Params:
        """Final parameters: ``.guide`` and, for learned models, ``.model``."""
        return self.state.params

    def sample(self, key: Key, num_samples: int) -> Latents:
        """Draws from the approximate posterior.

        Args:
          key: typed key.
          num_samples: S, at least 1.

        Returns:
          A pytree like the latents, every leaf with a leading axis S.
        """
        key, num_samples = check_key(key), _positive(num_samples)
        return draw(self.problem, key, self.params, self.x, num_samples)

    def log_prob(self, z: Latents) -> Array:
        """Log density of ONE value of the latents under the approximate posterior, a scalar."""
        return log_prob(self.problem, self.params, self.x, jax.tree.map(jnp.asarray, z))

    def log_weights(self, key: Key, num_samples: int) -> Array:
        """``log p(x, z) - log q(z)`` at fresh draws, ``[S]``."""
        key, num_samples = check_key(key), _positive(num_samples)
        return log_weights(self.problem, key, self.params, self.x, num_samples)

    def elbo(self, key: Key, num_samples: int = 1000) -> MonteCarlo:
        """The evidence lower bound at fresh draws, with its Monte Carlo standard error.

        Args:
          key: typed key.
          num_samples: S, at least 2.

        Returns:
          ``value`` and ``standard_error``, in nats.
        """
        return monte_carlo_mean(self.log_weights(key, num_samples))

    def log_evidence(
        self,
        key: Key,
        num_samples: int = 10_000,
        *,
        proposal: tuple[Guide, PyTree] | None = None,
    ) -> LogEvidence:
        """The log evidence log p(x) by importance sampling from the guide.

        The ELBO is below it by the guide's divergence from the posterior, which the weights make
        up for. Where the model falls into components that share no term, such as a batch of data
        with latents of their own, each has its own weights; see ``bbvi.diagnostics.log_evidence``.

        Args:
          key: typed key.
          num_samples: S, at least 100. Memory is that of S weights for each component.
          proposal: another guide over the same latents and its parameters, to draw from instead of
            the fitted one. With the prior written as a guide the estimate is the naive average of
            the likelihood.

        Returns:
          ``value`` and ``standard_error`` in nats, ``effective_sample_size``, ``khat`` and
          ``num_components``.

        Raises:
          ValueError: too few draws; weights that are not finite; a proposal whose latents are not
            those of the model.
          TypeError: ``proposal`` is not a guide with its parameters.

        Example:
          >>> import bbvi, jax
          >>> from jax.scipy.stats import norm
          >>> def log_joint(x, z):  # x is N(0, 2) in all
          ...     return norm.logpdf(z["mu"]) + norm.logpdf(x, z["mu"])
          >>> guide = bbvi.MeanField({"mu": bbvi.Normal()})
          >>> result = bbvi.fit(log_joint, guide, 1.5, progress=False)
          >>> evidence = result.log_evidence(jax.random.key(1))
          >>> exact = float(norm.logpdf(1.5, 0.0, 2**0.5))
          >>> abs(evidence.value - exact) < 5 * evidence.standard_error + 1e-3
          True
        """
        problem, params = self.problem, self.params
        if proposal is not None:
            problem, params = with_proposal(problem, params, self.x, proposal)
        key, num_samples = check_key(key), _positive(num_samples)
        return log_evidence(component_log_weights(problem, key, params, self.x, num_samples))

    def summary(self, key: Key | None = None, num_samples: int = 4000) -> dict[str, Any]:
        """Posterior mean, standard deviation and 5%, 50%, 95% quantiles of every scalar.

        Args:
          key: typed key of the draws; a fixed one by default.
          num_samples: draws the figures are computed from.

        Returns:
          ``{"w[0]": {"mean": ..., "sd": ..., "5%": ..., "50%": ..., "95%": ...}, ...}``; print
          it with ``bbvi.format_summary``.
        """
        key = jax.random.key(0) if key is None else key
        rows = {}
        for name, leaf in named_leaves(self.sample(key, num_samples), "latents").items():
            draws = np.asarray(leaf, np.float64)
            for index in np.ndindex(draws.shape[1:]):
                label = name + ("[" + ",".join(map(str, index)) + "]" if index else "")
                values = draws[(slice(None), *index)]
                low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
                rows[label] = {
                    "mean": float(values.mean()),
                    "sd": float(values.std(ddof=1)),
                    "5%": float(low),
                    "50%": float(median),
                    "95%": float(high),
                }
        return rows

    def plot(self, path: str | None = None) -> Any:
        """ELBO trace with its uncertainty beside posterior marginals, as a matplotlib figure.

        Args:
          path: where to write the picture; nowhere by default.

        Returns:
          The figure. Needs the ``plot`` extra.
        """
        from bbvi.plotting import plot_result  # matplotlib is optional

        return plot_result(self, path)

    @functools.cached_property
    def _verdict(self) -> str:
        steps = int(self.state.step)
        lines = [f"status   {self.status}: {self.detail or ADVICE[self.status]}"]
        weights = self.log_weights(jax.random.key(0), VERDICT_DRAWS)
        if bool(jnp.isfinite(weights).all()):
            lines.append(f"ELBO     {monte_carlo_mean(weights)} nats")
            lines.append(f"k-hat    {_describe_khat(psis_khat(weights))}")
        else:
            bad = int(jnp.sum(~jnp.isfinite(weights)))
            lines.append(f"ELBO     not finite at {bad} of {VERDICT_DRAWS} draws")
        if self.estimator.is_biased:
            name = type(self.estimator).__name__
            lines.append(f"bias     {name}'s gradient is not the objective's: nor is its optimum")
        if self.trend is not None:
            gain = MonteCarlo(self.trend.gain, self.trend.standard_error)
            lines.append(f"trend    {gain} nats gained over the last {self.trend.num_steps} steps")
        if int(self.state.skipped):
            lines.append(f"skipped  {int(self.state.skipped)} steps that were not finite")
        if self.restarts is not None:
            lines.append(_describe_restarts(self.restarts))
        lines.append(f"run      {steps} steps in {self.seconds:.1f} s, {self.estimator!r}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self._verdict


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


def format_summary(summary: dict[str, dict[str, float]], max_rows: int = 40) -> str:
    """A table of ``FitResult.summary`` as text.

    Args:
      summary: what ``FitResult.summary`` returned.
      max_rows: rows shown; the rest are counted.

    Returns:
      One line per scalar.

    Example:
      >>> import bbvi
      >>> row = {"mean": 1.0, "sd": 0.5, "5%": 0.2, "50%": 1.0, "95%": 1.8}
      >>> print(bbvi.format_summary({"mu": row}))
              mean      sd      5%     50%     95%
      mu         1     0.5     0.2       1     1.8
    """
    columns = list(next(iter(summary.values())))
    width = max(len(name) for name in summary)
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    for name, row in list(summary.items())[:max_rows]:
        lines.append(f"{name:<{width}}" + "".join(f"{row[column]:>8.3g}" for column in columns))
    if len(summary) > max_rows:
        lines.append(f"... and {len(summary) - max_rows} more")
    return "\n".join(lines)


def _positive(num_samples: int) -> int:
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an int >= 1, got {num_samples!r}.")
    return num_samples
