"""Gradient estimators: one family a file, all with the same interface."""

from bbvi.estimators.arm import Arm
from bbvi.estimators.arms import Arms
from bbvi.estimators.base import BiasedEstimator, Cost, Estimate, Estimator, SurrogateEstimator
from bbvi.estimators.coordinate import CoordinateControlVariate
from bbvi.estimators.disarm import DisArm
from bbvi.estimators.discrete import DiscreteEstimator
from bbvi.estimators.double_cv import DoubleCv
from bbvi.estimators.local_expectation import LocalExpectation
from bbvi.estimators.measure_valued import MeasureValued
from bbvi.estimators.overdispersed import Overdispersed
from bbvi.estimators.per_site import PerSite, default_estimator
from bbvi.estimators.rebar import Rebar
from bbvi.estimators.reparameterization import Reparameterization
from bbvi.estimators.score_function import ScoreFunction
from bbvi.estimators.taylor import TaylorControlVariate
from bbvi.estimators.var_grad import VarGrad

__all__ = [
    "Arm",
    "Arms",
    "BiasedEstimator",
    "CoordinateControlVariate",
    "Cost",
    "DisArm",
    "DiscreteEstimator",
    "DoubleCv",
    "Estimate",
    "Estimator",
    "LocalExpectation",
    "MeasureValued",
    "Overdispersed",
    "PerSite",
    "Rebar",
    "Reparameterization",
    "ScoreFunction",
    "SurrogateEstimator",
    "TaylorControlVariate",
    "VarGrad",
    "default_estimator",
]
