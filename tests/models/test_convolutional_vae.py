import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import signal, special, stats

import bbvi
from bbvi.dependence.rows import data_and_rest
from models import convolutional_vae
from models.vae import images, train_mean

SMALL = convolutional_vae.autoencoder((4, 8))  # channels; enough for a test, and fast


def transposed(params, grid):
    """A transposed convolution of stride two: values spread apart, then an ordinary one."""
    kernel = np.asarray(params["Dense_0"]["kernel"], float).reshape(grid.shape[2], 4, 4, -1)
    side = 2 * grid.shape[0]
    spread = np.zeros((side - 1, side - 1, grid.shape[2]))
    spread[::2, ::2] = grid
    out = [
        sum(signal.convolve2d(spread[..., i], kernel[i, ..., j]) for i in range(grid.shape[2]))
        for j in range(kernel.shape[3])
    ]
    # The first window begins one before the first pixel, and the last ends one behind the last.
    return np.stack(out, axis=-1)[1:-1, 1:-1] + np.asarray(params["bias"])[0]


def silu(h):
    return h * special.expit(h)


@pytest.mark.usefixtures("x64")
def test_windows_make_a_convolution(key):
    grid_key, kernel_key = jax.random.split(key)
    grid = jax.random.normal(grid_key, (3, 8, 8, 2))
    kernel = jax.random.normal(kernel_key, (4, 4, 2, 5))
    expected = jax.lax.conv_general_dilated(
        *(grid, kernel, (2, 2), ((1, 1), (1, 1))), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    actual = convolutional_vae.windows(grid) @ kernel.reshape(32, 5)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_scipy(key):
    x, theta = np.asarray(convolutional_vae.data(2)), SMALL.model_params()
    z = jax.random.normal(key, (2, 2))
    params = theta["params"]
    expected = stats.norm.logpdf(z).sum()
    for pixels, latents in zip(x, np.asarray(z), strict=True):
        hidden = latents
        for dense in (params["Dense_0"], params["Dense_1"]):
            hidden = silu(hidden @ np.asarray(dense["kernel"], float) + np.asarray(dense["bias"]))
        grid = hidden.reshape(7, 7, 8)
        grid = silu(transposed(params["ConvTranspose_0"], grid))
        logits = transposed(params["ConvTranspose_1"], grid).reshape(784)
        expected += special.log_expit((2.0 * pixels - 1.0) * logits).sum()
    actual = SMALL.log_joint(jnp.asarray(x), {"z": z}, theta)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_log_joint_is_a_sum_over_images(key):
    """Its program is seen to be one, convolutions included, and images to be components."""
    x, theta = convolutional_vae.data(4), SMALL.model_params()
    z = {"z": jax.random.normal(key, (4, 2))}
    parts = data_and_rest(SMALL.log_joint, None, x, z, theta)
    np.testing.assert_allclose(parts["data"], SMALL.log_joint(x, z, theta), rtol=1e-6)
    assert parts["rest"] == 0.0
    problem = bbvi.Problem(SMALL.log_joint, SMALL.guide(4))
    params = problem.init(jax.random.key(1), x, theta)
    assert problem.components(params, x).num_components == 4


@pytest.mark.usefixtures("optimized")
def test_a_short_fit_learns_images_and_not_only_their_mean(key):
    x, test = images("train")[:2000], images("test")[::50]
    result = bbvi.fit(
        *(SMALL.log_joint, SMALL.guide(len(x)), x),
        key=key,
        estimator=bbvi.Reparameterization(1),
        optimizer=optax.adam(5e-3),
        model_params=SMALL.model_params(),
        batch_size=25,
        num_epochs=4,
        progress=False,
    )
    of_mean = stats.bernoulli.logpmf(test, np.clip(train_mean(), 0.001, 0.999)).sum(axis=1).mean()
    elbo = result.at(jnp.asarray(test)).elbo(jax.random.key(1), 20).value / len(test)
    assert of_mean + 15 < elbo < -140


def test_manifold_has_the_image_of_each_latent_in_its_place():
    theta = convolutional_vae.NETWORK.model_params()
    picture = convolutional_vae.manifold(theta, 4)
    assert picture.shape == (112, 112)
    # Third from the left, second from below: the middles of the third and the second quarter.
    z = jnp.asarray(stats.norm.ppf([[5 / 8, 3 / 8]]), float)
    logits = convolutional_vae.NETWORK.log_joint.decoder.apply(theta, z)
    expected = special.expit(np.asarray(logits)).reshape(28, 28)
    np.testing.assert_allclose(picture[56:84, 56:84], expected, rtol=1e-5)
    assert np.abs(picture[28:56, 56:84] - expected).max() > 1e-3  # above it, another


def test_pictures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    theta = convolutional_vae.NETWORK.model_params()
    figure = convolutional_vae.plot_manifold(theta, tmp_path / "manifold.png", 4)
    (drawn,) = figure.axes[0].images
    np.testing.assert_array_equal(drawn.get_array(), convolutional_vae.manifold(theta, 4))
    losses = np.arange(300.0)
    figure = convolutional_vae.plot_loss(losses, tmp_path / "loss.png")
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(100, 301))
    np.testing.assert_allclose(line.get_ydata(), losses[99:] - 49.5)  # means of the last hundred
    for name in ("manifold", "loss"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
