"""Reference posteriors: small real models with draws from the exact posterior to compare with.

    from models import posteriors

    target = models.get(posteriors.NAMES[0])
    draws = posteriors.draws(target.name)  # 1,000 of each latent

All of `NAMES` are targets of the registry. The data and draws are those of posteriordb: Magnusson,
Torgander, Bürkner, Zhang, Carpenter and Vehtari (2024), posteriordb: Testing, Benchmarking and
Developing Bayesian Inference Algorithms.
"""

from models.posteriors import mixtures, regressions, time_series
from models.posteriors.stored import draws

NAMES = (
    "arK",
    "eight_schools_noncentered",
    "garch11",
    "gp_regr",
    "hmm_example",
    "kidscore_momhsiq",
    "lotka_volterra",
    "low_dim_gauss_mix",
    "nes1988",
    "radon",
    "wells_daae_c",
)

__all__ = ["NAMES", "draws", "mixtures", "regressions", "time_series"]
