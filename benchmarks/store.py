"""Results on disk: a JSON file with its tables, and where there is one its picture, beside it."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks import report


def load(path: pathlib.Path | None) -> list[dict[str, Any]]:
    """The cases in the file, where there is one."""
    return json.loads(path.read_text())["cases"] if path and path.exists() else []


def merge(path: pathlib.Path | None, suite: str, case: dict[str, Any]) -> dict[str, Any]:
    """The results in the file, where there is one, with this case new or replaced; written back."""
    results: dict[str, Any] = {"suite": suite, "cases": []}
    if path and path.exists():
        results = json.loads(path.read_text())
        if results["suite"] != suite:
            raise ValueError(f"{path} holds results of suite {results['suite']!r}, not {suite!r}.")
    kept = [old for old in results["cases"] if old["case"] != case["case"]]
    results["cases"] = [*kept, case]
    if path:
        _write(path, results)
    return results


def finish(
    path: pathlib.Path | None,
    results: dict[str, Any],
    plot: Callable[[dict[str, Any], pathlib.Path], None],
) -> None:
    """Prints the tables of a suite run as a whole; writes results, tables and picture."""
    print(report.markdown(results))
    if path:
        _write(path, results)
        plot(results, path.with_suffix(".png"))


def _write(path: pathlib.Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(report.markdown(results))
