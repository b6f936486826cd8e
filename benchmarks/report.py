"""Markdown tables of the results: ``python -m benchmarks.report results.json``."""

import importlib
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
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
            spread(step),
            _median(row["cpu_us_per_step"]),
            number(step and 1e6 / step["median"]),
            spread(row["wall_to_floor"]),
            _median(row["cpu_to_floor"]),
            spread(row["wall_to_fastest_peer"]),
            _median(row["cpu_to_fastest_peer"]),
            number(row["first_call_s"]),
            number(row["call_s"]["median"]),
            str(row["second_call_compilations"]),
            f"{row['final_loss']:.5g}",
        ]
        if cold:
            start = row.get("cold", {})
            keys = ("import_s", "first_s", "second_s", "peak_mb")
            cells += [number(start.get(key)) for key in keys]
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
                spread(row["us_per_step"]),
                spread(row["wall_to_floor"]),
                _median(row["cpu_to_floor"]),
                spread(row["wall_to_fastest_peer"]),
                _median(row["cpu_to_fastest_peer"]),
                row["fastest_peer"] or "-",
                f"over {SLOW}x" if min(both) > SLOW else "",
            ]
        )
    return table(head, rows)


def markdown(results: dict[str, Any]) -> str:
    """The whole report, of any suite."""
    parts = SUITES[results.get("suite", "speed")](results)
    return "\n\n".join(parts) + "\n"


def speed(results: dict[str, Any]) -> list[str]:
    known = results["environment"]
    parts = [
        "# Speed",
        f"{machine(known)}, {known['optimizer']}, {known['rounds']} interleaved "
        "rounds. Medians with quartiles; ratios are taken round by round. On a busy machine trust "
        "processor time (cpu): it does not count waiting for others.",
        summary_table(results["problems"]),
    ]
    if results.get("imports_s"):
        rows = [[name, spread(value)] for name, value in results["imports_s"].items()]
        parts += ["## Import", table(("statement", "s [IQR]"), rows)]
    for result in results["problems"]:
        short, long = result["steps"]
        parts += [f"## {result['problem']}", f"Calls of {short} and {long} steps."]
        parts.append(problem_table(result))
    return parts


def scale(results: dict[str, Any]) -> list[str]:
    head = ("model", "size", "latents", "factor entries")
    head += tuple(
        f"{what} data: {unit}" for what in ("known", "traced") for unit in ("cpu s", "MB")
    )
    rows, steps = [], []
    for case in results["cases"]:
        known, traced = case["known_data"], case["traced_data"]
        cells = [case["case"], f"{case['size']} {case['unit']}"]
        cells += [str(known.get(key, "-")) for key in ("latents", "factor_entries")]
        for analysis in (known, traced):
            cells += [number(analysis.get(key)) for key in ("cpu_s", "peak_growth_mb")]
        rows.append(cells)
        for step in case["steps"]:
            keys = ("full_cpu_ms", "adaptive_cpu_ms", "cpu_overhead", "wall_overhead")
            cells = [case["case"], f"{step.get('size')} {case['unit']}"]
            steps.append(cells + [spread(step.get(key)) for key in keys])
    steps_head = ("model", "size", "full signal: cpu ms [IQR]", "adaptive: cpu ms [IQR]")
    steps_head += ("cpu ratio [IQR]", "wall ratio [IQR]")
    return [
        "# Scale",
        f"{machine(results['cases'][0]['environment'])}. Each figure in a fresh process; MB: "
        "growth of the peak memory during the analysis.",
        table(head, rows),
        f"Time per step, S = {results['cases'][0]['num_samples']}:",
        table(steps_head, steps),
    ]


def rao_blackwellization(results: dict[str, Any]) -> list[str]:
    parts = [
        "# Rao-Blackwellization",
        f"{machine(results['cases'][0]['environment'])}. Factors by which the trace of the "
        "gradient's covariance at a site is below that of the leave-one-out score function with "
        "the full signal, with 95 % intervals; equal numbers of draws, except that local "
        "expectations have equal numbers of values of log_joint.",
    ]
    methods = list(
        dict.fromkeys(m for c in results["cases"] for r in c["rows"] for m in r["factor"])
    )
    rows, worse = [], []
    for case in results["cases"]:
        for row in case["rows"]:
            place = [f"{case['case']} {row['site']}", row["point"], number(row["leave_one_out"])]
            rows.append(place + [_interval(row["factor"].get(m)) for m in methods])
            adaptive = row["factor"].get("adaptive")
            if adaptive and adaptive["high"] < 1 - 1e-5:  # less is rounding
                worse.append([*place[:2], _interval(adaptive)])
    parts.append(table(("site", "point", "leave-one-out variance", *methods), rows))
    parts.append("Sites where the adaptive signal is above leave-one-out beyond noise:")
    parts.append(table(("site", "point", "factor"), worse) if worse else "None.")
    return parts


