"""Reference posteriors: small real models with draws from the exact posterior to compare with.

    from models import posteriors

    target = models.get(posteriors.NAMES[0])
    draws = posteriors.draws(target.name)  # 1,000 of each latent

`NAMES` are one of each kind, and what benchmarks and tests take unless told otherwise; `MORE` are
all others that posteriordb has draws of, many of them regressions that differ in their data only.
All are targets of the registry. The data and draws are those of posteriordb: Magnusson, Torgander,
Bürkner, Zhang, Carpenter and Vehtari (2024), posteriordb: Testing, Benchmarking and Developing
Bayesian Inference Algorithms.
"""

from models.posteriors import (
    gaussian_processes,
    mixtures,
    pharmacokinetics,
    regressions,
    time_series,
)
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

MORE = (
    "accel_gp",
    "arma11",
    "diamonds",
    "earn_height",
    "eight_schools_centered",
    "gp_pois_regr",
    "hmm_drive_0",
    "hmm_drive_1",
    "kidscore_interaction",
    "kidscore_interaction_c",
    "kidscore_interaction_c2",
    "kidscore_interaction_z",
    "kidscore_mom_work",
    "kidscore_momhs",
    "kidscore_momiq",
    "kilpisjarvi",
    "log10earn_height",
    "logearn_height",
    "logearn_height_male",
    "logearn_interaction",
    "logearn_interaction_z",
    "logearn_logheight_male",
    "logmesquite",
    "logmesquite_logva",
    "logmesquite_logvas",
    "logmesquite_logvash",
    "logmesquite_logvolume",
    "mesquite",
    "nes1972",
    "nes1976",
    "nes1980",
    "nes1984",
    "nes1992",
    "nes1996",
    "nes2000",
    "one_comp_mm_elim_abs",
    "sblrc",
    "sblri",
)

__all__ = [
    "MORE",
    "NAMES",
    "draws",
    "gaussian_processes",
    "mixtures",
    "pharmacokinetics",
    "regressions",
    "time_series",
]
