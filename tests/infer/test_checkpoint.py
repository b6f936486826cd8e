"""Saved runs: continued bit for bit after any end, told from others, and safe from bad disks."""

import functools
import os
import resource
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi

N = 60
SHARED = bbvi.MeanField({"b": bbvi.Normal()})
EFFECTS = bbvi.Product(SHARED, bbvi.Local({"u": bbvi.Normal((N,))}))


def log_joint(x, z):
    """Rows with a common location and, in some guides, an effect of their own."""
    loc, total = z["b"], norm.logpdf(z["b"])
    if "u" in z:
        loc += z["u"]
        total += norm.logpdf(z["u"]).sum()
    return total + norm.logpdf(x, loc, 0.5).sum()


def data():
    return np.random.default_rng(0).normal(1.0, 1.0, N).astype(np.float32)


@pytest.fixture
def x():
    return data()


def run(x, folder=None, guide=EFFECTS, **options):
    settings = {"batch_size": 10, "num_steps": 500, "optimizer": optax.adam(1e-2)}
    settings |= {"progress": False, "trace_fn": norm_and_location}
    if folder is not None:
        settings["checkpoint"] = bbvi.Checkpoint(folder, seconds=0)
    return bbvi.fit(log_joint, guide, x, **(settings | options))


def norm_and_location(info):
    return {"norm": info.gradient_norm, "b": info.params.guide[0].normal}


def stop_after(num_steps):
    return [lambda info: info.step >= num_steps]


