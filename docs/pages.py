"""Pages made from the library itself: what is added to it appears here without an edit.

A page for each estimator of the catalogue, one for each group of public names, and the notebooks.
A public name without a docstring of its own fails the build.
"""

import inspect
import re
import shutil
from pathlib import Path

import bbvi
import bbvi.plotting
import bbvi.testing
from bbvi.estimators import CATALOGUE

ROOT = Path(__file__).parents[1]
# Where a name is found, by the room of the library that defines it. Other rooms get a page each.
GROUPS = {
    "Fit and its result": ("infer", "problem", "natural_gradient", "variational_em", "_types"),
    "Guides": ("guides", "amortized", "semi_amortized"),
    "Objectives": ("objectives", "tempering"),
    "Estimators": ("estimators", "baselines", "sampling"),
    "Comparing estimators": ("comparison",),
    "The terms of a model": ("dependence", "factors"),
}
NOT_MEMBERS = "Alias for field number"


def write(folder: Path) -> None:
    """Write all pages into the folder of the sources."""
    for name in ("estimators", "api", "readme", "notebooks"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    for entry in CATALOGUE:
        path = folder / "estimators" / f"{entry.estimator.__name__}.rst"
        path.write_text(estimator_page(entry))
    (folder / "estimators" / "index.rst").write_text(estimator_index())
    for title, text in api_pages().items():
        (folder / "api" / f"{file_name(title)}.rst").write_text(text)
    (folder / "api" / "index.rst").write_text(api_index())
    for name, text in readme_pages().items():
        (folder / "readme" / f"{name}.md").write_text(text)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, folder / "notebooks")


def heading(text: str, underline: str = "=") -> str:
    """A heading of reStructuredText."""
    return f"{text}\n{underline * len(text)}\n"


def literal(text: str) -> str:
    """Code of Markdown as code of reStructuredText."""
    return text.replace("`", "``")


def file_name(title: str) -> str:
    """The name of a page's file."""
    return title.lower().replace(" ", "_").replace(".", "_")


def estimator_page(entry) -> str:
    """Conditions, cost and use of an estimator, then its docstring: formula and arguments."""
    name = entry.estimator.__name__
    fields = {
        "When to use it": entry.use,
        "Latents": entry.latents,
        "Objectives": entry.objectives,
        "Cost per step": entry.cost,
        "Bias": entry.bias,
        "Source": entry.source,
    }
    lines = [f":{field}: {literal(value)}" for field, value in fields.items()]
    return "\n".join([heading(name), *lines, "", directive("class", f"bbvi.{name}"), ""])


def estimator_index() -> str:
    """The catalogue with links."""
    rows = [["Estimator", "When to use it", "Latents", "Cost per step"]]
    for entry in CATALOGUE:
        columns = map(literal, (entry.use, entry.latents, entry.cost))
        rows.append([f":doc:`{entry.estimator.__name__}`", *columns])
    table = [".. list-table::", "   :header-rows: 1", "   :widths: 25 40 20 15", ""]
    for row in rows:
        table += [f"   {'*' if not k else ' '} - {cell}" for k, cell in enumerate(row)]
    text = (
        "``fit`` takes a valid estimator of low variance for each latent by itself. "
        ":func:`bbvi.choose_estimator` picks by a short pilot, and "
        ":func:`bbvi.compare_estimators` measures them all on your model. S is ``num_samples``, "
        "K the number of categories or of a bound's draws, G the draws of the continuous sites; "
        "values and gradients are those of ``log_joint``.\n"
    )
    toctree = [".. toctree::", "   :hidden:", ""]
    toctree += [f"   {entry.estimator.__name__}" for entry in CATALOGUE]
    return "\n".join([heading("Estimators"), text, *table, "", *toctree, ""])


