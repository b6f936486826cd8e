"""What all pictures share."""

import pytest

from bbvi.plotting._figure import figure_class

pytest.importorskip("matplotlib")


def test_a_notebook_shows_it_without_pyplot():
    figure = figure_class()(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    assert figure._repr_png_().startswith(b"\x89PNG")
