import itertools

import jax
import numpy as np
import pytest

import bbvi
import models
from bbvi.dependence.local_values import local_values, num_colours
from tests.dependence.test_blankets import one_draw


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "colours"), [("hidden_markov", 2), ("ising", 2), ("gaussian_mixture_small", 1)]
)
def test_values_are_those_of_brute_force(name, colours):
    """Differences over the values of an entry are those of the log joint, to rounding."""
    target = models.get(name)
    x, guide = target.data(), target.guides["mean_field"]()
    problem = bbvi.Problem(target.log_joint, guide)
    params = problem.init(jax.random.key(0), x)
    z = jax.tree.map(
        lambda leaf: leaf[0], problem.sample(problem.base_noise(jax.random.key(1), 1), params, x)
    )
    (site,) = guide.sites()
    sites = guide.sites()
    assert num_colours(target.log_joint, sites, x, z) == {site.name: colours}
    got = jax.jit(lambda x, z: local_values(target.log_joint, sites, site, x, z))(x, z)
    flat = np.asarray(z[site.name]).reshape(-1)
    log_joint = jax.jit(target.log_joint)
    for i, k in itertools.product(range(flat.size), range(site.num_values)):
        flipped = flat.copy()
        flipped[i] = k
        wanted = log_joint(x, {site.name: flipped.reshape(z[site.name].shape)}) - log_joint(x, z)
        there = got.reshape(site.num_values, -1)[:, i]
        np.testing.assert_allclose(there[k] - there[flat[i]], wanted, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "site", "number"),
    [
        ("wine_mixture_gather", "c", 1),
        ("topics", "t", 1),
        ("hidden_markov", "z", 2),
        ("ising", "s", 2),
    ],
)
def test_colours(name, site, number):
    target, x, z = one_draw(name)
    guide = next(iter(target.guides.values()))()
    assert num_colours(target.log_joint, guide.sites(), x, z)[site] == number
