"""Imports go one way, so that each room of the library can be read on its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room may import itself and rooms of lower rank. Only within rank 0 may rooms import each other.
RANKS = {
    0: ("supports", "factors", "dependence"),  # and modules named _*
    1: ("guides", "objectives", "baselines", "networks", "variational_em"),
    # binds a log_joint, a guide and an objective; draws its noise; anneals its log_joint
    2: ("problem", "sampling", "tempering", "natural_gradient"),
    3: ("estimators", "refinement"),
    4: ("diagnostics",),  # estimates with their errors: a result reports them
    5: ("infer",),
    6: ("amortized", "calibration", "comparison", "testing"),
    7: ("semi_amortized", "plotting", "interop"),
}
# What is found draws itself, but nothing loads matplotlib before it is asked to; likewise ArviZ.
DEFERRED = {
    (room, "bbvi.plotting") for room in ("infer", "dependence", "calibration", "comparison")
}
DEFERRED |= {("infer", "bbvi.interop.arviz_tree")}
RANK_OF = {room: rank for rank, rooms in RANKS.items() for room in rooms}
FILES = sorted((ROOT / "bbvi").rglob("*.py"))


def room_of(module):
    """``guides`` for ``bbvi.guides.base``; empty for ``bbvi`` itself."""
    return module.removeprefix("bbvi").lstrip(".").split(".")[0]


def imported_modules(tree):
    """Dotted names of what a file imports, with ``from bbvi import x`` read as ``bbvi.x``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: write bbvi.…"
            if node.module == "bbvi":
                yield from (f"bbvi.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def rank(room):
    assert room in RANK_OF or room.startswith("_"), f"give room '{room}' a rank in {__file__}"
    return RANK_OF.get(room, 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imported_modules(ast.parse(path.read_text())):
        package = module.split(".")[0]
        assert package not in {"models", "benchmarks", "tests"}, f"bbvi must not import {module}"
        assert package != "flax" or here == "networks", "only bbvi/networks.py may import flax"
        if package != "bbvi" or here in {"__init__", "__main__"}:
            continue
        there = room_of(module)
        assert there, "import from the module that defines a name, not from bbvi itself"
        is_below = rank(there) < rank(here) or rank(there) == rank(here) == 0
        is_allowed = there == here or is_below or (here, module) in DEFERRED
        assert is_allowed, f"{here} must not import {module}"


def test_import_loads_nothing_that_few_need():
    """Each of them takes from half a second to several."""
    heavy = ["arviz_stats", "grain", "matplotlib", "orbax.checkpoint", "pandas", "scipy.stats"]
    code = f"import sys, bbvi; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
