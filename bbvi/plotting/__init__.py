"""Pictures of fits, models, comparisons and calibrations; need matplotlib (the ``plot`` extra)."""

from bbvi.plotting.calibration import plot_calibration
from bbvi.plotting.comparison import plot_comparison
from bbvi.plotting.factor_graph import plot_factor_graph
from bbvi.plotting.result import plot_result

__all__ = ["plot_calibration", "plot_comparison", "plot_factor_graph", "plot_result"]
