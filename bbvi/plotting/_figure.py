"""What all pictures share."""

from __future__ import annotations

from typing import Any


def figure_class() -> Any:
    """The figure of matplotlib, which is not loaded before it is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'bbvi[plot]'.") from error
    return Figure
