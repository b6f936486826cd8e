"""A draw of the latents, where a guide is given in its place."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from bbvi._tree import named_leaves
from bbvi._types import Data, Key, Latents, PyTree, Site
from bbvi.dependence.blankets import entry_sites


@runtime_checkable
class DrawsLatents(Protocol):
    """What is asked of a guide here; guides build on this package, so it cannot import theirs."""

    def init(self, key: Key, x: Data) -> PyTree:
        """Initial parameters."""

    def base_noise(self, key: Key) -> PyTree:
        """Randomness of one draw."""

    def sample(self, noise: PyTree, params: PyTree, x: Data) -> Latents:
        """One draw."""

    def sites(self) -> tuple[Site, ...]:
        """Its independent parts."""


def draw_and_sites(x: Data, z: Any) -> tuple[Latents, tuple[Site, ...]]:
    """Latents and their sites: of a guide its first draw; of a draw each entry a block."""
    if isinstance(z, type) or not isinstance(z, DrawsLatents):
        for name, leaf in named_leaves(z, "latents").items():
            is_array = isinstance(leaf, jax.ShapeDtypeStruct | jax.Array | np.ndarray | np.generic)
            if not (is_array or isinstance(leaf, bool | int | float)):
                raise TypeError(
                    f"z must be one draw of the latents, its shapes, or a guide such as "
                    f"bbvi.MeanField({{...}}); got {leaf!r} for '{name}'."
                )
        return z, entry_sites(z)
    init_key, key = jax.random.split(jax.random.key(0))
    return z.sample(z.base_noise(key), z.init(init_key, x), x), z.sites()
