"""Pointers in the words of a model: ``[i-1]``, ``[idx(i), :]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bbvi.dependence.patterns import Affine, affine
from bbvi.dependence.pointers import Pointer

FACTOR_AXES = "ijklmn"


def describe(pointer: Pointer, rank: int) -> str:
    """What a factor entry with indices i, j, k, ... reads of a latent.

    Indices from a table are written ``idx(i)``; with an ``e``, as in ``idx(i,e)``, they are a set.

    Args:
      pointer: the pointer of a factor array.
      rank: number of axes of the factor array.

    Example:
      >>> import numpy as np
      >>> describe(Pointer(0, (np.arange(3)[:, None] - 1, None), np.array([[0], [1], [1]])), 2)
      '[i-1, :] where masked'
    """
    axes = ", ".join(_index(a, pointer.mask, rank) for a in pointer.index)
    return (f"[{axes}]" if axes else "") + ("" if pointer.mask is None else " where masked")


def describe_all(pointers: Sequence[Pointer], rank: int) -> str:
    """Descriptions of several pointers, each once.

    Example:
      >>> import numpy as np
      >>> describe_all([Pointer(0, (np.arange(3),)), Pointer(0, (np.arange(1, 4),))], 1)
      '[i] + [i+1]'
    """
    return " + ".join(dict.fromkeys(describe(p, rank) for p in pointers))


def _index(index: Any, mask: Any, rank: int) -> str:
    if index is None:
        return ":"
    form = affine(index, mask, rank)
    if form is not None:
        return _affine(form)
    names = [axis_name(axis) for axis in range(rank) if index.shape[axis] > 1]
    is_set = any(n > 1 for n in index.shape[rank:])
    return f"idx({','.join(names + ['e'] * is_set)})"


def _affine(form: Affine) -> str:
    if form.axis is None:
        return str(form.offset)
    factor = "" if abs(form.stride) == 1 else str(abs(form.stride))
    term = factor + axis_name(form.axis)
    if form.stride < 0:
        return f"{form.offset}-{term}" if form.offset else f"-{term}"
    return f"{term}{form.offset:+d}" if form.offset else term


def axis_name(axis: int) -> str:
    """Name of an axis of a factor array: i, j, k, ..."""
    return FACTOR_AXES[axis] if axis < len(FACTOR_AXES) else f"i{axis}"