def check_same(found, wanted):
    assert int(np.max(found.state.step)) == int(np.max(wanted.state.step))
    for a, b in zip(leaves_of(found), leaves_of(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.status == wanted.status


def leaves_of(result):
    state = result.state._replace(key=jax.random.key_data(result.state.key))
    return jax.tree.leaves((state, result.history))


def no_trace(**options):
    return {"trace_fn": None, "guide": SHARED} | options


SETTINGS = {
    "local guide in batches": {},
    "restarts": no_trace(num_restarts=3),
    "optimizer lowers its rate": no_trace(batch_size=None, num_steps=2000, optimizer=None),
    "stopping rule": no_trace(batch_size=None, num_steps=None, optimizer=None),
    "state of the estimator": no_trace(
        estimator=bbvi.ScoreFunction(4, baseline=bbvi.MovingAverage())
    ),
    "annealed": no_trace(objective=bbvi.Tempered(optax.linear_schedule(0.1, 1.0, 300))),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name, x, tmp_path):
    fit = functools.partial(run, x, **SETTINGS[name])
    whole = fit()
    for part in (1, 350):
        stopped = fit(tmp_path, callbacks=stop_after(part))
        assert stopped.status == "stopped"
    check_same(fit(tmp_path), whole)


def test_from_disk_in_the_middle_of_an_epoch(x, tmp_path):
    x.tofile(tmp_path / "x")
    x = np.memmap(tmp_path / "x", np.float32, "r")
    # Half an epoch is left; and other chunks than those of the whole run.
    run(x, tmp_path / "saved", num_steps=123)
    check_same(run(x, tmp_path / "saved"), run(x))


def test_a_run_that_is_over_is_returned_and_extended(x, tmp_path):
    run(x, tmp_path, num_epochs=20, num_steps=None)
    seen = []
    again = run(x, tmp_path, num_epochs=20, num_steps=None, callbacks=[seen.append])
    assert not seen
    assert len(again.history.loss) == 120
    run(x, tmp_path, num_epochs=30, num_steps=None, callbacks=[seen.append])
    assert sum(len(info.loss) for info in seen) == 60


def test_a_converged_run_is_over(x, tmp_path):
    settings = SETTINGS["stopping rule"]
    first, seen = run(x, tmp_path, **settings), []
    assert first.status == "converged"
    again = run(x, tmp_path, callbacks=[seen.append], **settings)
    assert not seen
    check_same(again, first)


def test_continues_a_state_and_then_its_own(x, tmp_path):
    begun = run(x, num_steps=200)
    whole = run(x, num_steps=300, init_state=begun.state)
    run(x, tmp_path, num_steps=100, init_state=begun.state)
    check_same(run(x, tmp_path, num_steps=300, init_state=begun.state), whole)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_lost_by_an_exception(error, x, tmp_path):
    def fail(info):
        raise error

    # Too seldom to have been saved before.
    checkpoint = bbvi.Checkpoint(tmp_path, seconds=1e6)
    stopped = run(x, callbacks=[fail], checkpoint=checkpoint, throw=False)
    taken, seen = int(stopped.state.step), []
    assert 0 < taken <= 500
    run(x, num_steps=taken + 10, checkpoint=checkpoint, callbacks=[seen.append])
    assert sum(len(info.loss) for info in seen) == 10


def test_a_step_that_is_not_finite_is_not_saved(tmp_path):
    def unlucky(x, z):
        return jnp.where(z["b"] > 3.0, jnp.nan, -0.5 * (z["b"] - 5.0) ** 2)

    options = {"optimizer": optax.sgd(1e-2), "progress": False, "num_steps": 5000}
    options["checkpoint"] = bbvi.Checkpoint(tmp_path, seconds=0)
    fit = functools.partial(bbvi.fit, unlucky, SHARED, **options)
    fit(num_steps=50)
    with pytest.raises(bbvi.NonFiniteError) as caught:
        fit()
    assert 50 < int(caught.value.result.state.step) < 200
    bad = int(caught.value.result.state.step)
    skipping = fit(nonfinite="skip")
    assert int(skipping.state.skipped) > 0
    np.testing.assert_array_equal(skipping.history.loss[:bad], caught.value.result.history.loss)


def test_only_the_last_are_kept(x, tmp_path):
    checkpoint = bbvi.Checkpoint(tmp_path, seconds=1e6, keep=2)  # at the end only
    for num_steps in (100, 200, 300):
        run(x, num_steps=num_steps, checkpoint=checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["200", "300"]


DIFFERENT = {
    "guide": {"guide": bbvi.Product(SHARED, bbvi.Local({"u": bbvi.LogNormal((N,))}))},
    "objective": {"objective": bbvi.Tempered(optax.linear_schedule(0.1, 1.0, 9))},
    "estimator": {"estimator": bbvi.ScoreFunction(4)},
    "optimizer": {"optimizer": optax.adam(2e-2)},
    "batch_size": {"batch_size": 20},
    "num_restarts": {"num_restarts": 2},
    "key": {},
    "the trace": {"trace_fn": lambda info: info.loss},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_run_is_refused_and_the_difference_named(name, x, tmp_path):
    options = DIFFERENT[name]
    if name == "key":
        options = {"key": jax.random.key(1)}  # not above, where it would start JAX's threads
    run(x, tmp_path, num_steps=20)
    with pytest.raises(ValueError, match=f"there {name} is .*, here it is .*Name another folder"):
        run(x, tmp_path, **options)


def test_another_model_and_other_data_are_refused(x, tmp_path):
    options = {"batch_size": 10, "num_steps": 20, "progress": False}

    def fit(constant, x):
        def shifted(x, z):
            return log_joint(x, z) + constant @ jnp.stack([z["b"], z["b"]])

        return bbvi.fit(shifted, SHARED, x, checkpoint=tmp_path, **options)

    fit(np.array([1.0, 2.0], np.float32), x)
    fit(np.array([1.0, 2.0], np.float32), x)  # another function, which does the same
    with pytest.raises(ValueError, match=r"there log_joint, in JAX .*, is a program of checksum"):
        fit(np.array([1.0, 3.0], np.float32), x)
    with pytest.raises(ValueError, match=r"there x is .*float32\[60\] of checksum"):
        fit(np.array([1.0, 2.0], np.float32), x + 1)


def damage(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(x, tmp_path):
    options = {"checkpoint": bbvi.Checkpoint(tmp_path, seconds=1e6), "num_steps": 200}
    run(x, **options | {"num_steps": 100})
    run(x, **options)
    damage(tmp_path / "200")
    with pytest.warns(UserWarning, match=r"step 200 .* cannot be read.*one before it is used"):
        result = run(x, **options)
    check_same(result, run(x, num_steps=200))
    check_same(run(x, **options), result)  # it was written anew


# Orbax reads arrays at once, and what is still being read when one fails complains of its loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", [0.1, 0.9])
@pytest.mark.parametrize("part", ["arrays/d/*", "rest/metadata"])
def test_one_wrong_bit_gives_way_to_the_one_before(part, place, x, tmp_path):
    options = no_trace(checkpoint=bbvi.Checkpoint(tmp_path, seconds=1e6), num_steps=40)
    run(x, **options | {"num_steps": 20})
    run(x, **options)
    (path,) = (tmp_path / "40").glob(part)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 16
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"step 40 .* cannot be read.*one before it is used"):
        result = run(x, **options)
    check_same(result, run(x, **no_trace(num_steps=40)))


def test_without_a_readable_checkpoint_nothing_is_begun_anew(x, tmp_path):
    run(x, num_steps=100, checkpoint=bbvi.Checkpoint(tmp_path, seconds=1e6))
    damage(tmp_path / "100")
    with (
        pytest.warns(UserWarning, match="step 100"),
        pytest.raises(ValueError, match=r"none of the checkpoints .* remove the folder"),
    ):
        run(x, tmp_path)


def test_a_run_outlives_its_disk(x, tmp_path):
    def lose(info):
        # What is written to a folder that became a file fails, as on a full disk.
        if info.step == info.num_steps:
            os.rename(tmp_path / "saved", tmp_path / "before")
            (tmp_path / "saved").write_text("")

    run(x, tmp_path / "saved", num_steps=100)
    checkpoint = bbvi.Checkpoint(tmp_path / "saved", seconds=1e6)
    with pytest.warns(UserWarning, match=r"step 500 was not saved .* The run goes on"):
        result = run(x, checkpoint=checkpoint, callbacks=[lose])
    check_same(result, run(x))
    check_same(run(x, tmp_path / "before"), result)


def test_a_disk_that_is_full_in_the_middle_of_a_file(x, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(info):
        # No file grows beyond some bytes from here on: the last checkpoint fails half written.
        if info.step == info.num_steps:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))

    options = no_trace(checkpoint=bbvi.Checkpoint(tmp_path, seconds=1e6), num_steps=40)
    run(x, **options | {"num_steps": 20})
    try:
        with pytest.warns(UserWarning, match=r"step 40 was not saved .* The run goes on"):
            result = run(x, **options, callbacks=[fill])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_same(result, run(x, **no_trace(num_steps=40)))
    check_same(run(x, **options), result)  # from the one before, and saved now
    assert "40" in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: bbvi.Checkpoint(folder, seconds=-1.0), "seconds must be a number >= 0"),
        (lambda folder: bbvi.Checkpoint(folder, keep=0), "keep must be an int >= 1"),
        (lambda folder: 3, "must be a folder's name or a bbvi.Checkpoint, got 3"),
        (lambda folder: folder / "file", "must name a folder to write in"),
    ],
)
def test_bad_arguments(make, message, x, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((TypeError, ValueError), match=message):
        run(x, checkpoint=make(tmp_path))


# Forks before JAX has started any thread, so that a run costs no imports. Chunks are short and
# each is saved, so that many kills meet a checkpoint that is half written.
KILLED = textwrap.dedent(
    """
    import os, pathlib, random, signal, sys, time
    import bbvi.infer.checkpoint, bbvi.infer.chunk
    from tests.infer import test_checkpoint as tests

    folder, result_path, num_kills = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    random.seed(0)
    torn = 0
    for _ in range(num_kills):
        before = set(folder.glob("*"))
        process = os.fork()
        if not process:
            bbvi.infer.checkpoint.MAX_SHARE, bbvi.infer.chunk.MAX_CHUNK = float("inf"), 50
            tests.long_run(folder)
            os._exit(0)
        while not set(folder.glob("*")) - before:  # so that each gets further than the last
            assert not os.waitpid(process, os.WNOHANG)[0], "the run ended before it was killed"
            time.sleep(0.001)
        time.sleep(random.random() * 0.1)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        torn += any("tmp" in path.name for path in folder.glob("*"))
    tests.np.savez(result_path, *tests.leaves_of(tests.long_run(folder)))
    print(num_kills, torn)
    """
)


def long_run(folder=None):
    """Steps enough for many lives; epochs of six steps, so that few chunks end with one."""
    return run(data(), folder, guide=SHARED, num_steps=20_000, trace_fn=None)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path):
    path = tmp_path / "result.npz"
    script = [sys.executable, "-W", "error::RuntimeWarning", "-c", KILLED]
    done = subprocess.run(
        [*script, str(tmp_path / "saved"), str(path), "20"],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        # What one run compiles the next ones need not.
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )
    assert done.returncode == 0, done.stderr
    num_kills, num_torn = map(int, done.stdout.split()[-2:])
    assert num_kills == 20
    assert num_torn >= 3  # in the middle of saving
    with np.load(path) as stored:
        for name, leaf in zip(stored, leaves_of(long_run()), strict=True):
            np.testing.assert_array_equal(stored[name], leaf)
