"""Pictures of a calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from bbvi.calibration import Calibration
from bbvi.plotting._figure import figure_class

MAX_PANELS = 12


def plot_calibration(calibration: Calibration, path: str | None = None) -> Any:
    """Histogram of P(z < z0) for each latent, the most significant bias first.

    The grey band holds the counts of uniform values, bin by bin, in 95 of 100 cases. Values heaped
    on the right: q is too low; at both ends: too narrow; in the middle: too wide.

    Args:
      calibration: what ``check_calibration`` returned.
      path: where to write the picture; nowhere by default.

    Returns:
      The matplotlib figure.

    Raises:
      ImportError: matplotlib is not installed.

    Example:
      >>> import bbvi, numpy as np
      >>> p_values = {"mu": np.linspace(0.001, 0.999, 200)}
      >>> figure = bbvi.Calibration(p_values, 0, {"converged": 200}).plot()
      >>> figure.axes[0].get_title()
      'mu, bias p = 1'
    """
    from scipy.stats import binom  # matplotlib and this are for pictures only

    shown = calibration.rows[:MAX_PANELS]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    width = max(3.0 * columns, 4.5)
    figure = figure_class()(figsize=(width, 2.5 * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    num = len(calibration.p_values[shown[0].latent])
    bins = max(5, min(20, num // 10))
    low, high = binom.ppf([0.025, 0.975], num, 1 / bins)
    for axis, row in zip(axes, shown, strict=False):
        is_biased = row.latent in calibration.biased
        axis.axhspan(low, high, color="0.85", lw=0)
        edges = np.linspace(0.0, 1.0, bins + 1)
        colour = "#D55E00" if is_biased else "#0072B2"
        values = calibration.p_values[row.latent]
        axis.hist(values, edges, color=colour, alpha=0.75, edgecolor="white", lw=0.5)
        axis.axhline(num / bins, color="0.3", lw=0.8, ls="--")
        axis.set_title(f"{row.latent}, bias p = {row.bias_p:.2g}", fontsize=9)
        axis.set_xlim(0.0, 1.0)
        axis.set_xlabel("P(z < true value) under q", fontsize=8)
        axis.set_ylabel("replications", fontsize=8)
        axis.tick_params(labelsize=8)
    for axis in axes[len(shown) :]:
        figure.delaxes(axis)
    title = "grey: 95 % of bins of an exact posterior; orange: biased"
    if len(calibration.p_values) > len(shown):
        title += f"; {len(shown)} of {len(calibration.p_values)} latents"
    figure.suptitle(title, fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure
