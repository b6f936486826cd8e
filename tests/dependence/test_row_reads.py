"""The batch axis, and arrays with entries for each row."""

import numpy as np
import pytest

from bbvi.dependence.analysis import Value
from bbvi.dependence.pointers import Pointer
from bbvi.dependence.row_reads import ROWS, Batch, batch_of, is_row_by_row, tied_to_rows

COLUMN = np.arange(3)[:, None]


@pytest.mark.parametrize(
    ("x", "names", "expected"),
    [
        (np.ones((5, 2)), None, Batch(frozenset({"x"}), 5)),
        ({"y": np.ones(5), "scale": 1.0}, None, Batch(frozenset({"y"}), 5)),
        ({"y": np.ones(5), "knots": np.ones(3)}, ("y",), Batch(frozenset({"y"}), 5)),
    ],
)
def test_batch_of(x, names, expected):
    assert batch_of(x, names) == expected


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "no rows to take batches of"),
        (1.0, "no rows to take batches of"),
        ({"y": np.ones(5), "knots": np.ones(3)}, "must share one leading axis"),
    ],
)
def test_no_clear_batch_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        batch_of(x, None)


@pytest.mark.parametrize(
    ("pointers", "expected"),
    [
        ([(COLUMN, None)], True),
        ([(COLUMN[::-1], None)], True),
        ([(COLUMN, None), (COLUMN, np.array([[True, False]]))], True),
        ([], False),
        ([(None, None)], False),
        ([(COLUMN, None), (COLUMN[::-1], None)], False),
        ([(np.zeros((1, 1), int), None)], False),
        ([(np.arange(3)[None, None, :], None)], False),
        ([(COLUMN, np.array([[True], [False], [True]]))], False),
    ],
)
def test_row_by_row(pointers, expected):
    value = Value((3, 2), [Pointer(ROWS, (index,), mask) for index, mask in pointers])
    assert is_row_by_row(value, {ROWS}, 3) == expected


def test_latents_are_tied_by_being_read_beside_rows_or_what_is_tied():
    def reads(*leaves_and_indices):
        return Value((3, 2), [Pointer(leaf, (index,)) for leaf, index in leaves_and_indices])

    along_columns = np.zeros((1, 2), int)
    values = [
        reads((ROWS, COLUMN), (1, COLUMN), (3, along_columns)),
        reads((1, COLUMN), (2, COLUMN), (4, None)),
        reads((5, COLUMN)),
    ]
    assert tied_to_rows(values, 3) == {ROWS, 1, 2}
