import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

import bbvi
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


@pytest.mark.usefixtures("x64")
def test_log_joint_with_learned_weights_is_that_with_known_ones(draw):
    x, z = models.sigmoid_belief.data(), draw("sigmoid_belief")
    theta = models.sigmoid_belief.model_params()
    actual = models.sigmoid_belief.log_joint_learned({"pixels": x["pixels"]}, z, theta)
    assert actual == pytest.approx(float(models.sigmoid_belief.log_joint(x, z)), rel=1e-12)


def exact_log_evidences(pixels, theta):
    """Log p of every image, summed over the 128 values of its causes by SciPy."""
    pixels, w1, w2 = (np.asarray(a, float) for a in (pixels, theta["w1"], theta["w2"]))
    causes = np.array(list(itertools.product([0, 1], repeat=7)))
    h1, h2 = causes[:, :4], causes[:, 4:]
    log_prior = special.log_expit((2 * h1 - 1) * (h2 @ w2)).sum(axis=1) - 3 * np.log(2.0)
    log_pixels = special.log_expit((2 * pixels[:, None] - 1) * (h1 @ w1)).sum(axis=2)
    return special.logsumexp(log_prior + log_pixels, axis=1)


def test_batches_train_as_all_images_do():
    """Exact log evidence per image after training, against that of independent pixels."""
    x = models.sigmoid_belief.data_weights(600)
    mean = np.asarray(x["pixels"]).mean(axis=0)
    without = stats.bernoulli.logpmf(x["pixels"], mean).sum(axis=1).mean()
    evidences = []
    for batch_size in (None, 60):
        result = bbvi.fit(
            *(models.sigmoid_belief.log_joint_learned, models.sigmoid_belief.amortized(600), x),
            estimator=bbvi.DisArm(4),
            optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 2000)),
            model_params=models.sigmoid_belief.model_params(),
            batch_size=batch_size,
            num_steps=2000,
            progress=False,
        )
        evidences.append(exact_log_evidences(x["pixels"], result.params.model).mean())
    elbo = result.at(x).elbo(jax.random.key(1), 100)
    assert evidences[1] - 0.3 < elbo.value / 600 < evidences[1] + 0.01
    assert min(evidences) > without + 0.3
    assert evidences[0] == pytest.approx(evidences[1], abs=0.08)
