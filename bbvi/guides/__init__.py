"""Variational families, built on distrax."""

from bbvi._types import Site
from bbvi.guides.base import Guide
from bbvi.guides.families import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Family,
    Gamma,
    Laplace,
    LogNormal,
    Normal,
    OneHotCategorical,
    StudentT,
    VonMises,
)
from bbvi.guides.flow import NormalizingFlow
from bbvi.guides.gaussian import FullRank, LowRank, VectorGuide
from bbvi.guides.joint_mixture import Mixture
from bbvi.guides.local import Local
from bbvi.guides.mean_field import MeanField
from bbvi.guides.mixture import NormalMixture
from bbvi.guides.product import Product

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Dirichlet",
    "Family",
    "FullRank",
    "Gamma",
    "Guide",
    "Laplace",
    "Local",
    "LogNormal",
    "LowRank",
    "MeanField",
    "Mixture",
    "Normal",
    "NormalMixture",
    "NormalizingFlow",
    "OneHotCategorical",
    "Product",
    "Site",
    "StudentT",
    "VectorGuide",
    "VonMises",
]
