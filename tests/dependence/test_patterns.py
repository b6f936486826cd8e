"""Affine forms, normal forms and tables of pointers."""

import numpy as np
import pytest

from bbvi.dependence.patterns import Affine, affine, coincide, entry_table, normal_form
from bbvi.dependence.pointers import Pointer

T = np.arange(6)


@pytest.mark.parametrize(
    ("index", "mask", "expected"),
    [
        (T, None, Affine(0, 0, 1)),
        (7 - 2 * T, None, Affine(0, 7, -2)),
        (T.astype(np.uint8)[::-1], None, Affine(0, 5, -1)),
        (np.array([4]), None, Affine(None, 4, 0)),
        (np.full(6, 4), None, Affine(None, 4, 0)),
        (T**2, None, None),
        (np.maximum(T - 1, 0), None, None),
        (np.maximum(T - 1, 0), T > 0, Affine(0, -1, 1)),  # all that is wrong is masked
        (np.where(T == 3, 9, 2 * T), T != 3, Affine(0, 0, 2)),
        (T**2, T == 2, Affine(None, 4, 0)),
        (T**2, T < 0, Affine(None, 0, 0)),
    ],
)
def test_affine_where_the_mask_holds(index, mask, expected):
    assert affine(index, mask, 1) == expected


def test_affine_is_along_one_factor_axis():
    grid = T[:, None] + T[None]
    assert affine(grid, None, 2) is None
    assert affine(T[None], None, 1) is None  # an extra axis
    assert affine(T[None], None, 2) == Affine(1, 0, 1)


def test_normal_form_keeps_what_others_do_not_cover():
    row, entry = Pointer(0, (T[:, None], None)), Pointer(0, (T[:, None], T[None]))
    masked = Pointer(0, row.index, (T > 2)[:, None])
    other = Pointer(0, (T[:, None] - 1, None), (T > 0)[:, None])
    never = Pointer(0, entry.index, np.zeros((1, 1), bool))
    kept = normal_form([entry, masked, row, other, never, row], 2, (6, 6))
    assert [p.index[0][1, 0] for p in kept] == [1, 0]
    assert [p.mask is None for p in kept] == [True, False]


def test_normal_form_takes_windows_and_rings_apart():
    window = Pointer(0, (T[:, None] + np.arange(2),))
    assert [p.index[0].tolist() for p in normal_form([window], 1, (7,))] == [
        T.tolist(),
        (T + 1).tolist(),
    ]
    ring = Pointer(0, (np.roll(T, 1),))
    assert [p.mask.tolist() for p in normal_form([ring], 1, (6,))] == [
        (T == 0).tolist(),
        (T > 0).tolist(),
    ]


def test_entry_table_has_distinct_entries_in_a_row():
    p = Pointer(0, (np.array([[0, 0], [1, 2]]),))
    q = Pointer(0, (np.array([[0], [3]]),), np.array([[True], [False]]))
    table = entry_table([p, q], (2,), (4,))
    assert [sorted(row) for row in table.tolist()] == [[0, 4, 4], [1, 2, 4]]


def test_coincide_with_any_index_of_a_set():
    p, q = Pointer(0, (T,)), Pointer(0, (np.stack([T + 1, 5 - T], 1),), (T > 3)[:, None])
    np.testing.assert_array_equal(coincide(p, q, 1), [False] * 6)
    mirrored = Pointer(0, (np.stack([5 - T, T], 1),), (T > 3)[:, None])
    np.testing.assert_array_equal(coincide(p, mirrored, 1), T > 3)