def mixture(results: dict[str, Any]) -> list[str]:
    parts = ["# A mixture with discrete assignments, end to end"]
    head = ("method", "draws", "first call s", "cpu s to 0.1 %", "s to 0.1 %", "steps to 0.1 %")
    head += ("cpu ms/step", "steps", "cpu s", "final ELBO", "gap to CAVI", "gap %")
    for case in results["cases"]:
        rows = []
        for row in case["methods"]:
            reached = row["reached"] or {}
            keys = ("cpu_s", "wall_s", "step")
            cells = [row["method"], str(row["num_samples"] or "-"), number(row["first_call_s"])]
            cells += [number(reached.get(key)) for key in keys]
            last = row["trace"][-1]
            cells += [number(1e3 * last["cpu_s"] / max(1, last["step"])), str(last["step"])]
            cells += [number(last["cpu_s"]), f"{last['elbo']:.6g}"]
            gap = case["cavi_elbo"] - last["elbo"]
            rows.append([*cells, number(gap), number(100 * gap / abs(case["cavi_elbo"]))])
        parts += [
            f"## N = {case['size']}",
            f"{machine(case['environment'])}. {case['about']}",
            table(head, rows),
        ]
    return parts


def discrete_variance(results: dict[str, Any]) -> list[str]:
    first = results["cases"][0]
    steps = list(first["points"])
    head = ("estimator", "values", "gradients")
    for step in steps:
        head += (f"step {step}: variance", "independent", "bias")
    rows = []
    for case in results["cases"]:
        cells = [case["case"] + (" (biased)" if case["is_biased"] else "")]
        cells += [str(case["values"]), str(case["gradients"])]
        independent = case["independent"] or (None,) * len(steps)
        for found, other in zip(case["points"].values(), independent, strict=True):
            is_seen = found["relative_bias"] > max(2 * found["relative_noise"], 1e-3)
            bias = number(found["relative_bias"]) if is_seen else "-"
            error = number(found["variance_se"])
            cells += [f"{number(found['variance'])} ± {error}", number(other), bias]
        rows.append(cells)
    return [
        "# Variance and bias for binary latents",
        f"{machine(first['environment'])}. Trace of the covariance of the gradient of an image's "
        "ELBO in its logits, mean and its standard error over "
        f"{first['images']} images, {first['replicates']} replicates; evaluations of log_joint "
        "per step. Bias: norm of the mean error over that of the exact gradient, where it is "
        "beyond that of the noise in the mean, and of rounding (0.1 %). Independent: figures of "
        "an earlier implementation, with fixed coefficients, on a run of its own.",
        table(head, rows),
    ]


def streaming(results: dict[str, Any]) -> list[str]:
    times, memory = [], []
    for case in results["cases"]:
        for row in case["epochs"]:
            cells = [str(case["size"]), str(row["batch_size"]), str(row["steps"])]
            keys = ("reading_wall_s", "stored_wall_s", "resident_wall_s", "to_reading")
            cells += [spread(row[key]) for key in (*keys, "to_resident")]
            times.append([*cells, number(1e6 * row["stored_wall_s"]["median"] / row["steps"])])
        keys = ("files_mb", "peak_mb", "peak_anonymous_mb")
        memory.append([str(case["size"]), *(number(case["memory"][key]) for key in keys)])
    head = ("rows", "batch", "steps", "reading s [IQR]", "fit from disk s [IQR]")
    head += ("fit in memory s [IQR]", "x reading [IQR]", "x in memory [IQR]", "us/step")
    return [
        "# Data on disk",
        f"{machine(results['cases'][0]['environment'])}. An epoch of a logistic regression with "
        "ten features; the files are in the page cache.",
        table(head, times),
        "Memory of the process in MB: all, which includes pages of the files, and without these.",
        table(("rows", "files", "peak", "peak without files"), memory),
    ]


def _own(name: str) -> Callable[[dict[str, Any]], list[str]]:
    """The tables of a suite that has them in its own module, which stands on this one."""
    return lambda results: importlib.import_module(f"benchmarks.{name}").tables(results)


OWN = ("variance", "toys", "sample_sizes", "step_sizes", "classics", "accuracy", "devices")
SUITES = {
    **{name: _own(name) for name in OWN},
    "speed": speed,
    "scale": scale,
    "rao_blackwellization": rao_blackwellization,
    "mixture": mixture,
    "discrete_variance": discrete_variance,
    "streaming": streaming,
}


def machine(known: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    device = known.get("processor", known["device"])
    return (
        f"{device}, {known['cpu_count']} processors, Python {known['python']}, {versions}; "
        f"{known['dtype']}"
    )


def _interval(factor: dict[str, float] | None) -> str:
    if factor is None:
        return "-"
    return interval(factor["value"], factor["low"], factor["high"])


def interval(value: float, low: float, high: float) -> str:
    return f"{number(value)} [{number(low)}, {number(high)}]"


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _median(value: dict[str, float] | None) -> str:
    return number(value["median"] if value else None)


def spread(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{number(value['median'])} [{number(value['q1'])}, {number(value['q3'])}]"


if __name__ == "__main__":
    print(markdown(json.loads(pathlib.Path(sys.argv[1]).read_text())))
