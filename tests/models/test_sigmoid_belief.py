import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import models


def looped(pixels, w1, w2, h1, h2):
    total = 0.0
    for n, d in itertools.product(*map(range, pixels.shape)):
        on = special.expit(sum(h1[n, j] * w1[j, d] for j in range(4)))
        total += stats.bernoulli.logpmf(int(pixels[n, d]), on)
    for n, j in itertools.product(range(6), range(4)):
        on = special.expit(sum(h2[n, k] * w2[k, j] for k in range(3)))
        total += stats.bernoulli.logpmf(h1[n, j], on)
    return total + h2.size * np.log(0.5)


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop(draw):
    x, z = models.sigmoid_belief.data(), draw("sigmoid_belief")
    expected = looped(**jax.tree.map(np.asarray, x | z))
    actual = jax.jit(models.sigmoid_belief.log_joint)(x, z)
    assert actual == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_log_joint_with_weights_adds_their_prior(draw):
    x, z = models.sigmoid_belief.data_weights(), draw("sigmoid_belief_weights")
    expected = looped(**jax.tree.map(np.asarray, x | z))
    expected += sum(stats.norm.logpdf(z[name]).sum() for name in ("w1", "w2"))
    actual = jax.jit(models.sigmoid_belief.log_joint_weights)(x, z)
    assert actual == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_density_of_one_image_sums_to_one():
    """Over all 2^3 tops, 2^2 hidden units below and 2^2 images of two pixels."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(2, 2)), "w2": rng.normal(size=(3, 2))}
    total = 0.0
    for bits in itertools.product([0, 1], repeat=7):
        pixels, h1, h2 = (jnp.asarray(part)[None] for part in (bits[:2], bits[2:4], bits[4:]))
        x = jax.tree.map(jnp.asarray, weights | {"pixels": pixels.astype(float)})
        total += np.exp(models.sigmoid_belief.log_joint(x, {"h1": h1, "h2": h2}))
    assert total == pytest.approx(1.0, rel=1e-12)


def test_pixels_are_binary_and_neither_all_dark_nor_all_bright():
    pixels = np.asarray(models.sigmoid_belief.data_weights(1797)["pixels"])
    assert set(np.unique(pixels)) == {0.0, 1.0}
    assert 0.2 < pixels.mean() < 0.8
