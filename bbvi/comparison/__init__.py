"""Estimators compared at common points: variance, bias, cost; and the choice of one."""

from bbvi.comparison.compare import compare_estimators
from bbvi.comparison.pilot import Choice, choose_estimator
from bbvi.comparison.result import Comparison, ComparisonRow

__all__ = ["Choice", "Comparison", "ComparisonRow", "choose_estimator", "compare_estimators"]
