"""Black-box variational inference in JAX: ``fit(log_joint, guide, x)``."""

from bbvi import diagnostics, guides, supports
from bbvi._types import Params
from bbvi.baselines import Baseline, LeaveOneOut, MovingAverage, NoBaseline
from bbvi.estimators import (
    Estimate,
    Estimator,
    PerSite,
    Reparameterization,
    ScoreFunction,
    SurrogateEstimator,
    VarGrad,
)
from bbvi.guides import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    FullRank,
    Gamma,
    Guide,
    Laplace,
    LogNormal,
    LowRank,
    MeanField,
    Normal,
    Product,
    StudentT,
    VonMises,
)
from bbvi.infer import (
    FitResult,
    FitState,
    NonFiniteError,
    Plateau,
    Progress,
    StepInfo,
    find_mode,
    fit,
    format_summary,
    make_step,
)
from bbvi.objectives import Elbo, Iwae, Objective
from bbvi.problem import Problem

__version__ = "0.1.0"

__all__ = [
    "Baseline",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Dirichlet",
    "Elbo",
    "Estimate",
    "Estimator",
    "FitResult",
    "FitState",
    "FullRank",
    "Gamma",
    "Guide",
    "Iwae",
    "Laplace",
    "LeaveOneOut",
    "LogNormal",
    "LowRank",
    "MeanField",
    "MovingAverage",
    "NoBaseline",
    "NonFiniteError",
    "Normal",
    "Objective",
    "Params",
    "PerSite",
    "Plateau",
    "Problem",
    "Product",
    "Progress",
    "Reparameterization",
    "ScoreFunction",
    "StepInfo",
    "StudentT",
    "SurrogateEstimator",
    "VarGrad",
    "VonMises",
    "diagnostics",
    "find_mode",
    "fit",
    "format_summary",
    "guides",
    "make_step",
    "supports",
]
