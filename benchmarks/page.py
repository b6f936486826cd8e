"""The results page, made from the files of results: ``python -m benchmarks.page``.

Every JSON file of ``benchmarks/results`` gets a section of ``benchmarks/results/README.md``: its
tables, made anew where its suite is one of ``benchmarks.report`` and else those its benchmark wrote
beside it, the command that measured it, and its picture.
"""

import json
import pathlib

from benchmarks import report

RESULTS = pathlib.Path(__file__).parent / "results"
HEAD = """# Results

Made by `python -m benchmarks.page` from the JSON files of this folder, which also hold settings and
versions; not to be edited. What was measured, and what it says, is in the
[README](../../README.md).
"""


def section(path: pathlib.Path) -> str:
    """Title, command, tables and picture of one file of results."""
    results = json.loads(path.read_text())
    suite = results.get("suite", "speed" if "problems" in results else None)
    if suite in report.SUITES:
        text = report.markdown(results)
    else:
        text = path.with_suffix(".md").read_text()
    if not text.startswith("# "):
        text = f"# {path.stem.replace('-', ' ').replace('_', ' ').capitalize()}\n\n{text}"
    title, _, body = text.partition("\n")
    # A level deeper than in a file of its own; lines of tables do not begin with a hash.
    body = body.replace("\n#", "\n##").strip()
    parts = [f"#{title}", f"[{path.name}]({path.name}){_command(results)}", body]
    if path.with_suffix(".png").exists():
        parts.append(f"![{title[2:]}]({path.stem}.png)")
    return "\n\n".join(parts) + "\n"


def _command(results: dict) -> str:
    """The commands that measured it, where they are recorded."""
    cases = results.get("cases", [])
    cases = cases if isinstance(cases, list) else []
    known = [results, *cases]
    found = [part.get("environment", {}).get("command") for part in known]
    commands = sorted({command for command in found if command})
    return ": " + ", ".join(f"`{command}`" for command in commands) if commands else ""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(path) for path in sorted(RESULTS.glob("*.json")))])


if __name__ == "__main__":
    (RESULTS / "README.md").write_text(page())
