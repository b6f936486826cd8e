"""The loop: one step, chunks of steps, stopping, and what a fit returns."""

from bbvi.infer.assess import Diagnostics
from bbvi.infer.checkpoint import Checkpoint
from bbvi.infer.fit import NonFiniteError, fit
from bbvi.infer.ladder import Auto, Rung
from bbvi.infer.loader import Loader
from bbvi.infer.loop import Progress
from bbvi.infer.mode import find_mode
from bbvi.infer.restarts import Restarts
from bbvi.infer.result import FitResult, History
from bbvi.infer.step import FitState, StepInfo, make_step
from bbvi.infer.stopping import Plateau
from bbvi.infer.summary import format_summary

__all__ = [
    "Auto",
    "Checkpoint",
    "Diagnostics",
    "FitResult",
    "FitState",
    "History",
    "Loader",
    "NonFiniteError",
    "Plateau",
    "Progress",
    "Restarts",
    "Rung",
    "StepInfo",
    "find_mode",
    "fit",
    "format_summary",
    "make_step",
]
