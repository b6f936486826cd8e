"""The documentation builds without a warning, and every public name is on a page."""

import subprocess
import sys
import types
import zlib
from pathlib import Path

import pytest

import bbvi
from bbvi.estimators import CATALOGUE
from docs import pages

ROOT = Path(__file__).parents[2]


def inventory(path):
    """Names of Python objects with a page, from what Sphinx writes for other sites to link to."""
    content = path.read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return {line.split()[0] for line in lines if line.split()[1].startswith("py:")}


@pytest.mark.slow
def test_builds_without_a_warning_with_every_public_name(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    found = inventory(tmp_path / "html" / "objects.inv")
    names = {f"bbvi.{name}" for name in bbvi.__all__}
    names |= {"bbvi.testing.check_estimator", "bbvi.plotting.plot_result", "bbvi.supports.real"}
    assert names <= found, f"not on a page: {names - found}"


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.estimator.__name__)
def test_a_page_of_an_estimator_says_formula_conditions_cost_and_use(entry):
    text = pages.estimator_page(entry)
    assert ".. math::" in entry.estimator.__doc__
    for field in ("When to use it", "Latents", "Objectives", "Cost per step", "Bias", "Source"):
        assert f":{field}: " in text
    assert f".. autoclass:: bbvi.{entry.estimator.__name__}" in text
    assert entry.use.endswith(".")


def test_public_names_are_on_one_page_each():
    names = [name for names in pages.public_names().values() for name in names]
    names += [f"bbvi.{entry.estimator.__name__}" for entry in CATALOGUE]
    assert len(names) == len(set(names))
    assert {f"bbvi.{name}" for name in bbvi.__all__} <= set(names)


def test_a_public_name_without_a_docstring_is_refused(monkeypatch):
    bare = types.new_class("Bare")
    bare.__module__ = "bbvi.guides.base"
    monkeypatch.setattr(bbvi, "Bare", bare, raising=False)
    monkeypatch.setattr(bbvi, "__all__", [*bbvi.__all__, "Bare"])
    with pytest.raises(ValueError, match=r"without a docstring: \['bbvi.Bare'\]"):
        pages.public_names()
