"""Every public name is documented, with an example that the doctests run."""

import inspect
import re

import pytest

import bbvi

METHODS = (bbvi.Estimator, bbvi.Guide, bbvi.Objective, bbvi.Baseline)
SECTION = r"(?m)^\s*{}:\s*$"


def own_doc(value):
    """The docstring of this very object, not one it inherits."""
    doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return inspect.cleandoc(doc or "")


def test_all_is_sorted_and_complete():
    assert len(set(bbvi.__all__)) == len(bbvi.__all__), "a name stands in bbvi.__all__ twice"
    missing = [name for name in bbvi.__all__ if not hasattr(bbvi, name)]
    assert not missing, f"bbvi.__all__ promises {missing}, which bbvi does not have"
    imported = {
        name
        for name, value in vars(bbvi).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert imported <= set(bbvi.__all__), f"not in __all__: {imported - set(bbvi.__all__)}"


@pytest.mark.parametrize("name", bbvi.__all__)
def test_documented_with_an_example(name):
    value = getattr(bbvi, name)
    if not callable(value) and not inspect.ismodule(value):
        pytest.skip("a constant")
    doc = own_doc(value)
    # A dataclass or NamedTuple without a docstring gets its signature as one.
    is_generated = doc.startswith(f"{name}(")
    assert doc, f"bbvi.{name} has no docstring"
    assert not is_generated, f"bbvi.{name} has no docstring of its own"
    if inspect.ismodule(value):
        return
    has_example = re.search(SECTION.format("Examples?"), doc) and ">>>" in doc
    assert has_example, f"the docstring of bbvi.{name} needs an 'Example:' section with '>>>' lines"


@pytest.mark.parametrize("name", bbvi.__all__)
def test_methods_name_their_source(name):
    value = getattr(bbvi, name)
    if not (inspect.isclass(value) and issubclass(value, METHODS)) or value in METHODS:
        pytest.skip("not an estimator, guide, objective or baseline")
    doc = own_doc(value)
    source = re.search(SECTION.format("References?") + r"\s*(.+)", doc)
    assert source, f"the docstring of bbvi.{name} needs a 'References:' section: who found it, when"
    years = re.findall(r"\b(?:1[89]|20)\d\d\b", doc[source.start() :])
    assert years, f"the references of bbvi.{name} need a year"
