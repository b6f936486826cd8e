"""What all pictures share."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, told apart with impaired colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def figure_class() -> Any:
    """The figure of matplotlib, which is not loaded before it is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'bbvi[plot]'.") from error
    return Figure
