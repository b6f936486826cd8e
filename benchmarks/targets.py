"""Models of any size, for the suites on variance and on scale: name -> builder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import bbvi
import models
from models import (
    crowdsourcing,
    deep_exponential,
    hidden_markov,
    ising,
    matrix_factorization,
    sigmoid_belief,
    state_space,
    topics,
    wine_mixture,
)
from models import radon as radon_model


class Model(NamedTuple):
    """What ``bbvi.fit`` takes."""

    log_joint: Callable[..., Any]
    guide: bbvi.Guide
    x: Any

    @staticmethod
    def of(module: Any, log_joint: Callable[..., Any], **sizes: Any) -> "Model":
        """A module of ``models`` whose data and guide take the same sizes."""
        return Model(log_joint, module.mean_field(**sizes), module.data(**sizes))


def registered(name: str, guide: str = "mean_field") -> Model:
    """A target as it is."""
    target = models.get(name)
    return Model(target.log_joint, target.guides[guide](), target.data())


def mixture(num_data: int, num_components: int = 3) -> Model:
    """Gaussian mixture of wines; its latents are the assignments and the means."""
    log_joint, sizes = wine_mixture.log_joint_gather, (num_data, num_components)
    return Model(log_joint, wine_mixture.mean_field(*sizes), wine_mixture.data(*sizes))


def hidden_markov_chain(num_years: int) -> Model:
    return Model.of(hidden_markov, hidden_markov.log_joint, num_years=num_years)


def ising_grid(num_rows: int, num_columns: int) -> Model:
    guide = ising.mean_field((num_rows, num_columns))
    return Model(ising.log_joint, guide, ising.data())


def radon(num_rows: int, num_counties: int) -> Model:
    """The radon model on the measured houses, repeated and spread over counties at random."""
    x = {name: jnp.asarray(np.resize(leaf, num_rows)) for name, leaf in radon_model.data().items()}
    county = np.random.default_rng(0).integers(num_counties, size=num_rows, dtype=np.int32)
    guide = bbvi.MeanField(
        {
            "alpha_raw": bbvi.Normal((num_counties,)),
            "beta": bbvi.Normal((2,)),
            "mu_alpha": bbvi.Normal(()),
            "sigma_alpha": bbvi.LogNormal(()),
            "sigma_y": bbvi.LogNormal(()),
        }
    )
    return Model(radon_model.log_joint, guide, x | {"county": jnp.asarray(county)})


def document_topics(num_documents: int, num_words: int, num_topics: int, vocabulary: int) -> Model:
    return Model.of(
        topics,
        topics.log_joint,
        num_documents=num_documents,
        num_words=num_words,
        num_topics=num_topics,
        vocabulary=vocabulary,
    )


def belief_network(num_images: int, num_hidden: tuple[int, int]) -> Model:
    sizes = {"num_images": num_images, "num_hidden": num_hidden}
    return Model.of(sigmoid_belief, sigmoid_belief.log_joint, **sizes)


def wide_belief_network(num_images: int, num_hidden: tuple[int, int], num_pixels: int) -> Model:
    """A sigmoid belief network of as many random pixels as wanted."""
    rng = np.random.default_rng(0)
    x = {
        "pixels": rng.integers(2, size=(num_images, num_pixels)),
        "w1": rng.normal(size=(num_hidden[0], num_pixels)),
        "w2": rng.normal(size=(num_hidden[1], num_hidden[0])),
    }
    x = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in x.items()}
    return Model(sigmoid_belief.log_joint, sigmoid_belief.mean_field(num_images, num_hidden), x)


def deep_exponential_family(num_images: int) -> Model:
    x, guide = deep_exponential.data(num_images), deep_exponential.mean_field(num_images)
    return Model(deep_exponential.log_joint, guide, x)


def crowd(num_tasks: int, num_workers: int) -> Model:
    sizes = {"num_tasks": num_tasks, "num_workers": num_workers}
    return Model.of(crowdsourcing, crowdsourcing.log_joint, **sizes)


def factorization(num_users: int, num_items: int, rank: int, ratings_per_user: int) -> Model:
    sizes = {"num_users": num_users, "num_items": num_items, "rank": rank}
    x = matrix_factorization.data(**sizes, ratings_per_user=ratings_per_user)
    guide = matrix_factorization.mean_field(**sizes)
    return Model(matrix_factorization.log_joint, guide, x)


def random_walk(num_years: int) -> Model:
    return Model.of(state_space, state_space.log_joint_scan, num_years=num_years)
