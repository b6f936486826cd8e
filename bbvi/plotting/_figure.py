"""What all pictures share."""

from __future__ import annotations

import functools
import io
from typing import Any

# Okabe and Ito's colours, told apart with impaired colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@functools.cache
def figure_class() -> Any:
    """The figure of matplotlib, which is not loaded before it is needed, for notebooks too."""
    try:
        from matplotlib.figure import Figure as Base
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'bbvi[plot]'.") from error

    class Figure(Base):
        """A figure that a notebook shows where it is the value of a cell, without pyplot."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, dpi=100)
            return buffer.getvalue()

    return Figure
