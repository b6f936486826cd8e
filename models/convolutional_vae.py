"""A convolutional variational autoencoder with two latents, whose manifold of digits can be drawn.

    x = images("train")
    result = bbvi.fit(
        *(NETWORK.log_joint, NETWORK.guide(len(x)), x),
        model_params=NETWORK.model_params(),
        estimator=bbvi.Reparameterization(1),
        optimizer=optax.adam(1e-3),
        batch_size=100,
        num_epochs=10,
    )
    plot_manifold(result.params.model, "manifold.png")
    plot_loss(result.history.loss / len(x), "loss.png")

Two convolutions of stride two lead from 28 x 28 pixels to 7 x 7 with 32 channels, a dense layer
leads to the latents, and the same, transposed, back. Between them are smooth rectifiers (`silu`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from models.binary_vae import NUM_PIXELS
from models.registry import Target, register
from models.vae import PARAMETERS, Autoencoder, Dense, LogJoint, data

NUM_LATENTS = 2
SIDE = 28
GRID = 7  # a side after the last convolution
CHANNELS = (16, 32)
NUM_UNITS = 128  # of the layer between latents and grids
STRIDE = 2
KERNEL = 4  # a multiple of the stride: no pixel is reached more often than its neighbour
SMOOTHED = 100  # steps that a point of the curve of losses averages


def windows(grid):
    """Returns the pixels of each window, `(B, H, W, C)` to `(B, H / 2, W / 2, 16 C)`."""
    edge = (KERNEL - STRIDE) // 2
    grid = jnp.pad(grid, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    last = grid.shape[1] - KERNEL + 1
    offsets = [(i, j) for i in range(KERNEL) for j in range(KERNEL)]
    return jnp.concatenate(
        [grid[:, i : i + last : STRIDE, j : j + last : STRIDE] for i, j in offsets], axis=-1
    )


class Conv(nn.Module):
    """A convolution as a product of matrices, four times as fast on CPU as XLA's own."""

    num_channels: int

    @nn.compact
    def __call__(self, grid):
        return Dense(self.num_channels)(windows(grid))


class ConvTranspose(nn.Module):
    """The transposed convolution: every value adds a multiple of the kernel to its window."""

    num_channels: int

    @nn.compact
    def __call__(self, grid):
        count, rows, columns, _ = grid.shape
        shape = (count, STRIDE * rows, STRIDE * columns, self.num_channels)
        add = jax.linear_transpose(windows, jax.ShapeDtypeStruct(shape, grid.dtype))
        (added,) = add(Dense(KERNEL**2 * self.num_channels, use_bias=False)(grid))
        return added + self.param("bias", nn.initializers.zeros, (1, 1, 1, self.num_channels))


class Encoder(nn.Module):
    """Two convolutions and a dense layer, then location and log scale."""

    channels: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        hidden = x.astype(float).reshape(-1, SIDE, SIDE, 1)
        for num_channels in self.channels:
            hidden = nn.silu(Conv(num_channels)(hidden))
        hidden = nn.silu(Dense(NUM_UNITS)(hidden.reshape(hidden.shape[0], -1)))
        return {"z": {name: Dense(NUM_LATENTS, name=name)(hidden) for name in PARAMETERS}}


class Decoder(nn.Module):
    """Logits of the pixels by a dense layer and two transposed convolutions."""

    channels: tuple[int, int]

    @nn.compact
    def __call__(self, z):
        hidden = nn.silu(Dense(NUM_UNITS)(z))
        hidden = nn.silu(Dense(GRID * GRID * self.channels[1])(hidden))
        hidden = hidden.reshape(-1, GRID, GRID, self.channels[1])
        hidden = nn.silu(ConvTranspose(self.channels[0])(hidden))
        logits = ConvTranspose(1)(hidden)
        return logits.reshape(-1, NUM_PIXELS)


def autoencoder(channels=CHANNELS):
    """Returns the autoencoder with so many channels on the grids of 14 x 14 and 7 x 7."""
    return Autoencoder(LogJoint(Decoder(channels)), Encoder(channels), NUM_LATENTS)


NETWORK = autoencoder()


def manifold(theta, num_cells=20):
    """Returns the images at a grid of latents, side by side.

    Args:
        theta: Parameters of the decoder.
        num_cells: Images along a side. Their latents are the quantiles of N(0, 1) at the middles of
            as many intervals of equal probability, the first from left to right and the second
            from bottom to top.

    Returns:
        Probabilities of ink, `(28 * num_cells, 28 * num_cells)`.
    """
    quantiles = stats.norm.ppf((np.arange(num_cells) + 0.5) / num_cells)
    second, first = np.meshgrid(quantiles[::-1], quantiles, indexing="ij")
    z = jnp.asarray(np.stack([first.ravel(), second.ravel()], axis=1), float)
    probs = np.asarray(jax.nn.sigmoid(NETWORK.log_joint.decoder.apply(theta, z)))
    cells = probs.reshape(num_cells, num_cells, SIDE, SIDE)
    return cells.transpose(0, 2, 1, 3).reshape(num_cells * SIDE, num_cells * SIDE)


def plot_manifold(theta, path=None, num_cells=20):
    """Draws the images at a grid of latents; see `manifold`. Returns the matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    edge = stats.norm.ppf(1.0 - 0.5 / num_cells)
    axis.imshow(manifold(theta, num_cells), cmap="gray_r", vmin=0.0, vmax=1.0)
    # Not the values of a linear scale: cells are of equal probability.
    ends = [0.5 * SIDE, (num_cells - 0.5) * SIDE]
    axis.set_xticks(ends, [f"{-edge:.2f}", f"{edge:.2f}"])
    axis.set_yticks(ends, [f"{edge:.2f}", f"{-edge:.2f}"])
    axis.set_xlabel("first latent")
    axis.set_ylabel("second latent")
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def plot_loss(losses, path=None):
    """Draws losses, averaged over many steps, against the step. Returns the matplotlib figure."""
    from matplotlib.figure import Figure

    losses = np.asarray(losses)
    width = min(SMOOTHED, len(losses))
    means = np.convolve(losses, np.full(width, 1.0 / width), mode="valid")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(np.arange(width, len(losses) + 1), means)
    axis.set_xlabel("step")
    axis.set_ylabel(f"loss in nats, mean of {width} steps")
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


register(
    Target(
        name="convolutional_vae",
        log_joint=NETWORK.log_joint,
        data=data,
        guides={"amortized": NETWORK.guide},
        model_params=NETWORK.model_params,
        source="Model: Kingma and Welling (2014), Auto-Encoding Variational Bayes, whose figure 4 "
        "is the manifold; LeCun, Boser, Denker et al. (1989), Backpropagation Applied to "
        "Handwritten Zip Code Recognition. Data: those of the target vae_200.",
    )
)
