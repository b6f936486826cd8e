"""The posterior in figures, of draws whose figures are known."""

import numpy as np
import pytest

import bbvi
from bbvi.infer.summary import summarize

DRAWS = {"mu": np.arange(101.0), "v": np.arange(404.0).reshape(101, 2, 2)}


def test_every_scalar_has_its_row():
    rows = summarize(DRAWS)
    assert list(rows) == ["mu", "v[0,0]", "v[0,1]", "v[1,0]", "v[1,1]"]
    sd = (101 * 102 / 12) ** 0.5  # of 0, ..., 100
    assert rows["mu"] == pytest.approx({"mean": 50, "sd": sd, "5%": 5, "50%": 50, "95%": 95})
    # Entry [1,0] is 2, 6, ..., 402.
    wanted = {"mean": 202, "sd": 4 * sd, "5%": 22, "50%": 202, "95%": 382}
    assert rows["v[1,0]"] == pytest.approx(wanted)


def test_format_summary():
    text = bbvi.format_summary(summarize(DRAWS), max_rows=2)
    lines = text.splitlines()
    assert lines[0].split() == ["mean", "sd", "5%", "50%", "95%"]
    assert lines[1].startswith("mu")
    assert lines[-1] == "... and 3 more"
    assert len(lines) == 4
