"""Families of one latent: the sites a mean-field guide is built from, on distrax distributions."""

from bbvi.guides.families.base import Family
from bbvi.guides.families.discrete import Bernoulli, Categorical, OneHotCategorical
from bbvi.guides.families.implicit import Beta, Dirichlet, Gamma, VonMises
from bbvi.guides.families.location_scale import Laplace, LocationScale, LogNormal, Normal, StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Dirichlet",
    "Family",
    "Gamma",
    "Laplace",
    "LocationScale",
    "LogNormal",
    "Normal",
    "OneHotCategorical",
    "StudentT",
    "VonMises",
]
