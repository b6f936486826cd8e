"""A registry of small, well-understood targets for tests, benchmarks and notebooks.

Every target has a log joint, its data and the guides that suit it. Most have an answer to compare
with: a closed form, an enumeration, a quadrature, or a long Monte Carlo run; each file says which.
Most also list which entries of their latents interact.

    import models

    target = models.get("breast_cancer")
    x = target.data()
    guide = target.guides["full_rank"]()
    answer = target.reference()
"""

from models import (
    bayesian_network,
    beta_bernoulli,
    binary_vae,
    breast_cancer,
    conjugate_gaussian,
    convolutional_vae,
    crowdsourcing,
    deep_exponential,
    digits_vae,
    eight_schools,
    gaussian_em,
    gaussian_mixture,
    gaussian_mixture_em,
    hidden_markov,
    ising,
    karate_club,
    large_mixture,
    matrix_factorization,
    panel,
    posteriors,
    radon,
    random_effects,
    sigmoid_belief,
    sir_influenza,
    state_space,
    topics,
    toy_logistic,
    vae,
    wine_mixture,
)
from models.registry import Reference, Target, get, names, register

__all__ = [
    "Reference",
    "Target",
    "bayesian_network",
    "beta_bernoulli",
    "binary_vae",
    "breast_cancer",
    "conjugate_gaussian",
    "convolutional_vae",
    "crowdsourcing",
    "deep_exponential",
    "digits_vae",
    "eight_schools",
    "gaussian_em",
    "gaussian_mixture",
    "gaussian_mixture_em",
    "get",
    "hidden_markov",
    "ising",
    "karate_club",
    "large_mixture",
    "matrix_factorization",
    "names",
    "panel",
    "posteriors",
    "radon",
    "random_effects",
    "register",
    "sigmoid_belief",
    "sir_influenza",
    "state_space",
    "topics",
    "toy_logistic",
    "vae",
    "wine_mixture",
]