def public_names() -> dict[str, list[str]]:
    """Dotted public names by the title of their page; estimators of the catalogue have their own.

    Raises:
      ValueError: a name has no docstring of its own.
    """
    own_page = {entry.estimator for entry in CATALOGUE}
    group_of = {room: title for title, rooms in GROUPS.items() for room in rooms}
    found: dict[str, list[str]] = {title: [] for title in GROUPS}
    modules = [bbvi.testing, bbvi.plotting]
    for name in bbvi.__all__:
        value = getattr(bbvi, name)
        if inspect.ismodule(value):
            modules.append(value)
        elif value not in own_page:
            room = value.__module__.split(".")[1]
            found.setdefault(group_of.get(room, f"bbvi.{room}"), []).append(f"bbvi.{name}")
    for module in modules:
        found[module.__name__] = [module.__name__, *module_names(module)]
    undocumented = [
        name for names in found.values() for name in names if not documentation(resolve(name))
    ]
    if undocumented:
        raise ValueError(f"public names without a docstring: {undocumented}")
    return found


def module_names(module) -> list[str]:
    """What a public module has besides what ``bbvi`` itself exports."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    exported = {id(getattr(bbvi, name)) for name in bbvi.__all__}
    return [f"{module.__name__}.{n}" for n in names if id(getattr(module, n)) not in exported]


def resolve(name: str):
    """The object of a dotted name."""
    value = bbvi
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def documentation(value) -> str | None:
    """The docstring of this object itself, not one that it inherits."""
    return vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__


def directive(kind: str, name: str, *options: str) -> str:
    """One of autodoc's directives."""
    return "\n".join([f".. auto{kind}:: {name}", *(f"   :{option}:" for option in options), ""])


def kind_of(value) -> str:
    """Which of autodoc's directives documents an object."""
    if inspect.ismodule(value):
        return "module"
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if callable(value) and hasattr(value, "__name__") else "data"


def api_pages() -> dict[str, str]:
    """Text by title."""
    pages = {}
    for title, names in public_names().items():
        parts = [heading(title)]
        for name in names:
            kind = kind_of(resolve(name))
            parts.append(directive(kind, name, *(["members"] if kind == "class" else [])))
        pages[title] = "\n".join(parts)
    return pages


def api_index() -> str:
    """The list of all pages of names."""
    titles = [f"   {file_name(title)}" for title in public_names()]
    return "\n".join([heading("Reference"), ".. toctree::", "", *titles, ""])


def readme_pages() -> dict[str, str]:
    """Pages from what stands in the repository for those who read it there, by file name."""
    readme = (ROOT / "README.md").read_text()
    topics = section(readme, "## Comparing estimators", "## The plain call")
    measurements = section(readme, "## The plain call", "## What it does not do yet")
    results = (ROOT / "benchmarks" / "results" / "README.md").read_text()
    results = results.replace("(../../README.md)", "(measurements.md)")
    here = re.compile(r"\]\((?=[\w-]+\.(json|png)\))")
    return {
        "topics": f"# Topics\n\n{relinked(topics)}",
        "measurements": f"# Accuracy and speed\n\n{relinked(measurements)}",
        "results": here.sub("](../../benchmarks/results/", results),
        "contributing": (ROOT / "CONTRIBUTING.md").read_text(),
        "changelog": (ROOT / "CHANGELOG.md").read_text(),
    }


def section(text: str, start: str, end: str) -> str:
    """What stands from one mark to another, both of which must be there."""
    return text[text.index(start) : text.index(end)]


def relinked(text: str) -> str:
    """Tables of results are all on one page here; pictures and data are where they were."""
    text = re.sub(r"\]\(benchmarks/results/[\w-]+\.md\)", "](results.md)", text)
    return text.replace("](docs/", "](../").replace("](benchmarks/", "](../../benchmarks/")


def skip_member(app, what, name, obj, skip, options):
    """Leave out members that say nothing: fields of named tuples are in the docstring."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith(NOT_MEMBERS) else skip
