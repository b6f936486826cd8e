"""Training of autoencoders: resumed runs, what is recorded, and the closed form of a linear one."""

import json

import pytest

from benchmarks import vae as benchmark

TINY = benchmark.Run("200", batch_size=20, num_images=200, num_evaluated=30)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("vae")
    found = benchmark.follow(TINY, out, epochs=4, every=2, weights=100)
    benchmark.follow(
        benchmark.Run(**vars(TINY) | {"num_samples": 3}), out, epochs=2, every=2, weights=0
    )
    return out, found


def test_a_run_goes_on_as_if_it_had_not_stopped(trained, tmp_path):
    for epochs in (2, 4):
        parts = benchmark.follow(TINY, tmp_path, epochs=epochs, every=2, weights=0)
    without_time = [
        [point | {"seconds": 0} for point in found["curve"]] for found in (parts, trained[1])
    ]
    assert without_time[0] == without_time[1]
    assert [point["epoch"] for point in parts["curve"]] == [2, 4]
    assert benchmark.follow(TINY, tmp_path, epochs=4, every=2, weights=0) == parts


def test_training_improves_what_is_held_out(trained):
    first, last = trained[1]["curve"]
    for name in ("train_bound", "valid_elbo", "test_elbo"):
        assert last[name] > first[name] + 1.0
    # By Jensen's inequality; of 100 draws, and so few images, by far.
    likelihood = trained[1]["log_likelihood"]
    assert likelihood["test"] > last["test_elbo"] + 3 * likelihood["test_error"]
    assert likelihood["epoch"] == 4


def test_no_epoch_is_begun_after_the_time_is_over(tmp_path):
    found = benchmark.follow(TINY, tmp_path, epochs=9, every=1, weights=0, seconds=1e-3)
    assert [point["epoch"] for point in found["curve"]] == [1]


def test_another_run_in_the_same_folder_is_refused(trained):
    other = benchmark.Run(**vars(TINY) | {"learning_rate": 0.1})
    with pytest.raises(ValueError, match="there optimizer is"):
        benchmark.follow(other, trained[0], epochs=6, every=2, weights=0)


def test_table_and_figure_have_all_runs(trained):
    out, _ = trained
    assert json.loads((out / "vae-200.json").read_text())["run"]["num_images"] == 200
    rows = benchmark.table(out).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["iwae3-200", "vae-200"]
    assert rows[0].endswith("|  |")  # no log likelihood was asked for
    assert benchmark.plot(out).stat().st_size > 10_000
