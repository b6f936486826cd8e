"""Gradient estimators: one family a file, all with the same interface."""

from bbvi.estimators.base import Estimate, Estimator, SurrogateEstimator
from bbvi.estimators.per_site import PerSite, default_estimator
from bbvi.estimators.reparameterization import Reparameterization
from bbvi.estimators.score_function import ScoreFunction
from bbvi.estimators.var_grad import VarGrad

__all__ = [
    "Estimate",
    "Estimator",
    "PerSite",
    "Reparameterization",
    "ScoreFunction",
    "SurrogateEstimator",
    "VarGrad",
    "default_estimator",
]
