"""Tables and picture of ``benchmarks.classics``."""

import pathlib
from typing import Any

import numpy as np

from bbvi.plotting.comparison import COLOURS, MARKERS
from benchmarks import report

SCALES = {
    "passes": "passes over the data",
    "seconds": "processor seconds, without compiling",
}
SHOWN = (1, 2, 3, 5, 8, 12)  # iterations of EM
ROUNDING = 1e-9  # a share of the optimum: what is nearer has arrived


def mean_and_error(values: list[float]) -> str:
    """Of runs from different seeds."""
    mean = report.number(float(np.mean(values)))
    if len(values) == 1:
        return mean
    return f"{mean} ± {report.number(float(np.std(values, ddof=1)) / len(values) ** 0.5)}"


def mixture_table(case: dict[str, Any]) -> list[str]:
    best, rows = case["methods"][0]["finals"][0], []
    for row in case["methods"]:
        gaps = best - np.array(row["elbo"])
        cells = [row["method"], mean_and_error([best - value for value in row["finals"]])]
        for gap in (1.0, 0.1):
            near = np.flatnonzero(gaps < gap)
            first = [row[key][near[0]] if len(near) else None for key in ("passes", "seconds")]
            cells += [report.number(value) for value in first]
        rows.append(cells)
    head = ("method", "nats below coordinate ascent ± s.e.", "passes to 1 nat", "cpu s to 1 nat")
    return [
        "## Coordinate ascent on a Gaussian mixture",
        f"{case['about']}; ELBO of coordinate ascent {best:.6g}. Seconds are those of the "
        "processor, without compiling.",
        report.table((*head, "passes to 0.1 nats", "cpu s to 0.1 nats"), rows),
    ]


def em_table(case: dict[str, Any]) -> list[str]:
    by_name = {row["method"]: row for row in case["methods"]}
    exact, phases = (by_name[n]["log_likelihood"] for n in ("exact EM", "alternating, long phases"))
    shown = [i for i in SHOWN if i <= len(exact)]
    rows = [[str(i), f"{exact[i - 1]:.4f}", f"{phases[i - 1]:.4f}"] for i in shown]
    ends = [
        [
            row["method"],
            str(row["passes"][-1]),
            report.number(case["maximum"] - row["log_likelihood"][-1]),
        ]
        for row in case["methods"]
    ]
    return [
        "## Exact EM on a mixture of wines",
        f"{case['about']}; log likelihood at EM's end {case['maximum']:.4f}.",
        report.table(("iteration", "exact EM", "alternating, long phases"), rows),
        report.table(("method", "passes", "nats below EM's end"), ends),
    ]


def ising_table(case: dict[str, Any]) -> list[str]:
    spins, rows = case["num_spins"], []
    for row in case["rows"]:
        off = [value - row["mean_field"] for value in row["bbvi"]]
        cells = [report.number(row["coupling"]), f"{row['exact']:.4f}"]
        cells += [
            report.number((row[key] - row["exact"]) / spins) for key in ("mean_field", "bethe")
        ]
        cells += [mean_and_error(off)]
        for name, steps in (("mean_field", "sweeps"), ("bethe", "sweeps"), ("bbvi", "steps")):
            cells.append(f"{row[f'{name}_{steps}']:.0f}; {report.number(row[f'{name}_s'])}")
        rows.append(cells)
    head = ("coupling", "exact log Z", "mean field, error a spin", "Bethe, error a spin")
    head += ("bbvi less mean field, nats ± s.e.", "mean field: sweeps; cpu s")
    return [
        "## Theory of magnets on an Ising grid",
        f"{case['about']}. Seconds are those of the processor, of bbvi without compiling.",
        report.table((*head, "Bethe: sweeps; cpu s", "bbvi: steps; cpu s"), rows),
    ]


TABLES = {"mixture": mixture_table, "em": em_table, "ising": ising_table}


def tables(results: dict[str, Any]) -> list[str]:
    parts = ["# Classical algorithms", f"{report.machine(results['cases'][0]['environment'])}."]
    for case in results["cases"]:
        parts += TABLES[case["case"]](case)
    return parts


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Distances to the optimum against passes and seconds; errors of log Z over the coupling."""
    from matplotlib.figure import Figure

    num_panels = sum(2 if case["case"] == "mixture" else 1 for case in results["cases"])
    rows, columns = -(-num_panels // 2), min(num_panels, 2)
    figure = Figure(figsize=(5.5 * columns, 4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for case in results["cases"]:
        if case["case"] == "ising":
            _errors_of_log_partition(axes.pop(0), case)
        elif case["case"] == "em":
            axis = axes.pop(0)
            _distances(axis, case["methods"], "passes", "log_likelihood", case["maximum"])
            axis.set_ylabel("log p(y) at EM's end - log p(y) (nats)")
            axis.set_title("mixture of wines, learned parameters")
        else:
            best = max(max(row["elbo"]) for row in case["methods"])
            for key in SCALES:
                axis = axes.pop(0)
                _distances(axis, case["methods"], key, "elbo", best)
                axis.set_ylabel("best ELBO - ELBO (nats)")
                axis.set_title("Gaussian mixture")
    for axis in axes:
        figure.delaxes(axis)
    figure.savefig(path, dpi=140)


def _distances(axis: Any, methods: list[dict[str, Any]], key: str, value: str, best: float) -> None:
    for number, row in enumerate(methods):
        gap = best - np.array(row[value])
        seen = gap > ROUNDING * abs(best)
        axis.plot(
            *(np.array(row[key])[seen], gap[seen]),
            color=COLOURS[number],
            marker=MARKERS[number],
            markersize=4,
            linewidth=1,
            label=row["method"],
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(SCALES[key])
    axis.grid(visible=True, alpha=0.25)
    axis.legend(fontsize=8)


def _errors_of_log_partition(axis: Any, case: dict[str, Any]) -> None:
    rows, spins = case["rows"], case["num_spins"]
    coupling = [row["coupling"] for row in rows]
    exact = np.array([row["exact"] for row in rows])
    found = {
        "mean-field fixed point": np.array([row["mean_field"] for row in rows]),
        "Bethe, by belief propagation": np.array([row["bethe"] for row in rows]),
        "bbvi, independent spins": np.array([np.mean(row["bbvi"]) for row in rows]),
    }
    styles = (
        {"marker": "o", "markersize": 9, "fillstyle": "none"},
        {"marker": "s"},
        {"marker": "x"},
    )
    for colour, style, (name, values) in zip(COLOURS, styles, found.items(), strict=False):
        line = {"linestyle": "none" if name.startswith("bbvi") else "-"}
        axis.plot(coupling, (values - exact) / spins, color=colour, label=name, **line, **style)
    axis.axhline(0.0, color="0.3", linewidth=0.8, label="exact, by transfer matrices")
    axis.set_xlabel("coupling J")
    axis.set_ylabel("error of log Z per spin (nats)")
    axis.set_title(f"Ising grid, {case['about']}")
    axis.grid(visible=True, alpha=0.25)
    axis.legend(fontsize=8)
