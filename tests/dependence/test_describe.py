"""Descriptions of pointers."""

import jax
import numpy as np
import pytest

from bbvi.dependence.describe import describe, describe_all
from bbvi.dependence.pointers import Pointer

I = np.arange(4)  # noqa: E741
COUNTY = np.array([0, 2, 2, 1])


@pytest.mark.parametrize(
    ("index", "mask", "rank", "expected"),
    [
        ((I,), None, 1, "[i]"),
        ((I - 1,), I > 0, 1, "[i-1] where masked"),
        ((I + 1,), None, 1, "[i+1]"),
        ((2 * I + 1, None), None, 1, "[2i+1, :]"),
        ((3 - I,), None, 1, "[3-i]"),
        ((-2 * I,), None, 1, "[-2i]"),
        ((6 - 2 * I,), None, 1, "[6-2i]"),
        ((I[None] + 5, I[:, None]), None, 2, "[j+5, i]"),
        ((np.array([7]),), None, 1, "[7]"),
        ((I,), I == 2, 1, "[2] where masked"),
        ((COUNTY,), None, 1, "[idx(i)]"),
        ((COUNTY[None, :, None, None, None, None, None],), None, 7, "[idx(j)]"),
        ((I.reshape(1, 1, 1, 1, 1, 1, 4),), None, 7, "[i6]"),
        ((I[:, None] + I[None],), None, 2, "[idx(i,j)]"),
        ((np.stack([COUNTY, I], 1),), None, 1, "[idx(i,e)]"),
        ((np.array([[1, 3]]), None), None, 1, "[idx(e), :]"),
        ((None,), None, 2, "[:]"),
        ((None, None), I > 0, 1, "[:, :] where masked"),
        ((), None, 3, ""),
        ((), I > 0, 1, " where masked"),
    ],
)
def test_description(index, mask, rank, expected):
    assert describe(Pointer(0, index, mask), rank) == expected


def test_traced_index():
    found = []
    jax.jit(lambda i: found.append(describe(Pointer(0, (i,)), 1)))(COUNTY)
    assert found == ["[idx(i)]"]


def test_several_without_repeats():
    pointers = [Pointer(0, (I,)), Pointer(0, (I - 1,), I > 0), Pointer(0, (I.copy(),))]
    assert describe_all(pointers, 1) == "[i] + [i-1] where masked"
    assert describe_all([], 1) == ""
