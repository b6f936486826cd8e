"""Networks of Flax for guides and log joints: linen modules to take as they are, and nnx modules.

``bbvi.Amortized`` takes any object with ``init(key, x) -> params`` and ``apply(params, x)``. Those
here are told the size of their output by the guide. In a log joint they map latents to the
parameters of the data, ``network.apply(theta, z)``, with ``output`` given and ``theta`` made by
``network.init`` and passed as ``model_params``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from bbvi._tree import named_leaves, shapes, with_leaf
from bbvi._types import Data, Key, PyTree


class Network(nn.Module):
    """Hidden layers and an affine head: what ``MLP`` and ``Convolutional`` share."""

    _: dataclasses.KW_ONLY
    output: int | None = None
    activation: Callable[[Array], Array] = nn.relu
    normalization: nn.Module | None = None
    is_residual: bool = False
    leaf: str | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            _check_sizes((self.output,), f"{type(self).__name__} output")
        if not callable(self.activation):
            raise TypeError(
                f"{type(self).__name__} activation must be a function such as nn.relu, got "
                f"{self.activation!r}."
            )
        if self.normalization is not None and not isinstance(self.normalization, nn.Module):
            raise TypeError(
                f"{type(self).__name__} normalization must be a module such as nn.LayerNorm(), got "
                f"{self.normalization!r}."
            )

    def with_output(self, size: int) -> Network:
        """The network with so many numbers in a row of its output; a guide asks for it."""
        if self.output not in (None, size):
            raise ValueError(
                f"{type(self).__name__} has output={self.output}, but the sites of the guide have "
                f"{size} parameters for each row of the data; leave output out."
            )
        return self.clone(output=size)

    def starting_at(self, params: PyTree, row: Array) -> PyTree:
        """Parameters whose output starts at this row, give or take the head's weights."""
        return with_leaf(params, "params", "params.head.bias", row)

    def read(self, x: Data) -> Array:
        """The leaf of the data that the network is a function of."""
        leaves = named_leaves(x, "x")
        if self.leaf is None and jax.tree_util.all_leaves([x]):
            return jnp.asarray(x)
        if self.leaf not in leaves:
            name = type(self).__name__
            raise ValueError(
                f"{name} reads one array, got x = {shapes(x, 'x')} and leaf={self.leaf!r}: name "
                f"the leaf to read, as in {name}(..., leaf={next(iter(leaves), 'x')!r}), or write "
                "a module of your own that reads several."
            )
        return jnp.asarray(leaves[self.leaf])

    def hidden(self, layers: Sequence[nn.Module], h: Array) -> Array:
        """The hidden layers one after another."""
        num_added = 0
        for layer in layers:
            out = layer(h)
            if self.normalization is not None:
                # A copy for each layer, with parameters of its own.
                out = self.normalization.clone(
                    parent=self, name=None, dtype=self.dtype, param_dtype=float
                )(out)
            out = self.activation(out)
            is_added = self.is_residual and out.shape == h.shape
            num_added += is_added
            h = h + out if is_added else out
        if self.is_residual and not num_added:
            raise ValueError(
                f"is_residual=True, but no hidden layer of {type(self).__name__} has an output of "
                "the shape of its input: make two in a row alike, or leave it out."
            )
        return h

    def head(self, h: Array) -> Array:
        """The affine map to the output."""
        if self.output is None:
            raise ValueError(
                f"{type(self).__name__} does not know the size of its output: give output=..., or "
                "the network to bbvi.Amortized, which knows it."
            )
        dense = nn.Dense(self.output, dtype=self.dtype, param_dtype=float, name="head")
        out = dense(h.reshape(h.shape[0], -1))
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))


class MLP(Network):
    r"""A multilayer perceptron over the rows of its input.

    .. math::
      h_l = a(\mathrm{norm}(W_l h_{l-1} + b_l)) \; [\, + h_{l-1}], \qquad
      \mathrm{output} = W h_L + b

    ``x`` is ``[N, ...]``, flattened to ``[N, D]``; the output is ``[N, output]``. Weights start as
    LeCun et al. propose, for entries of x of about unit size, and biases at 0; in a guide the
    biases of the head start where a ``MeanField`` does.

    Args:
      widths: of the hidden layers; ``()`` for an affine map.
      output: numbers per row. ``bbvi.Amortized`` fills it in.
      activation: of the hidden layers; a named function, so that networks compare by value.
      normalization: before every activation, a module that keeps no state such as
        ``nn.LayerNorm()`` or ``nn.GroupNorm(num_groups=8)`` of ``flax.linen``; every layer has its
        own copy.
      is_residual: whether hidden layers as wide as their input add it to their output.
      leaf: where x has several arrays, the one that is read: ``"image"`` for ``x["image"]``.
      dtype: what is computed in, such as ``jnp.bfloat16``; parameters and output stay float32.

    Raises:
      TypeError, ValueError: widths or output are not positive ints; x has several arrays and no
        leaf is named; ``is_residual`` without two layers alike.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> guide = bbvi.Amortized({"z": bbvi.Normal((4, 2))}, bbvi.networks.MLP((8, 8)))
      >>> phi = guide.init(jax.random.key(0), jnp.ones((4, 3)))
      >>> phi["params"]["head"]["kernel"].shape  # 2 locations and 2 log scales for a row
      (8, 4)
      >>> decoder = bbvi.networks.MLP((8,), output=3)
      >>> theta = decoder.init(jax.random.key(1), jnp.zeros((1, 2)))
      >>> decoder.apply(theta, jnp.zeros((4, 2))).shape
      (4, 3)

    References:
      LeCun, Bottou, Orr and Müller (1998), Efficient BackProp; He, Zhang, Ren and Sun (2016), Deep
      Residual Learning; Ba, Kiros and Hinton (2016), Layer Normalization.
    """

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_sizes(self.widths, "MLP widths")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Data) -> Array:
        x = self.read(x)
        if x.ndim == 0:
            raise ValueError("MLP takes rows of data [N, ...], got a scalar.")
        layers = [nn.Dense(n, dtype=self.dtype, param_dtype=float) for n in self.widths]
        return self.head(self.hidden(layers, x.reshape(x.shape[0], -1)))


