"""Markdown tables of the results: ``python -m benchmarks.report results.json``."""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

SLOW = 1.1  # bbvi over the floor beyond which the summary says so


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def problem_table(result: dict[str, Any]) -> str:
    """One row per contestant."""
    head = (
        "implementation",
        "us/step [IQR]",
        "cpu us/step",
        "steps/s",
        "x floor [IQR]",
        "cpu x floor",
        "x fastest peer [IQR]",
        "cpu x fastest peer",
        "first call s",
        "second call s",
        "compiled again",
        "final loss",
    )
    cold = any("cold" in row for row in result["contestants"].values())
    rows = []
    for name, row in result["contestants"].items():
        step = row["us_per_step"]
        cells = [
            name,
            _spread(step),
            _median(row["cpu_us_per_step"]),
            _number(step and 1e6 / step["median"]),
            _spread(row["wall_to_floor"]),
            _median(row["cpu_to_floor"]),
            _spread(row["wall_to_fastest_peer"]),
            _median(row["cpu_to_fastest_peer"]),
            _number(row["first_call_s"]),
            _number(row["call_s"]["median"]),
            str(row["second_call_compilations"]),
            f"{row['final_loss']:.5g}",
        ]
        if cold:
            start = row.get("cold", {})
            keys = ("import_s", "first_s", "second_s", "peak_mb")
            cells += [_number(start.get(key)) for key in keys]
        rows.append(cells)
    if cold:
        head += ("cold import s", "cold first s", "cold second s", "peak MB")
    return table(head, rows)


def summary_table(problems: Sequence[dict[str, Any]]) -> str:
    """bbvi on every problem it can do."""
    head = (
        "problem",
        "bbvi us/step",
        "x floor [IQR]",
        "cpu x floor",
        "x fastest peer [IQR]",
        "cpu x fastest peer",
        "fastest peer",
        "",
    )
    rows = []
    for result in problems:
        row = result["contestants"].get("bbvi")
        if row is None:
            rows.append([result["problem"], *["-"] * (len(head) - 1)])
            continue
        both = [row[f"{clock}_to_floor"]["median"] for clock in ("wall", "cpu")]
        rows.append(
            [
                result["problem"],
                _spread(row["us_per_step"]),
                _spread(row["wall_to_floor"]),
                _median(row["cpu_to_floor"]),
                _spread(row["wall_to_fastest_peer"]),
                _median(row["cpu_to_fastest_peer"]),
                row["fastest_peer"] or "-",
                f"over {SLOW}x" if min(both) > SLOW else "",
            ]
        )
    return table(head, rows)


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    known = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    parts = [
        "# Speed",
        f"{known['device']}, {known['cpu_count']} processors, Python {known['python']}, "
        f"{versions}; {known['dtype']}, {known['optimizer']}, {known['rounds']} interleaved "
        "rounds. Medians with quartiles; ratios are taken round by round. On a busy machine trust "
        "processor time (cpu): it does not count waiting for others.",
        summary_table(results["problems"]),
    ]
    if results.get("imports_s"):
        rows = [[name, _spread(value)] for name, value in results["imports_s"].items()]
        parts += ["## Import", table(("statement", "s [IQR]"), rows)]
    for result in results["problems"]:
        short, long = result["steps"]
        parts += [f"## {result['problem']}", f"Calls of {short} and {long} steps."]
        parts.append(problem_table(result))
    return "\n\n".join(parts) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _median(value: dict[str, float] | None) -> str:
    return _number(value["median"] if value else None)


def _spread(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{_number(value['median'])} [{_number(value['q1'])}, {_number(value['q3'])}]"


if __name__ == "__main__":
    print(markdown(json.loads(pathlib.Path(sys.argv[1]).read_text())))
