import pathlib
import re
import sys

import pytest

from benchmarks import measure


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "Gumbel-softmax 0.5", "--quick"],
        ["--only", "Gumbel-softmax 0.5", "--out", "/home/me/found.json", "--quick"],
        ["--out=/home/me/found.json", "--only", "Gumbel-softmax 0.5", "--quick"],
        ["--folder", "/home/me", "--only", "Gumbel-softmax 0.5", "--quick", "--folder=/home"],
    ],
)
def test_command_leaves_out_where_results_went(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments])
    command = measure.environment("jax")["command"]
    assert re.fullmatch(r"python -m \S+ --only 'Gumbel-softmax 0.5' --quick", command)


def test_results_name_no_folder_of_a_machine():
    results = sorted(pathlib.Path(measure.__file__).parent.joinpath("results").rglob("*.json"))
    assert len(results) > 5
    for path in results:
        assert not re.search(r'[" ]/(home|tmp|root|work|opt|Users)/', path.read_text()), path
