"""The results page is what its command makes of the files."""

from benchmarks import page


def test_the_page_is_made_from_the_results():
    text = page.page()
    assert (page.RESULTS / "README.md").read_text() == text, "run python -m benchmarks.page"
    for path in page.RESULTS.glob("*.json"):
        assert f"[{path.name}]({path.name})" in text
    for path in page.RESULTS.glob("*.png"):
        assert f"({path.name})" in text


def test_sections_have_their_command_and_headings():
    text = page.section(page.RESULTS / "toys.json")
    assert text.startswith("## Toys\n")
    assert "`python -m benchmarks.toys" in text
    assert "| toy | estimator |" in text
    assert "\n# " not in text
