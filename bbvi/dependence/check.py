"""The analysis of a log joint checked against the log joint itself, exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from bbvi._log_joint import trace_log_joint
from bbvi._tree import is_floating
from bbvi._types import Data, Latents, LogJoint, PyTree
from bbvi.dependence.draws import draw_and_sites
from bbvi.dependence.replacements import Change, Comparison, Replacements, compare


@dataclasses.dataclass(frozen=True, repr=False)
class BlanketReport:
    """What ``check_blankets`` compared, all in agreement.

    Attributes:
      sizes: number of entries of each latent.
      checked: number of entries checked of each latent. An entry counts if the log joint was
        finite at one replacement of it at least.
      worst_error: largest disagreement, relative to the sum of the terms' absolute values.
      tolerance: what was allowed for rounding: 1e-8, or 1e-5 where ``log_joint`` computes in
        single precision by name.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> bbvi.check_blankets(lambda x, z: -jnp.sum(z**2), None, jnp.ones(3)).checked
      {'latents': 3}
    """

    sizes: Mapping[str, int]
    checked: Mapping[str, int]
    worst_error: float
    tolerance: float

    def __repr__(self) -> str:
        lines = [
            f"BlanketReport: all changes agree, worst relative error {self.worst_error:.0e} "
            f"(tolerance {self.tolerance:.0e})"
        ]
        for name, size in self.sizes.items():
            lines.append(f"  {name}: {self.checked[name]} of {size} entries checked")
        return "\n".join(lines)


def check_blankets(
    log_joint: LogJoint, x: Data, z: Latents, *model_args: PyTree, max_entries: int = 1000
) -> BlanketReport:
    r"""Check that the terms found to read a latent entry are the ones that do.

    With :math:`R_i` the sum of the terms taken to read entry i, and w any other value of it,

    .. math::
      R_i(z_i := w) - R_i(z) = \log p(x, z_i := w) - \log p(x, z)

    No randomness is involved: a term that was missed, dropped or counted twice shows as a
    difference. The analysis is that of ``fit``, with x traced. All is computed in float64,
    whatever the inputs, unless the function only works in single precision.

    Integers are replaced by each value from 0 to the latent's maximum in z (ten of them at most),
    floats by 0.9 and 0.5 times themselves and by another entry of the latent, so that signs and
    bounds at 0 and 1 are kept. Where that leaves the support (a row of a simplex whose prior
    checks its sum) both sides must be infinite, and the entry does not count as checked.

    Args:
      log_joint: ``(x, z) -> []`` or ``(x, z, theta) -> []``.
      x: data.
      z: one draw of the latents, or a guide: then its draw is used, and its independent blocks
        (rows of a Dirichlet, all of a full-rank guide) take the place of entries in R.
      *model_args: theta, where there is one.
      max_entries: of a larger latent, this many entries are checked, evenly spaced.

    Returns:
      How many entries were checked, and the largest relative error.

    Raises:
      ValueError: the two differ; the message names entry, changes and the terms responsible. Or
        ``log_joint`` is not finite at z, or cannot be traced.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     return -jnp.sum(z["a"] ** 2) - jnp.sum((x["y"] - z["a"][x["group"]]) ** 2)
      >>> x = {"y": jnp.arange(4.0), "group": jnp.array([0, 0, 1, 1])}
      >>> report = bbvi.check_blankets(log_joint, x, {"a": jnp.ones(2)})
      >>> report.checked, report.worst_error < 1e-12
      ({'a': 2}, True)

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference, section 3.
    """
    if max_entries < 1:
        raise ValueError(f"max_entries must be at least 1, got {max_entries}.")
    z, sites = draw_and_sites(x, z)
    args = jax.tree.map(jnp.asarray, (x, z, *model_args))
    trace_log_joint(log_joint, *args)
    try:
        with jax.enable_x64(True):  # noqa: FBT003
            double = jax.tree.map(lambda a: a.astype(float) if is_floating(a) else a, args)
            comparison = compare(log_joint, sites, double, max_entries)
    except (TypeError, ValueError, jax.errors.JaxRuntimeError):
        # The carry of a loop, say, is float32 by name; or a callback returns in another thread,
        # where this setting does not hold.
        comparison = compare(log_joint, sites, args, max_entries)
    return _judge(comparison)


def _judge(found: Comparison) -> BlanketReport:
    """Raise where changes differ by more than rounding."""
    rows, changes = found.rows, found.changes
    if not np.isfinite(found.log_joint):
        raise ValueError(
            f"log_joint is {found.log_joint} at z; check it at latents where it is finite."
        )
    is_finite = np.isfinite(changes.expected)
    with np.errstate(invalid="ignore"):
        difference = np.maximum(abs(changes.found - changes.expected), abs(changes.missing))
        error = difference / changes.scale
    # An infinite change must be infinite on both sides; its size says nothing.
    error = np.where(is_finite, error, np.where(np.isfinite(changes.found), np.inf, 0.0))
    error = np.nan_to_num(error, nan=np.inf)
    if error.max(initial=0.0) > found.tolerance:
        worst = int(error.argmax())
        row = Replacements(*(column[worst] for column in rows))
        change = Change(*(float(column[worst]) for column in changes))
        raise ValueError(_message(found.leaves, row, change, found.uncounted(row)))
    checked = {
        name: len(np.unique(rows.entry[(rows.leaf == number) & is_finite]))
        for number, name in enumerate(found.leaves)
    }
    sizes = {name: leaf.size for name, leaf in found.leaves.items()}
    return BlanketReport(sizes, checked, float(error.max(initial=0.0)), found.tolerance)


def _message(
    leaves: Mapping[str, np.ndarray], row: Replacements, change: Change, terms: list[str]
) -> str:
    name = list(leaves)[row.leaf]
    leaf = leaves[name]
    index = tuple(int(k) for k in np.unravel_index(row.entry, leaf.shape))
    what = f"'{name}'" + (f" entry {list(index)}" if index else "")
    message = (
        f"the terms found to read latent {what} are not the ones that do: replacing "
        f"{leaf[index]:.6g} by {row.value:.6g} changes log_joint by {change.expected:.6g}, their "
        f"sum by {change.found:.6g}"
    )
    if terms:
        message += "; " + "; ".join(terms)
    elif abs(change.missing) > 0:
        message += f", and all terms together differ from log_joint by {change.missing:.6g}"
    return (
        f"{message}. If log_joint is a pure function (no state, no randomness of its own), please "
        "report this as an error of bbvi; ScoreFunction(signal='full') does not use the analysis."
    )
