"""Gradient estimators: one family a file, all with the same interface."""

from bbvi.estimators.arm import Arm
from bbvi.estimators.arms import Arms
from bbvi.estimators.base import BiasedEstimator, Cost, Estimate, Estimator, SurrogateEstimator
from bbvi.estimators.catalogue import CATALOGUE, catalogue_table
from bbvi.estimators.coordinate import CoordinateControlVariate
from bbvi.estimators.disarm import DisArm
from bbvi.estimators.discrete import DiscreteEstimator
from bbvi.estimators.double_cv import DoubleCv
from bbvi.estimators.doubly_reparameterized import DoublyReparameterized
from bbvi.estimators.enumeration import Enumeration
from bbvi.estimators.gumbel_softmax import GumbelSoftmax
from bbvi.estimators.local_expectation import LocalExpectation
from bbvi.estimators.measure_valued import MeasureValued
from bbvi.estimators.mixed import Mixed
from bbvi.estimators.mu_prop import MuProp
from bbvi.estimators.overdispersed import Overdispersed
from bbvi.estimators.ovis import Ovis
from bbvi.estimators.per_site import PerSite, default_estimator
from bbvi.estimators.rebar import Rebar
from bbvi.estimators.rein_max import ReinMax
from bbvi.estimators.relax import Relax
from bbvi.estimators.reparameterization import Reparameterization
from bbvi.estimators.reweighted_wake_sleep import ReweightedWakeSleep
from bbvi.estimators.rodeo import Rodeo
from bbvi.estimators.score_function import ScoreFunction
from bbvi.estimators.stick_breaking import StickBreaking
from bbvi.estimators.straight_through import StraightThrough
from bbvi.estimators.stratified import Stratified
from bbvi.estimators.taylor import TaylorControlVariate
from bbvi.estimators.unordered_set import UnorderedSet
from bbvi.estimators.var_grad import VarGrad
from bbvi.estimators.vimco import Vimco

__all__ = [
    "CATALOGUE",
    "Arm",
    "Arms",
    "BiasedEstimator",
    "CoordinateControlVariate",
    "Cost",
    "DisArm",
    "DiscreteEstimator",
    "DoubleCv",
    "DoublyReparameterized",
    "Enumeration",
    "Estimate",
    "Estimator",
    "GumbelSoftmax",
    "LocalExpectation",
    "MeasureValued",
    "Mixed",
    "MuProp",
    "Overdispersed",
    "Ovis",
    "PerSite",
    "Rebar",
    "ReinMax",
    "Relax",
    "Reparameterization",
    "ReweightedWakeSleep",
    "Rodeo",
    "ScoreFunction",
    "StickBreaking",
    "StraightThrough",
    "Stratified",
    "SurrogateEstimator",
    "TaylorControlVariate",
    "UnorderedSet",
    "VarGrad",
    "Vimco",
    "catalogue_table",
    "default_estimator",
]
