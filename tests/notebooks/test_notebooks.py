"""Every notebook runs from top to bottom, on a short budget; what is stored is of a whole run."""

import ast
import json
import re
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
# In place of what the cell tagged "parameters" says. Where a notebook has none it runs as it is.
SHORT = {
    "compare_estimators": {"ESTIMATORS": "two", "NUM_STEPS": 50, "NUM_REPLICATES": 100},
    "own_estimator": {"REPLICATES": 10_000},
    "rao_blackwellization": {"NUM_STEPS": 50, "NUM_REPLICATES": 100},
    "vae": {"NUM_IMAGES": 1000, "NUM_EPOCHS": 1},
}
MAX_BYTES = 400_000
MAX_LINES = 20


def cells(path):
    """The cells of code."""
    stored = json.loads(path.read_text())
    return [cell for cell in stored["cells"] if cell["cell_type"] == "code"]


def run(source, name, namespace):
    """Run a cell as a notebook does: what its last line gives is shown."""
    tree = ast.parse(source)
    value = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if value is not None:
        shown = eval(compile(ast.Expression(value.value), name, "eval"), namespace)
        getattr(shown, "_repr_png_", lambda: repr(shown))()


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, monkeypatch):
    import matplotlib
    import matplotlib.pyplot as plt

    import bbvi

    matplotlib.use("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    short = dict(SHORT.get(path.stem, {}))
    if "ESTIMATORS" in short:
        short["ESTIMATORS"] = [bbvi.Reparameterization(8), bbvi.ScoreFunction(8)]
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        with jax.debug_key_reuse(False):  # its programs take twice as long to compile
            run("".join(cell["source"]), f"{path.name}[{number}]", namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            unknown = short.keys() - namespace.keys()
            assert not unknown, f"{path.name} has no parameters {unknown}"
            namespace.update(short)
            short = {}
    assert not short, f"no cell of {path.name} is tagged 'parameters'"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_outputs_are_of_one_clean_run(path):
    code = cells(path)
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "run it whole: see CONTRIBUTING.md"
    outputs = [output for cell in code for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}, kinds
    assert all(output.get("name") != "stderr" for output in outputs), "it prints warnings"
    assert path.stat().st_size < MAX_BYTES, "pictures too large"
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    assert not re.search(r"[\" ]/(home|root|tmp|Users|usr)/", text), "a path of one machine"
    assert "<Figure" not in re.sub(r'"<Figure size[^\n]*Axes>"', "", text)


def test_an_estimator_takes_fewer_than_twenty_lines():
    sources = ["".join(cell["source"]) for cell in cells(FOLDER / "own_estimator.ipynb")]
    (own,) = (source for source in sources if "class LeaveOneOutScore" in source)
    lines = [line for line in own.split("\n") if line.strip()]
    assert len(lines) < MAX_LINES
