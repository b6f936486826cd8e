"""The posterior in figures: mean, deviation and quantiles of every scalar, and their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bbvi._tree import entry_name, named_leaves
from bbvi._types import Latents


def summarize(draws: Latents) -> dict[str, Any]:
    """Mean, standard deviation and 5%, 50%, 95% quantiles of every scalar.

    Args:
      draws: a pytree of latents, every leaf with a leading axis S.

    Returns:
      What ``FitResult.summary`` returns.
    """
    rows = {}
    for name, leaf in named_leaves(draws, "latents").items():
        entries = np.asarray(leaf, np.float64)
        for index in np.ndindex(entries.shape[1:]):
            values = entries[(slice(None), *index)]
            low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
            rows[entry_name(name, index)] = {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)),
                "5%": float(low),
                "50%": float(median),
                "95%": float(high),
            }
    return rows


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
    if not (isinstance(summary, Mapping) and all(isinstance(r, Mapping) for r in summary.values())):
        raise TypeError(f"format_summary takes what FitResult.summary returned, got {summary!r}.")
    columns = list(next(iter(summary.values())))
    width = max(len(name) for name in summary)
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    for name, row in list(summary.items())[:max_rows]:
        lines.append(f"{name:<{width}}" + "".join(f"{row[column]:>8.3g}" for column in columns))
    if len(summary) > max_rows:
        lines.append(f"... and {len(summary) - max_rows} more")
    return "\n".join(lines)
