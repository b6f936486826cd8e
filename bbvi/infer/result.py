"""What a fit returns: the run, the approximate posterior, and a verdict on it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._types import Data, Key, Latents, Params, PyTree, check_key
from bbvi.dependence.row_reads import batch_of
from bbvi.diagnostics import (
    LogEvidence,
    MonteCarlo,
    log_evidence,
    monte_carlo_mean,
    smoothed_weights,
)
from bbvi.estimators import Estimator
from bbvi.factors import FactorizedLogJoint
from bbvi.guides.base import Guide
from bbvi.infer.assess import Diagnostics, measure
from bbvi.infer.batching import Batching, Source
from bbvi.infer.draws import (
    batch_log_weights,
    component_log_weights,
    draw,
    evaluated_draws,
    log_prob,
    log_weights,
    with_proposal,
)
from bbvi.infer.restarts import Restarts
from bbvi.infer.step import Algorithm, FitState
from bbvi.infer.stopping import Trend
from bbvi.infer.summary import summarize
from bbvi.infer.verdict import judge, verdict
from bbvi.problem import Problem, check_problem
from bbvi.refinement import free_point, free_problem

if TYPE_CHECKING:
    from bbvi.infer.ladder import Rung


class History(NamedTuple):
    """What was recorded at every step, ``[T]`` (of the best restart, when there are several).

    Attributes:
      loss: the objective's value.
      trace: outputs of ``trace_fn``, stacked, or ``()``.
    """

    loss: np.ndarray
    trace: PyTree = ()


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
      x: the data; those of a memmap and of a ``Loader`` stay where they are.
      seconds: wall-clock time, compilation included.
      restarts: agreement of several runs, or None.
      detail: what went wrong, when something did.
      batch_problem: the problem of one batch.
      source: what gave the steps their data. With minibatches ``elbo`` and ``log_weights`` take a
        random batch of it for every draw, and stand for all data.
      ladder: with ``Auto``, all guides that were tried.
      algorithm: what a step did, where more of them can be taken for the diagnostics.

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
    batch_problem: Problem | None = None
    source: Source | None = None
    ladder: tuple[Rung, ...] = ()
    algorithm: Algorithm | None = None

    @property
    def batching(self) -> Batching | None:
        """How minibatches were made, or None."""
        return None if self.source is None else self.source.batching

    @property
    def params(self) -> Params:
        """Final parameters, ``.guide`` and, for learned models, ``.model``."""
        return self.state.params

    def sample(self, key: Key, num_samples: int) -> Latents:
        """Draws from the approximate posterior.

        Args:
          key: typed key.
          num_samples: S, at least 1.

        Returns:
          A pytree like the latents, every leaf with a leading axis S.

        Raises:
          ValueError: the guide reads the data, of which only batches were in memory; see ``at``.
        """
        key, num_samples = check_key(key), _positive(num_samples)
        return draw(self.problem, key, self.params, self._data_of_guide("sample"), num_samples)

    def resample(self, key: Key, num_samples: int) -> Latents:
        """Draws corrected towards the posterior by Pareto-smoothed importance resampling.

        Of ten times as many draws of the guide, at least 4096, those are taken more often that have
        the larger smoothed weights; one may be taken more than once.

        Args:
          key: typed key.
          num_samples: S, at least 1.

        Returns:
          A pytree like the latents, every leaf with a leading axis S.

        Raises:
          ValueError: k-hat is above 0.7, so that the weights cannot make up for the guide; weights
            that are not finite; data of which only batches were in memory, see ``at``.

        Example:
          >>> import bbvi, jax
          >>> def log_joint(x, z):  # skewed: the guide is symmetric
          ...     return 4.0 * z["a"] - jax.numpy.exp(z["a"])
          >>> result = bbvi.fit(log_joint, bbvi.MeanField({"a": bbvi.Normal()}), progress=False)
          >>> draws = result.resample(jax.random.key(1), 10_000)["a"]
          >>> 0.515 < float(draws.std()) < 0.55  # it is 0.533; the guide's is 0.5
          True

        References:
          Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
        """
        key, num_samples = check_key(key), _positive(num_samples)
        x = self._all_data("resample")
        draw_key, choice_key = jax.random.split(key)
        num_draws = max(4096, 10 * num_samples)
        z, log_p, log_q = evaluated_draws(self.problem, draw_key, self.params, x, num_draws)
        weights = log_p - log_q
        bad = int(jnp.sum(~jnp.isfinite(weights)))
        if bad:
            raise ValueError(
                f"{bad} of {num_draws} log weights are not finite, as where log_joint is -inf: "
                "give the guide's sites the supports of the latents."
            )
        smoothed = smoothed_weights(weights)
        if smoothed.khat > 0.7:
            raise ValueError(
                f"k-hat is {smoothed.khat:.2f}, above 0.7: weights of draws from this guide do not "
                "make up for what it misses of the posterior. Fit a richer guide, such as FullRank."
            )
        probabilities = jnp.asarray(smoothed.probabilities)
        taken = jax.random.choice(choice_key, num_draws, (num_samples,), p=probabilities)
        return jax.tree.map(lambda leaf: leaf[taken], z)

    def log_prob(self, z: Latents) -> Array:
        """Log density of ONE value of the latents under the approximate posterior, a scalar."""
        x = self._data_of_guide("log_prob")
        return log_prob(self.problem, self.params, x, jax.tree.map(jnp.asarray, z))

    def log_weights(self, key: Key, num_samples: int) -> Array:
        """``log p(x, z) - log q(z)`` at fresh draws, ``[S]``; see ``elbo`` about minibatches."""
        key, num_samples = check_key(key), _positive(num_samples)
        if self.batching is None:
            return log_weights(self.problem, key, self.params, self.x, num_samples)
        assert self.source is not None
        assert self.batch_problem is not None
        return batch_log_weights(self.batch_problem, self.source, key, self.params, num_samples)

    def elbo(self, key: Key, num_samples: int = 1000) -> MonteCarlo:
        """The evidence lower bound at fresh draws, with its Monte Carlo standard error.

        After a fit with minibatches every draw is for a random batch, scaled to all data: the
        standard error is over batches too. ``result.at(x).elbo(...)`` takes all rows of x.

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
            those of the model; data of which only batches were in memory, see ``at``.
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
        problem, params, x = self.problem, self.params, self._all_data("log_evidence")
        if proposal is not None:
            problem, params = with_proposal(problem, params, x, proposal)
        key, num_samples = check_key(key), _positive(num_samples)
        return log_evidence(component_log_weights(problem, key, params, x, num_samples))

    def component_log_weights(self, key: Key, num_samples: int) -> Array:
        """Log weights ``[S, C]`` at fresh draws by component of the model, as each datum is one.

        Their sums over C are ``log_weights``; components are in the order of their first latents.
        """
        key, num_samples = check_key(key), _positive(num_samples)
        x = self._all_data("component_log_weights")
        return component_log_weights(self.problem, key, self.params, x, num_samples)

    def _all_data(self, method: str) -> Data:
        """x, unless it stays where it is."""
        if self.batching is not None and self.batching.is_streamed:
            raise ValueError(
                f"{method} is of all rows of the data at once, but they were streamed in batches: "
                f"take as many as fit into memory, result.at(x).{method}(...)."
            )
        return self.x

    def _data_of_guide(self, method: str) -> Data:
        """x, or None where it stays where it is and the guide does not read it."""
        if self.batching is not None and self.batching.is_streamed:
            with contextlib.suppress(Exception):  # of any kind: what reading None as data gives
                self.problem.draw_shapes(self.params, None)
                return None
        return self._all_data(method)

    def at(self, x: Data, rows: Array | None = None) -> FitResult:
        """The same fit for other rows of data: held-out ones, or a few of many.

        Args:
          x: data like those of the fit, with any number of rows.
          rows: which rows of the fit's data they are: needed where ``Local`` guides have free
            parameters for each of those, and no others.

        Returns:
          A result for these rows, whose ``sample``, ``elbo`` and ``log_evidence`` are of them.

        Raises:
          ValueError: ``rows`` is missing, or x does not suit the model.

        Example:
          >>> import bbvi, jax, jax.numpy as jnp
          >>> def log_joint(x, z):
          ...     return -0.5 * jnp.sum(z["z"] ** 2) - 0.5 * jnp.sum((x - z["z"]) ** 2)
          >>> guide = bbvi.Local({"z": bbvi.Normal((100,))})
          >>> x = jnp.linspace(-2, 2, 100)
          >>> result = bbvi.fit(log_joint, guide, x, batch_size=10, num_steps=500, progress=False)
          >>> result.at(x[:3], rows=jnp.arange(3)).sample(jax.random.key(0), 7)["z"].shape
          (7, 3)
        """
        x, log_joint = jax.tree.map(jnp.asarray, x), self.problem.log_joint
        declared = log_joint.batch if isinstance(log_joint, FactorizedLogJoint) else None
        size = batch_of(x, declared).size
        shared, own = self.problem.guide.split_rows(self.params.guide)
        if jax.tree.leaves(own):
            if rows is None or np.shape(rows) != (size,):
                raise ValueError(
                    "the guide has free parameters for each row of the fit's data: say which of "
                    f"them these {size} are, at(x, rows=[...]); got rows={rows!r}. An Amortized "
                    "guide needs no rows."
                )
            own = jax.tree.map(lambda leaf: leaf[jnp.asarray(rows)], own)
        params = self.params._replace(guide=self.problem.guide.join_rows(shared, own))
        if isinstance(log_joint, FactorizedLogJoint) and log_joint.num_data:
            log_joint = dataclasses.replace(log_joint, num_data=size)
        problem = Problem(log_joint, self.problem.guide.resized(size), self.problem.objective)
        check_problem(free_problem(problem), free_point(problem, params, x), x)
        return dataclasses.replace(
            self,
            problem=problem,
            state=self.state._replace(params=params),
            x=x,
            batch_problem=None,
            source=None,
            algorithm=None,
        )

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
        return summarize(self.sample(key, num_samples))

    def plot(self, path: str | None = None, *, prior: Latents | None = None) -> Any:
        """ELBO along the run, what was traced, importance weights, and posterior marginals.

        Args:
          path: where to write the picture; nowhere by default.
          prior: draws from the prior, a pytree like those of ``sample`` with any number of draws;
            they are drawn as outlines over the marginals.

        Returns:
          The matplotlib figure. Needs the ``plot`` extra.
        """
        from bbvi.plotting import plot_result  # matplotlib is optional

        return plot_result(self, path, prior=prior)

    def to_arviz(self, key: Key | None = None, num_samples: int = 4000) -> Any:
        """Draws and data as ArviZ has them, for its summaries and pictures.

        Args:
          key: typed key of the draws; a fixed one by default.
          num_samples: S, at least 100: the draws of one chain.

        Returns:
          An ``xarray.DataTree`` with groups ``posterior``; ``sample_stats`` with ``lp``, the log
          joint, and ``log_q``, the guide's log density, of each draw; and, where there are data,
          ``observed_data`` with all leaves of x by path, covariates among them. Its attributes
          hold the status, ELBO and k-hat of these draws. Needs the ``interop`` extra.

        Raises:
          ImportError: arviz-base is not installed.
          ValueError: too few draws; data of which only batches were in memory, see ``at``.

        Example:
          >>> import bbvi
          >>> guide = bbvi.MeanField({"mu": bbvi.Normal((2,))})
          >>> def log_joint(x, z):
          ...     return -0.5 * ((z["mu"] - x["y"]) ** 2).sum()
          >>> result = bbvi.fit(log_joint, guide, {"y": 1.5}, progress=False)
          >>> tree = result.to_arviz(num_samples=500)
          >>> dict(tree.posterior["mu"].sizes)
          {'chain': 1, 'draw': 500, 'mu_dim_0': 2}
          >>> tree.attrs["status"], sorted(tree.sample_stats)
          ('converged', ['log_q', 'lp'])

        References:
          Kumar, Carroll, Hartikainen and Martin (2019), ArviZ: A Unified Library for Exploratory
          Analysis of Bayesian Models in Python.
        """
        from bbvi.interop.arviz_tree import to_arviz  # ArviZ is optional

        x = self._all_data("to_arviz")
        key = check_key(jax.random.key(0) if key is None else key)
        draws = evaluated_draws(self.problem, key, self.params, x, _positive(num_samples))
        return to_arviz(self, *draws)

    @functools.cached_property
    def diagnostics(self) -> Diagnostics:
        """What the printed verdict is made of, computed when it is first asked for.

        It takes 4096 draws with their weights, 64 gradients and 100 steps more (or a hundredth of
        those taken), from keys of its own.
        """
        return judge(self, measure(self))

    def __repr__(self) -> str:
        return verdict(self)


def _positive(num_samples: int) -> int:
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be an int >= 1, got {num_samples!r}.")
    return num_samples
