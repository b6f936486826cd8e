import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

import bbvi
from bbvi.testing import check_mean
from models import vae

ACTIVATIONS = {"200": np.tanh, "512": lambda h: np.maximum(h, 0.0)}


def affine(params, inputs):
    return inputs @ np.asarray(params["kernel"], float) + np.asarray(params["bias"], float)


def two_layers(activation, params, inputs):
    for i in range(2):
        inputs = activation(affine(params["params"][f"Dense_{i}"], inputs))
    return inputs


def log_joints(activation, x, z, theta):
    """Log p(x_n, z_n) of every image by SciPy."""
    logits = affine(theta["params"]["logits"], two_layers(activation, theta, z))
    signs = 2.0 * np.asarray(x) - 1.0
    return stats.norm.logpdf(z).sum(axis=-1) - np.logaddexp(0.0, -signs * logits).sum(axis=-1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", vae.NETWORKS)
def test_log_joint_equals_scipy(name, key):
    network, x = vae.NETWORKS[name], vae.data(3)
    z, theta = jax.random.normal(key, (3, network.num_latents)), network.model_params()
    expected = log_joints(ACTIVATIONS[name], x, np.asarray(z), theta).sum()
    np.testing.assert_allclose(network.log_joint(x, {"z": z}, theta), expected, rtol=1e-10)


def test_bytes_are_pixels_too(key):
    network, x = vae.NETWORKS["200"], vae.data(3)
    z, theta = {"z": jax.random.normal(key, (3, 50))}, network.model_params()
    log_joint = network.log_joint
    assert log_joint(x.astype(jnp.uint8), z, theta) == log_joint(x, z, theta)
    phi = network.encoder.init(jax.random.key(1), x)
    locs = [network.encoder.apply(phi, p)["z"]["loc"] for p in (x, x.astype(jnp.uint8))]
    np.testing.assert_array_equal(*locs)


@pytest.mark.parametrize("name", vae.NETWORKS)
def test_images_are_components_of_the_model(name):
    network, x = vae.NETWORKS[name], vae.data(5)
    problem = bbvi.Problem(network.log_joint, network.guide(5))
    params = problem.init(jax.random.key(0), x, network.model_params())
    assert problem.components(params, x).num_components == 5


def test_decoder_starts_near_the_mean_image():
    network, z = vae.NETWORKS["200"], np.zeros((1, 50), np.float32)
    logits = network.log_joint.decoder.apply(network.model_params(), z)
    mean = np.clip(vae.train_mean(), 0.001, 0.999)
    np.testing.assert_allclose(special.expit(logits[0]), mean, rtol=1e-5)


def bounds(x, params, num_draws, num_bounds):
    """Bounds (R, N) of so many draws of the encoder for every image, by SciPy."""
    x, rng = np.asarray(x), np.random.default_rng(num_draws)
    hidden = two_layers(np.tanh, params.guide, x)
    loc, log_scale = (affine(params.guide["params"][n], hidden) for n in ("loc", "log_scale"))
    z = loc + np.exp(log_scale) * rng.normal(size=(num_bounds, num_draws, *loc.shape))
    log_q = stats.norm.logpdf(z, loc, np.exp(log_scale)).sum(axis=-1)
    log_weights = log_joints(np.tanh, x, z, params.model) - log_q
    return special.logsumexp(log_weights, axis=1) - np.log(num_draws)


def test_batches_have_the_importance_weighted_bound_of_each_image(key):
    """Mean losses of steps that change nothing, against the log of the mean weight per image."""
    network, num_draws, num_epochs = vae.autoencoder(3, 20, nn.tanh), 5, 500
    x = vae.data(6)
    result = bbvi.fit(
        *(network.log_joint, network.guide(6), x),
        key=key,
        objective=bbvi.Iwae(num_draws),
        estimator=bbvi.Reparameterization(num_draws),
        optimizer=optax.sgd(0.0),
        model_params=network.model_params(),
        batch_size=2,
        num_epochs=num_epochs,
        progress=False,
    )
    epochs = result.history.loss.reshape(num_epochs, 3).mean(axis=1)
    direct = -bounds(x, result.params, num_draws, num_epochs).sum(axis=1)
    # In units of the distance from the bound of one draw, the ELBO.
    distance = -bounds(x, result.params, 1, num_epochs).sum(axis=1).mean() - direct.mean()
    check_mean(1.0 + (epochs - direct)[:, None] / distance, np.ones(1))


@pytest.mark.parametrize(
    ("objective", "estimator"),
    [
        (bbvi.Elbo(), bbvi.Reparameterization(1)),
        (bbvi.Iwae(3), bbvi.DoublyReparameterized(3)),
    ],
    ids=["elbo", "importance weighted"],
)
def test_a_short_fit_learns_images_and_not_only_their_mean(objective, estimator, key):
    network, x, test = vae.NETWORKS["200"], vae.images("train")[:3000], vae.images("test")[::50]
    result = bbvi.fit(
        *(network.log_joint, network.guide(len(x)), x),
        key=key,
        objective=objective,
        estimator=estimator,
        optimizer=optax.adam(1e-3),
        model_params=network.model_params(),
        batch_size=100,
        num_epochs=8,
        progress=False,
    )
    mean = np.clip(vae.train_mean(), 0.001, 0.999)
    of_mean = stats.bernoulli.logpmf(test, mean).sum(axis=1).mean()
    elbo = result.at(jnp.asarray(test)).elbo(jax.random.key(1), 20).value / len(test)
    assert of_mean + 35 < elbo < -120


def test_rectifiers_leave_the_saddle_where_latents_are_ignored():
    """An image's pixels, independent with the means of all, have -206 nats."""
    network, x = vae.NETWORKS["512"], jnp.asarray(vae.images("train")[:2000])
    result = bbvi.fit(
        *(network.log_joint, network.guide(len(x)), x),
        key=jax.random.key(0),
        estimator=bbvi.Reparameterization(1),
        optimizer=optax.adam(1e-3),
        model_params=network.model_params(),
        batch_size=100,
        num_epochs=12,
        progress=False,
    )
    assert result.history.loss[-20:].mean() / len(x) < 195.0
