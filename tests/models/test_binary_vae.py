import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import bbvi
from models import binary_vae


def test_splits_are_binary_digits():
    sizes = {"train": 50_000, "valid": 10_000, "test": 10_000}
    for split, size in sizes.items():
        pixels = binary_vae.images(split)
        assert pixels.shape == (size, 784)
        assert set(np.unique(pixels)) == {0, 1}
        assert abs(pixels.mean() - 0.131) < 0.002
    assert binary_vae.images("train")[:, 0].max() == 0  # corners are dark


def test_another_file_is_refused(monkeypatch):
    monkeypatch.setattr(binary_vae, "SHA256", "0" * 64)
    binary_vae._packed.cache_clear()
    with pytest.raises(ValueError, match=r"has SHA-256 50de2c.*expected 000"):
        binary_vae.images("test")


def affine(params, inputs):
    return inputs @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def by_hand(name, x, z, theta):
    """Log joint by SciPy, from the parameters."""
    pixels = np.asarray(x["pixels"])
    z1 = np.asarray(z["z1"])
    bernoulli = lambda b, logits: stats.bernoulli.logpmf(b, special.expit(logits)).sum()  # noqa: E731
    prior = np.asarray(theta["prior"])
    layers = [params["params"] for params in theta["decoders"]]
    if name == "nonlinear":
        hidden = z1
        for i in range(2):
            hidden = affine(layers[0][f"Dense_{i}"], hidden)
            hidden = np.where(hidden > 0, hidden, 0.3 * hidden)
        return bernoulli(z1, prior) + bernoulli(pixels, affine(layers[0]["Dense_2"], hidden))
    total = bernoulli(pixels, affine(layers[0]["Dense_0"], 2.0 * z1 - 1.0))
    if name == "linear":
        return total + bernoulli(z1, prior)
    z2 = np.asarray(z["z2"])
    return (
        total + bernoulli(z1, affine(layers[1]["Dense_0"], 2.0 * z2 - 1.0)) + bernoulli(z2, prior)
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", binary_vae.NETWORKS)
def test_log_joint_equals_scipy(name):
    network, x = binary_vae.NETWORKS[name], binary_vae.data(2)
    guide = network.guide(2)
    z = guide.sample(guide.base_noise(jax.random.key(0)), guide.init(jax.random.key(1), x), x)
    rng = np.random.default_rng(0)
    theta = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), float),
        network.model_params(),
    )
    expected = by_hand(name, x, z, theta)
    np.testing.assert_allclose(network.log_joint(x, z, theta), expected, rtol=1e-10)


@pytest.mark.parametrize("name", binary_vae.NETWORKS)
def test_images_are_components_of_the_model(name):
    network, x = binary_vae.NETWORKS[name], binary_vae.data(5)
    problem = bbvi.Problem(network.log_joint, network.guide(5))
    params = problem.init(jax.random.key(0), x, network.model_params())
    assert problem.components(params, x).num_components == 5


def test_linear_decoder_starts_at_the_mean_image():
    network, rng = binary_vae.NETWORKS["linear"], np.random.default_rng(0)
    theta = network.model_params()
    bits = rng.integers(2, size=(200, 200)).astype(np.float32)
    logits = network.log_joint.decoders[0].apply(theta["decoders"][0], bits)
    mean = np.clip(binary_vae.train_mean(), 0.001, 0.999)
    np.testing.assert_allclose(logits.mean(axis=0), np.log(mean / (1.0 - mean)), atol=0.25)
    assert float(jnp.abs(logits).max()) > 1.0


def test_linear_encoder_reads_centred_pixels():
    """At the mean image its logits are its biases, which are zero."""
    x = binary_vae.batch(binary_vae.train_mean()[None])
    guide = binary_vae.NETWORKS["linear"].guide(1)
    np.testing.assert_allclose(
        guide.logits(guide.init(jax.random.key(0), x), x)["z1"], 0.0, atol=1e-6
    )


def test_equal_networks_are_equal():
    """So that a second fit compiles nothing."""
    again = binary_vae.LogJoint((binary_vae.LinearDecoder(784),))
    assert again == binary_vae.NETWORKS["linear"].log_joint
    assert hash(again) == hash(binary_vae.NETWORKS["linear"].log_joint)
