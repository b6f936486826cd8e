"""Makes a target of a log joint and a stored posterior."""

import functools

import jax.numpy as jnp

import bbvi
from models.data import load
from models.registry import Reference, Target, register

_OF_THE_REFERENCE = ("mean_", "sd_", "draws_", "check_")


def _part(name, prefix):
    """The stored arrays of one posterior under this prefix, without it."""
    stored = load(f"posteriors/{name}").items()
    return {key.removeprefix(prefix): value for key, value in stored if key.startswith(prefix)}


def draws(name):
    """Returns 1,000 draws (1000, ...) of each latent from the posterior of this name.

    They are rounded to single precision, whatever their dtype.
    """
    return {latent: rows.astype(float) for latent, rows in _part(name, "draws_").items()}


def register_posterior(name, log_joint, supports, *, posteriordb, how="10,000 draws of NUTS"):
    """Registers a target with data and reference of the stored posterior of this name.

    Args:
        name: That of the file, without its ending, and of the target.
        log_joint: log p(x, z), with all constants.
        supports: For each latent its shape and its support.
        posteriordb: The posterior's name there.
        how: How the reference was obtained.
    """
    sites = {latent: bbvi.Normal(*placed) for latent, placed in supports.items()}

    def data():
        stored = load(f"posteriors/{name}").items()
        return {
            key: jnp.asarray(value)
            for key, value in stored
            if not key.startswith(_OF_THE_REFERENCE)
        }

    def reference():
        return Reference(how=how, mean=_part(name, "mean_"), sd=_part(name, "sd_"))

    return register(
        Target(
            name=name,
            log_joint=log_joint,
            data=data,
            guides={
                "mean_field": functools.partial(bbvi.MeanField, sites),
                "full_rank": functools.partial(bbvi.FullRank, sites),
            },
            reference=reference,
            source=f"{posteriordb} in posteriordb.",
        )
    )
