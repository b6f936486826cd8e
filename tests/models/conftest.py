"""Fixtures for the tests of the models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import posteriors

# One draw of the latents of each target, away from the edges of their supports.
DRAWS = {
    "bayesian_network": lambda rng: {
        "hidden_kernel": rng.normal(size=(10, 20)),
        "hidden_bias": rng.normal(size=20),
        "output_kernel": rng.normal(size=20),
        "output_bias": rng.normal(),
        "noise": rng.uniform(0.5, 1.5),
    },
    "beta_bernoulli": lambda rng: {"p": rng.uniform(0.1, 0.9)},
    "binary_vae_linear": lambda rng: {"z1": rng.integers(2, size=(100, 200))},
    "binary_vae_linear_2": lambda rng: {
        "z1": rng.integers(2, size=(100, 200)),
        "z2": rng.integers(2, size=(100, 200)),
    },
    "binary_vae_nonlinear": lambda rng: {"z1": rng.integers(2, size=(100, 200))},
    "breast_cancer": lambda rng: {"w": 0.3 * rng.normal(size=31)},
    "conjugate_gaussian": lambda rng: {"mu": rng.normal(size=4)},
    "convolutional_vae": lambda rng: {"z": rng.normal(size=(20, 2))},
    "crowdsourcing": lambda rng: {"label": rng.integers(2, size=20), "skill": rng.normal(size=8)},
    "deep_exponential": lambda rng: {
        "z1": rng.uniform(0.5, 3.0, size=(5, 3)),
        "z2": rng.uniform(0.5, 3.0, size=(5, 2)),
        "w1": rng.uniform(0.5, 3.0, size=(3, 16)),
        "w2": rng.uniform(0.5, 3.0, size=(2, 3)),
    },
    "digits_vae": lambda rng: {"z": rng.integers(2, size=(300, 10))},
    "eight_schools_centered": lambda rng: {
        "theta": rng.normal(size=8),
        "mu": rng.normal(),
        "tau": rng.uniform(1.0, 3.0),
    },
    "eight_schools_noncentered": lambda rng: {
        "theta_trans": rng.normal(size=8),
        "mu": rng.normal(),
        "tau": rng.uniform(1.0, 3.0),
    },
    "gaussian_em": lambda rng: {"u": rng.normal(size=(150, 2))},
    "gaussian_mixture": lambda rng: {
        "weights": rng.dirichlet([5.0, 5.0, 5.0]),
        "means": np.sort(rng.normal(1.0, 1.0, size=3)),
        "scale": rng.uniform(0.3, 1.0),
        "assignments": rng.integers(3, size=150),
    },
    "gaussian_mixture_em": lambda rng: {"assignments": rng.integers(3, size=178)},
    "gaussian_mixture_small": lambda rng: {"assignments": rng.integers(3, size=6)},
    "hidden_markov": lambda rng: {"z": rng.integers(2, size=10)},
    "ising": lambda rng: {"s": rng.integers(2, size=(3, 4))},
    "ising_matrix": lambda rng: {"s": rng.integers(2, size=16)},
    "karate_club": lambda rng: {"c": rng.integers(2, size=34), "b": rng.normal(size=(2, 2))},
    "large_mixture": lambda rng: {
        "weights": rng.dirichlet([5.0, 5.0, 5.0, 5.0]),
        "means": rng.normal(size=(4, 2)),
        "scales": rng.uniform(0.5, 1.5, size=(4, 2)),
        "assignment": rng.integers(4, size=500),
    },
    "matrix_factorization": lambda rng: {
        "u": rng.normal(size=(8, 2)),
        "v": rng.normal(size=(10, 2)),
        "bias": rng.normal(size=8),
    },
    "panel": lambda rng: {
        "individual": rng.normal(size=8),
        "period": rng.normal(size=6),
        "scale": rng.uniform(0.5, 1.5),
    },
    "radon": lambda rng: {
        "alpha_raw": rng.normal(size=85),
        "beta": rng.normal(size=2),
        "mu_alpha": rng.normal(),
        "sigma_alpha": rng.uniform(0.5, 1.5),
        "sigma_y": rng.uniform(0.5, 1.5),
    },
    "random_effects": lambda rng: {
        "beta": rng.normal(size=3),
        "tau": rng.uniform(0.5, 1.5),
        "effect": rng.normal(size=85),
    },
    "sigmoid_belief": lambda rng: {
        "h1": rng.integers(2, size=(6, 4)),
        "h2": rng.integers(2, size=(6, 3)),
    },
    "sigmoid_belief_learned": lambda rng: {
        "h1": rng.integers(2, size=(6, 4)),
        "h2": rng.integers(2, size=(6, 3)),
    },
    "sigmoid_belief_weights": lambda rng: {
        "h1": rng.integers(2, size=(6, 4)),
        "h2": rng.integers(2, size=(6, 3)),
        "w1": rng.normal(size=(4, 16)),
        "w2": rng.normal(size=(3, 4)),
    },
    "sir_influenza": lambda rng: {
        "infection_rate": rng.uniform(1.5, 2.0),
        "recovery_rate": rng.uniform(0.4, 0.6),
        "inverse_dispersion": rng.uniform(0.1, 0.3),
    },
    "topics": lambda rng: {
        "theta": rng.dirichlet(np.full(3, 5.0), size=4),
        "phi": rng.dirichlet(np.full(8, 5.0), size=3),
        "t": rng.integers(3, size=(4, 12)),
    },
    "toy_logistic": lambda rng: {"w": rng.normal()},
    "vae_200": lambda rng: {"z": rng.normal(size=(20, 50))},
    "vae_512": lambda rng: {"z": rng.normal(size=(20, 128))},
}
for writing in ("loop", "scan"):
    DRAWS[f"state_space_{writing}"] = lambda rng: {
        "s": rng.normal(10.0, size=20),
        "s0": rng.normal(10.0),
    }
for writing in ("distrax", "gather", "numpyro", "one_hot", "vmap"):
    DRAWS[f"wine_mixture_{writing}"] = lambda rng: {
        "mu": rng.normal(size=(3, 4)),
        "c": rng.integers(3, size=30),
    }


def reference_draw(name):
    rows = posteriors.draws(name)

    def draw(rng):
        row = rng.integers(1000)
        return {latent: values[row] for latent, values in rows.items()}

    return draw


for name in {*posteriors.NAMES, *posteriors.MORE} - set(DRAWS):
    DRAWS[name] = reference_draw(name)


@pytest.fixture
def draw():
    """Returns a function that draws the latents of a target by name."""

    def draw(name, seed=0):
        return jax.tree.map(jnp.asarray, DRAWS[name](np.random.default_rng(seed)))

    return draw
