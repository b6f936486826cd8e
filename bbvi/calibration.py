"""Simulation-based calibration of a guide: are its marginals right on data from the model?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from bbvi._tree import entry_name, named_leaves, shapes
from bbvi._types import Data, Key, Latents, LogJoint, check_key
from bbvi.guides.base import Guide
from bbvi.infer import NonFiniteError, fit

COVERAGE = 0.9  # of the central intervals that are counted
SIGNIFICANCE = 0.05  # of a bias, among all latents together


class CalibrationRow(NamedTuple):
    """How one scalar latent came out.

    Attributes:
      latent: its name.
      bias: one half minus the mean of P(z < z0) under q: above 0 where q is too high.
      bias_p: p-value of the hypothesis that there is no bias.
      coverage: how often a central 90 % interval of q holds the true value.
      coverage_error: its standard error.

    Example:
      >>> import bbvi
      >>> bbvi.CalibrationRow("mu", 0.01, 0.6, 0.89, 0.02).latent
      'mu'
    """

    latent: str
    bias: float
    bias_p: float
    coverage: float
    coverage_error: float


@dataclasses.dataclass(frozen=True, repr=False)
class Calibration:
    """Where the true values lay in the approximate posteriors of simulated data. Print it.

    Attributes:
      p_values: for every scalar latent P(z < z0 | x) under q at the true value z0, ``[M]``: those
        of an exact posterior are uniform. Large ones: q is too low.
      num_failed: replications left out because their fit stopped being finite.
      statuses: how many of the fits ended in which status.

    Example:
      >>> import bbvi, numpy as np
      >>> p_values = {"mu": (np.arange(200) + 0.5) / 200}
      >>> row = bbvi.Calibration(p_values, 0, {"converged": 200}).rows[0]
      >>> row.bias, row.coverage
      (0.0, 0.9)
    """

    p_values: dict[str, np.ndarray]
    num_failed: int
    statuses: dict[str, int]

    @property
    def rows(self) -> tuple[CalibrationRow, ...]:
        """One for each scalar latent, the most significant bias first."""
        found = [_row(name, values) for name, values in self.p_values.items()]
        return tuple(sorted(found, key=lambda row: row.bias_p))

    @property
    def biased(self) -> tuple[str, ...]:
        """Latents with a significant bias, at 5 % for all of them together (Holm)."""
        names = []
        for rank, row in enumerate(self.rows):
            if row.bias_p > SIGNIFICANCE / (len(self.p_values) - rank):
                break
            names.append(row.latent)
        return tuple(names)

    def plot(self, path: str | None = None) -> Any:
        """Histograms of the p-values, as a matplotlib figure.

        Args:
          path: where to write the picture; nowhere by default.

        Returns:
          The figure. Needs the ``plot`` extra.
        """
        from bbvi.plotting import plot_calibration  # matplotlib is optional

        return plot_calibration(self, path)

    def __repr__(self) -> str:
        return _table(self)


def check_calibration(
    simulate: Callable[[Key], tuple[Latents, Data]],
    log_joint: LogJoint,
    guide: Guide,
    *,
    key: Key | None = None,
    num_replications: int = 200,
    num_samples: int = 1000,
    progress: bool = True,
    **options: Any,
) -> Calibration:
    r"""Fits data simulated from the model, and looks where the true latents lie in the fits.

    .. math::
      (z^0_m, x_m) \sim p(z, x), \qquad p_m = Q(z < z^0_m \mid x_m), \qquad m = 1 \dots M

    For an exact posterior every :math:`p_m` is uniform. A histogram that is not symmetric shows
    that the means of q are biased, one heaped in the middle (at both ends) that q is too wide
    (narrow), on average over data from the model. What is tested is the symmetry, since variances
    of variational posteriors are rarely exact: the largest difference between the distributions
    of p and of 1 - p. Under symmetry the signs of :math:`p_m - 1/2` are fair coins, so that the
    p-value of this Kolmogorov-Smirnov statistic is exact for any M (Butler 1969).

    k-hat asks whether weights could correct q on all latents together; this asks about one latent
    at a time, and needs no weights: use it where k-hat is high because there are many latents.

    Args:
      simulate: pure function of a key, compiled, that returns latents and data ``(z, x)``: a draw
        from the prior, and data given it. All data have the same shapes.
      log_joint: the model, as for ``fit``; that of ``simulate``.
      guide: the variational family.
      key: typed key, ``jax.random.key(0)`` by default.
      num_replications: M. All fits are one compiled program, run M times.
      num_samples: draws of q that give a p-value.
      progress: show a progress bar.
      **options: of ``fit``, such as ``num_steps``.

    Returns:
      A ``Calibration``: a table of biases and coverages when printed.

    Raises:
      TypeError: ``simulate`` does not return latents and data.
      ValueError: latents that are not those of the guide; too few replications; no fit that
        ended well.

    Example:
      >>> import bbvi, jax
      >>> from jax.scipy.stats import norm
      >>> def simulate(key):
      ...     prior, noise = jax.random.split(key)
      ...     mu = jax.random.normal(prior)
      ...     return {"mu": mu}, mu + jax.random.normal(noise, (5,))
      >>> def log_joint(x, z):
      ...     return norm.logpdf(z["mu"]) + norm.logpdf(x, z["mu"]).sum()
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal()})
      >>> found = bbvi.check_calibration(
      ...     simulate, log_joint, guide, num_replications=50, num_steps=500, progress=False
      ... )
      >>> found.biased
      ()

    References:
      Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational
      Inference; Butler (1969), A Test for Symmetry Using the Sample Distribution Function.
    """
    counts = (("num_replications", num_replications, 20), ("num_samples", num_samples, 100))
    for name, value, least in counts:
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int >= {least}, got {value!r}.")
    key = check_key(jax.random.key(0) if key is None else key)
    draw = jax.jit(_checked(simulate, guide, key))
    keys = jax.random.split(key, (num_replications, 4))
    ties = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    ranks: dict[str, list[np.ndarray]] = {}
    statuses: dict[str, int] = {}
    for number in tqdm(range(num_replications), disable=not progress, unit="fit", leave=False):
        simulate_key, fit_key, sample_key, _ = keys[number]
        truth, x = draw(simulate_key)
        try:
            result = fit(log_joint, guide, x, key=fit_key, progress=False, **options)
        except NonFiniteError as error:
            result = error.result
        statuses[result.status] = statuses.get(result.status, 0) + 1
        if result.status == "nonfinite":
            continue
        z = named_leaves(result.sample(sample_key, num_samples), "latents")
        for name, value in named_leaves(truth, "latents").items():
            rank = _rank(np.asarray(z[name]), np.asarray(value), ties)
            ranks.setdefault(name, []).append(rank)
    if not ranks:
        raise ValueError(
            f"none of {num_replications} fits stayed finite: fit one data set that simulate "
            "returns, fit(log_joint, guide, x), to see why."
        )
    p_values = {
        entry_name(name, index): np.array([rank[index] for rank in found])
        for name, found in ranks.items()
        for index in np.ndindex(found[0].shape)
    }
    return Calibration(p_values, statuses.get("nonfinite", 0), statuses)


def _checked(simulate: Any, guide: Guide, key: Key) -> Any:
    """The simulator, once it is known to return latents of the guide."""
    drawn = jax.eval_shape(simulate, key)
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(
            "simulate(key) must return latents and data, (z, x), got "
            f"{type(drawn).__name__} {shapes(drawn, 'returned')}."
        )

    own = jax.eval_shape(
        lambda key, x: guide.sample(guide.base_noise(key), guide.init(jax.random.key(0), x), x),
        key,
        drawn[1],
    )
    got, wanted = shapes(drawn[0], "latents"), shapes(own, "latents")
    if jax.tree.map(jnp.shape, drawn[0]) != jax.tree.map(jnp.shape, own):
        raise ValueError(f"simulate returns latents {got}, but those of the guide are {wanted}.")
    return simulate


def _rank(draws: np.ndarray, value: np.ndarray, ties: np.random.Generator) -> np.ndarray:
    """P(z < z0) from draws ``[S, ...]``; uniform in its cell, as where values are discrete."""
    below = (draws < value).sum(axis=0) + ties.uniform(size=value.shape) * (
        (draws == value).sum(axis=0) + 1
    )
    return np.asarray(below / (len(draws) + 1))


def _row(name: str, values: np.ndarray) -> CalibrationRow:
    coverage = float(np.mean(np.abs(values - 0.5) < COVERAGE / 2))
    error = math.sqrt(COVERAGE * (1 - COVERAGE) / len(values))
    bias = float(0.5 - values.mean())
    return CalibrationRow(name, bias, symmetry_p(values), coverage, error)


def symmetry_p(values: np.ndarray) -> float:
    r"""The p-value of the symmetry about 1/2 of the distribution of ``values``, exact.

    .. math:: D = \sup_t | F(t) - (1 - F(1 - t)) |

    With the values in the order of their distance from 1/2, the furthest first, M D is the
    largest distance from 0 of the walk that takes a step up or down with the sign of each.
    """
    signs = np.sign(values - 0.5)[np.argsort(-np.abs(values - 0.5), kind="stable")]
    signs = signs[signs != 0]
    reached = int(np.max(np.abs(np.cumsum(signs)), initial=0.0))
    return 1.0 if reached == 0 else 1.0 - _stay_within(reached - 1, len(signs))


def _stay_within(bound: int, num_steps: int) -> float:
    """Probability that a fair walk of so many steps never leaves [-bound, bound].

    By reflection, walks that end in every other stretch of 2 (bound + 1) places are taken away.
    """
    from scipy.stats import binom  # half a second to import

    ups = np.arange(num_steps + 1)
    stretch, inside = np.divmod(2 * ups - num_steps + bound + 1, 2 * (bound + 1))
    signs = np.where(inside == 0, 0.0, 1.0 - 2.0 * (stretch % 2))
    return float(np.sum(signs * binom.pmf(ups, num_steps, 0.5)))


def _table(found: Calibration, max_rows: int = 20) -> str:
    rows, num = found.rows, len(next(iter(found.p_values.values())))
    ended = ", ".join(f"{count} {status}" for status, count in sorted(found.statuses.items()))
    width = max(len("latent"), *(len(row.latent) for row in rows[:max_rows]))
    lines = [f"{num} replications: fits ended as {ended}"]
    if found.biased:
        shown = ", ".join(found.biased[:10]) + (", ..." if len(found.biased) > 10 else "")
        lines.append(f"biased at 5 % over all {len(rows)} latents: {shown}")
    else:
        lines.append(f"no significant bias (5 % over all {len(rows)} latents)")
    lines.append(f"{'latent':<{width}}  {'q is':<8} {'bias':>6} {'p':>8} {'in 90 % interval':>18}")
    for row in rows[:max_rows]:
        side = ("too high" if row.bias > 0 else "too low") if row.latent in found.biased else ""
        inside = f"{row.coverage:.0%} ± {row.coverage_error:.0%}"
        lines.append(
            f"{row.latent:<{width}}  {side:<8} {row.bias:>6.3f} {row.bias_p:>8.2g} {inside:>18}"
        )
    if len(rows) > max_rows:
        lines.append(f"... and {len(rows) - max_rows} more")
    return "\n".join(lines)