class Convolutional(Network):
    r"""Convolutions over images, then an affine map of all that is left.

    ``x`` is ``[N, H, W]`` or ``[N, H, W, C]``; the output is ``[N, output]``. Borders are padded
    with zeros, so that a layer of stride s leaves a grid of H / s by W / s, rounded up. It
    starts as ``MLP`` does.

    Args:
      channels: of the hidden layers.
      strides: of each of them, along both axes.
      kernel_size: of all of them, along both axes.
      output, activation, normalization, leaf, dtype: as for ``MLP``.
      is_residual: whether hidden layers that leave the shape of their input as it is (stride 1,
        channels as before) add it to their output.

    Raises:
      TypeError, ValueError: as for ``MLP``; a stride is missing; x is not images.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> network = bbvi.networks.Convolutional((4, 8), strides=(2, 2))
      >>> guide = bbvi.Amortized({"z": bbvi.Bernoulli((3, 5))}, network)
      >>> phi = jax.eval_shape(guide.init, jax.random.key(0), jnp.zeros((3, 8, 8)))
      >>> phi["params"]["head"]["kernel"].shape  # from 2 by 2 by 8 to a logit for each latent
      (32, 5)

    References:
      LeCun et al. (1989), Backpropagation Applied to Handwritten Zip Code Recognition; Wu and He
      (2018), Group Normalization.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    kernel_size: int = 3

    def __post_init__(self) -> None:
        _check_sizes(self.channels, "Convolutional channels")
        _check_sizes(self.strides, "Convolutional strides")
        _check_sizes((self.kernel_size,), "Convolutional kernel_size")
        if len(self.strides) != len(self.channels):
            raise ValueError(
                f"Convolutional has {len(self.channels)} layers, so it needs as many strides, got "
                f"channels={self.channels} and strides={self.strides}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Data) -> Array:
        x = self.read(x)
        if x.ndim not in (3, 4):
            raise ValueError(
                f"Convolutional takes images [N, H, W] or [N, H, W, C], got shape {x.shape}; "
                "reshape them."
            )
        layers = [
            nn.Conv(n, (self.kernel_size,) * 2, stride, dtype=self.dtype, param_dtype=float)
            for n, stride in zip(self.channels, self.strides, strict=True)
        ]
        return self.head(self.hidden(layers, x if x.ndim == 4 else x[..., None]))


@dataclasses.dataclass(frozen=True)
class NnxNetwork:
    """A ``flax.nnx`` module as a network: for ``bbvi.Amortized``, or in a log joint.

    Parameters are its ``nnx.Param`` leaves, as nested dicts. Networks with the same ``build`` are
    equal, so give a named function rather than a new lambda: else a second fit compiles again.

    Args:
      build: ``build(rngs) -> nnx.Module``, whose call takes x.

    Raises:
      TypeError: ``build`` is not a function, or from ``init``: does not return a module.
      ValueError: from ``init``: the module has state besides its parameters, such as statistics of
        a batch or keys for dropout, that would stay as it is for ever.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> def encoder(rngs):
      ...     return nnx.Sequential(
      ...         nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 4, rngs=rngs)
      ...     )
      >>> guide = bbvi.Amortized({"z": bbvi.Normal((5, 2))}, bbvi.networks.NnxNetwork(encoder))
      >>> phi = guide.init(jax.random.key(0), None)
      >>> z = guide.sample(guide.base_noise(jax.random.key(1)), phi, jnp.ones((5, 3)))
      >>> z["z"].shape
      (5, 2)
    """

    build: Callable[[Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise TypeError(f"NnxNetwork needs a function build(rngs), got {self.build!r}.")

    def init(self, key: Key, x: Data) -> PyTree:
        """Parameters of a new module."""
        del x
        # Here and not above: it takes longer to load than the rest of Flax, and few need it.
        from flax import nnx

        module = self.build(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(f"NnxNetwork build must return an nnx.Module, got {module!r}.")
        _, params, state = nnx.split(module, nnx.Param, ...)
        others = [
            f"{'.'.join(map(str, path))} ({type(leaf).__name__})"
            for path, leaf in nnx.to_flat_state(state)
        ]
        if others:
            raise ValueError(
                f"the module of NnxNetwork has state besides its parameters, {', '.join(others)}, "
                "which would stay as it is for ever. Use nnx.LayerNorm or nnx.GroupNorm in place "
                "of batch normalisation; build dropout with deterministic=True and without rngs; "
                "make constant arrays in __call__, or nnx.Param if they are to be trained."
            )
        return nnx.to_pure_dict(params)

    def apply(self, params: PyTree, x: Data) -> Any:
        """The module's output at x, with these parameters."""
        from flax import nnx

        return nnx.merge(_graph(self.build), nnx.State(params))(x)


@functools.lru_cache(maxsize=128)
def _graph(build: Callable[[Any], Any]) -> Any:
    """What ``build`` makes, without its arrays."""
    from flax import nnx

    return nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def _check_sizes(sizes: Any, name: str) -> None:
    if not isinstance(sizes, tuple):
        raise TypeError(f"{name} must be a tuple such as (200, 200), got {sizes!r}.")
    if not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"{name} must hold positive ints, got {sizes!r}.")
