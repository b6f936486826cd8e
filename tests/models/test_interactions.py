"""Interactions derived by hand against mixed second differences of log_joint."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import models

# Enough for a pair that shows only in one draw out of three.
NUM_REDRAWS = 64

NAMES = [name for name in models.names() if models.get(name).interactions is not None]


def second_differences(log_joint, z, other):
    r"""Returns what is not additive in entries i and j, for all pairs (V, V), and its scale.

    .. math:: L(z_i', z_j') - L(z_i', z_j) - L(z_i, z_j') + L(z_i, z_j)
    """
    (old, unravel), (new, _) = ravel_pytree(z), ravel_pytree(other)

    def value(changed):
        return log_joint(unravel(jnp.where(changed, new, old)))

    entries = jnp.eye(old.size, dtype=bool)
    neither, one = value(jnp.zeros(old.size, bool)), jax.vmap(value)(entries)
    both = jax.lax.map(lambda entry: jax.vmap(value)(entry[None, :] | entries), entries)
    return both - one[:, None] - one[None, :] + neither, jnp.abs(both).max()


def largest_differences(target, x, z, other):
    """Returns the largest second difference of each pair (V, V), in units of the rounding error."""

    def of_one_redraw(pair):
        differences, scale = second_differences(lambda z: target.log_joint(x, z), *pair)
        return jnp.abs(differences) / (jnp.finfo(scale.dtype).eps * scale)

    over_redraws = jax.jit(lambda *pair: jax.lax.map(of_one_redraw, pair).max(axis=0))
    return np.asarray(over_redraws(z, other))


def as_matrix(interactions, z):
    """Returns the blocks as one symmetric matrix (V, V), in the order of `ravel_pytree`."""
    sizes = {name: leaf.size for name, leaf in sorted(z.items())}
    ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
    matrix = np.zeros((sum(sizes.values()),) * 2, bool)
    for (a, b), block in interactions.items():
        assert a <= b
        assert block.dtype == bool
        assert block.shape == (sizes[a], sizes[b])
        rows, columns = (slice(ends[name] - sizes[name], ends[name]) for name in (a, b))
        if a == b:
            np.testing.assert_array_equal(block, block.T)
        matrix[rows, columns] = block
        matrix[columns, rows] = block.T
    return matrix


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_interactions_are_those_that_can_be_observed(name, draw):
    target = models.get(name)
    x = target.data()
    both = [draw(name, seed) for seed in range(2 * NUM_REDRAWS)]
    z, other = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *half)
        for half in (both[:NUM_REDRAWS], both[NUM_REDRAWS:])
    )
    claimed = as_matrix(target.interactions(x), both[0])
    assert claimed.diagonal().all()

    differences = largest_differences(target, x, z, other)
    pairs = ~np.eye(len(claimed), dtype=bool)
    # Additive pairs show at most a few units of rounding, all others more than 1e11.
    np.testing.assert_array_equal((differences > 1e6)[pairs], claimed[pairs])


# Other sizes than those registered, for data and guide alike.
SIZES = [
    (models.crowdsourcing, {"num_tasks": 50, "num_workers": 6}),
    (models.deep_exponential, {"num_images": 7, "num_factors": (4, 3)}),
    (models.hidden_markov, {"num_years": 25}),
    (models.matrix_factorization, {"num_users": 9, "num_items": 5, "rank": 3}),
    (models.panel, {"num_individuals": 4, "num_periods": 9}),
    (models.sigmoid_belief, {"num_images": 3, "num_hidden": (5, 2)}),
    (models.state_space, {"num_years": 33}),
    (
        models.topics,
        {"num_documents": 3, "num_words": 9, "num_topics": 4, "vocabulary": 6},
    ),
    (models.wine_mixture, {"num_data": 200, "num_components": 4, "num_features": 2}),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("module", "sizes"), SIZES, ids=[module.__name__ for module, _ in SIZES])
def test_data_guide_and_interactions_take_sizes(module, sizes):
    def sized(function, *args):
        names = inspect.signature(function).parameters
        return function(*args, **{name: n for name, n in sizes.items() if name in names})

    def random(latent, rng):
        if jnp.issubdtype(latent.dtype, jnp.integer):
            return rng.integers(2, size=(4, *latent.shape), dtype=latent.dtype)
        return rng.uniform(0.5, 1.5, size=(4, *latent.shape))

    x, guide = sized(module.data), sized(module.mean_field)
    latents = jax.eval_shape(
        lambda a, b: guide.sample(guide.base_noise(a), guide.init(b, x), x),
        *jax.random.split(jax.random.key(0)),
    )
    rng = np.random.default_rng(0)
    z, other = (jax.tree.map(lambda latent: random(latent, rng), latents) for _ in range(2))
    claimed = as_matrix(sized(module.interactions, x), latents)
    target = next(t for t in map(models.get, models.names()) if t.data is module.data)
    differences = largest_differences(target, x, z, other)
    assert np.all(differences[~claimed] < 1e3)
    assert np.any(differences > 1e6)
