"""Random arrays."""

from __future__ import annotations

import math
from collections.abc import Callable

from jax import Array

from bbvi._types import Key


def draw_flat(
    draw: Callable[..., Array], key: Key, shape: tuple[int, ...], **options: object
) -> Array:
    """``draw(key, shape, **options)``, drawn along one axis: the same numbers, sooner.

    On CPU the generator runs three times as fast along a long axis as along a short last one.
    """
    return draw(key, (math.prod(shape),), **options).reshape(shape)
