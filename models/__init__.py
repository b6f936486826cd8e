"""A registry of small, well-understood targets for tests, benchmarks and notebooks.

Every target has a log joint, its data, the guides that suit it, and an answer to compare with: a
closed form, an enumeration, a quadrature, or a long Monte Carlo run. Each file says which.

    import models

    target = models.get("breast_cancer")
    x = target.data()
    guide = target.guides["full_rank"]()
    answer = target.reference()
"""

from models import (
    beta_bernoulli,
    breast_cancer,
    conjugate_gaussian,
    eight_schools,
    gaussian_em,
    gaussian_mixture,
    hidden_markov,
    ising,
    radon,
    sir_influenza,
    toy_logistic,
)
from models.registry import Reference, Target, get, names, register

__all__ = [
    "Reference",
    "Target",
    "beta_bernoulli",
    "breast_cancer",
    "conjugate_gaussian",
    "eight_schools",
    "gaussian_em",
    "gaussian_mixture",
    "get",
    "hidden_markov",
    "ising",
    "names",
    "radon",
    "register",
    "sir_influenza",
    "toy_logistic",
]
