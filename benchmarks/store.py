"""Results on disk: cases run one at a time gather in one JSON file, its tables beside it."""

import json
import pathlib
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
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(report.markdown(results))
    return results
