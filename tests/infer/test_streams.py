"""Data on disk: order, identity with data on the device, threads, and what a result says."""

import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from scipy import stats

import bbvi
from bbvi.infer import batching as batching_module
from bbvi.infer import streams
from bbvi.infer.batching import minibatches
from bbvi.infer.streams import Stored

N, B = 103, 8
EPOCH = N // B
SHARED = bbvi.MeanField({"w": bbvi.Normal((2,))})
EFFECTS = bbvi.Product(SHARED, bbvi.Local({"u": bbvi.Normal((N,))}))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        out = nn.Dense(2)(jnp.concatenate([x["y"][:, None], x["f"]], axis=1))
        return {"u": {"loc": out[:, 0], "log_scale": out[:, 1]}}


AMORTIZED = bbvi.Amortized({"u": bbvi.Normal((N,))}, Encoder())


def log_joint(x, z):
    """A regression with shared weights w and an effect u of each row, where they are there."""
    loc, total = x["f"][:, 0], 0.0
    if "w" in z:
        total += norm.logpdf(z["w"]).sum()
        loc += x["f"] @ z["w"]
    if "u" in z:
        total += norm.logpdf(z["u"]).sum()
        loc += z["u"]
    return total + norm.logpdf(x["y"], loc, 0.5).sum()


@pytest.fixture
def x(tmp_path):
    rng = np.random.default_rng(0)
    return {
        name: to_disk(tmp_path / name, rng.normal(size=shape).astype(np.float32))
        for name, shape in {"y": (N,), "f": (N, 2)}.items()
    }


def to_disk(path, array):
    array.tofile(path)
    return np.memmap(path, array.dtype, "r", shape=array.shape)


@pytest.fixture
def small_feeds(monkeypatch):
    """Windows of 32 rows, which are 4 batches, of blocks of 10."""
    monkeypatch.setattr(streams, "FEED_BYTES", 4 * B * 12)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 10 * 12)


def stored(x, key, guide=SHARED, batch_size=B):
    return Stored(minibatches(bbvi.Problem(log_joint, guide), x, batch_size)[1], x, key)


def batches_of(source, steps):
    for step in steps:
        feed, count = source.feed(step, 1)
        assert count == 1
        yield source.batching.take(feed, step)


def run(x, guide=SHARED, **options):
    chosen = {"batch_size": B, "num_steps": 40, "progress": False, "optimizer": optax.adam(0.1)}
    return bbvi.fit(log_joint, guide, x, key=jax.random.key(3), **(chosen | options))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("bbvi-read")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert reading_threads() == []


@pytest.mark.usefixtures("small_feeds")
def test_every_row_once_an_epoch(x, key):
    source = stored(x, key)
    assert (source.capacity, source.block) == (4, 10)
    orders = []
    for epoch in range(3):
        rows = []
        for batch, numbers in batches_of(source, range(epoch * EPOCH, (epoch + 1) * EPOCH)):
            np.testing.assert_array_equal(batch["f"], x["f"][np.asarray(numbers)])
            np.testing.assert_array_equal(batch["y"], x["y"][np.asarray(numbers)])
            rows.append(numbers)
        orders.append(np.concatenate(rows))
        assert np.unique(orders[-1]).size == EPOCH * B
    assert len({tuple(order) for order in orders}) == 3
    again = stored(x, jax.random.clone(key))
    steps = [2 * EPOCH + 5, 7, EPOCH]  # out of order, in the middle of epochs and of windows
    for step, (_, numbers) in zip(steps, batches_of(again, steps), strict=True):
        epoch, place = divmod(step, EPOCH)
        np.testing.assert_array_equal(numbers, orders[epoch][place * B : (place + 1) * B])


@pytest.mark.usefixtures("small_feeds")
@pytest.mark.parametrize("step", [0, 6, EPOCH - 1])
def test_every_row_is_as_likely_in_the_batch_of_a_step(x, key, step):
    """Although N is no multiple of blocks or windows: 2000 epochs, a binomial for each row."""
    source, counts = stored(x, key), np.zeros(N)
    for epoch in range(2000):
        piece = source.read(epoch * EPOCH + step)
        first = (epoch * EPOCH + step - piece.start) * B
        counts[piece.order[first : first + B]] += 1
    share = B / N
    z = (counts - 2000 * share) / np.sqrt(2000 * share * (1 - share))
    assert np.abs(z).max() < stats.norm.isf(1e-6 / 3 / N / 2)


@pytest.mark.usefixtures("small_feeds")
def test_windows_are_of_a_few_runs_of_the_file(x, key):
    source = stored(x, key)
    for epoch in range(20):
        windows = [source._window(epoch, first) for first in (0, 4, 8)]
        assert [len(rows) for rows in windows] == [32, 32, 39]
        assert np.unique(np.concatenate(windows)).size == N
        for rows in windows:
            # 39 rows lie in 5 blocks, one of which may go around the end of the file.
            assert (np.diff(rows) != 1).sum() <= 5


def test_data_of_one_window_are_permuted_as_a_whole(x, key):
    source = stored(x, key)
    assert source.capacity == EPOCH
    assert source.block == N
    # Of two neighbours in the file the second follows the first at random: 3.3e-4 of the places.
    piece_rows = [source.read(epoch * EPOCH).order for epoch in range(100)]
    follow = sum((np.diff(rows) == 1).sum() for rows in piece_rows)
    expected = 100 * (EPOCH * B - 1) * (N - 1) / (N * (N - 1))
    assert abs(follow - expected) < 5 * np.sqrt(expected)


@pytest.mark.usefixtures("small_feeds")
def test_feeds_have_one_shape(x, key):
    source = stored(x, key)
    feeds = [source.feed(step, 100) for step in range(EPOCH)]
    shapes = {str(jax.tree.map(jnp.shape, feed)) for feed, _ in feeds}
    assert len(shapes) == 1
    assert [count for _, count in feeds] == [4, 3, 2, 1] * 3


@pytest.mark.usefixtures("small_feeds")
@pytest.mark.parametrize("guide", [SHARED, EFFECTS, AMORTIZED], ids=["global", "free", "amortized"])
def test_a_fit_is_that_of_data_on_the_device_in_the_same_order(x, guide, monkeypatch):
    streamed = run(x, guide)
    source = stored(x, streamed.state.key, guide)
    rows = [numbers for _, numbers in batches_of(source, range(4 * EPOCH))]
    order = jnp.concatenate(rows)
    monkeypatch.setattr(batching_module, "_orders", lambda *_: order)
    monkeypatch.setattr(batching_module, "MAX_EPOCHS", 4)
    resident = run(jax.tree.map(jnp.asarray, x), guide)
    assert not resident.batching.is_streamed
    # To rounding: the programs differ in how they get at a batch.
    np.testing.assert_allclose(streamed.history.loss, resident.history.loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        streamed.params,
        resident.params,
    )


@pytest.mark.usefixtures("small_feeds")
def test_resumed_in_the_middle_of_a_window_is_uninterrupted(x):
    whole = run(x, EFFECTS)
    first = run(x, EFFECTS, num_steps=18)
    rest = run(x, EFFECTS, num_steps=22, init_state=first.state)
    assert_same(rest.params, whole.params)
    joined = np.concatenate([first.history.loss, rest.history.loss])
    np.testing.assert_array_equal(joined, whole.history.loss)


@pytest.mark.usefixtures("small_feeds")
def test_an_error_in_the_reading_thread_surfaces(x, monkeypatch):
    read, threads = Stored.read, set()

    def failing(self, step):
        threads.add(threading.current_thread().name)
        if step == 8:
            raise OSError("the disk is gone")
        return read(self, step)

    monkeypatch.setattr(Stored, "read", failing)
    with pytest.raises(OSError, match="the disk is gone") as info:
        run(x)
    assert info.value.result.status == "failed"
    assert int(info.value.result.state.step) == 8
    assert any(name.startswith("bbvi-read") for name in threads)
    assert run(x, throw=False).detail == "ended by OSError: the disk is gone"


@pytest.mark.usefixtures("small_feeds")
def test_no_thread_is_left_by_an_interrupt_or_a_bad_callback(x):
    seen = []

    def interrupt(info):
        seen.extend(reading_threads())
        raise KeyboardInterrupt

    assert run(x, callbacks=[interrupt]).status == "interrupted"
    assert len(seen) == 1
    assert not seen[0].is_alive()
    with pytest.raises(ZeroDivisionError):
        run(x, callbacks=[lambda info: 1 / 0])
    other = run(x, EFFECTS, num_steps=1).state
    with pytest.raises(ValueError, match="init_state does not fit"):
        run(x, init_state=other)


@pytest.mark.usefixtures("small_feeds")
def test_second_fit_compiles_nothing(x):
    run(x)
    compiled = []

    def listen(event, duration, **_):
        if event.endswith(("backend_compile_duration", "jaxpr_to_mlir_module_duration")):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(x)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


@pytest.mark.usefixtures("small_feeds")
@pytest.mark.parametrize("guide", [SHARED, EFFECTS, AMORTIZED], ids=["global", "free", "amortized"])
def test_a_result_leaves_the_data_on_disk(x, guide):
    """No array on the device is as large as the data."""
    before = {id(a) for a in jax.live_arrays()}

    def loaded():
        new = [a for a in jax.live_arrays() if id(a) not in before]
        return [a.shape for a in new if a.shape == (N, 2) or (a.shape == (N,) and not has_rows)]

    has_rows = guide is EFFECTS  # its parameters

    during = []
    result = run(x, guide, callbacks=[lambda info: during.extend(loaded())])
    assert result.x["f"] is x["f"]
    text = repr(result)
    assert "by 16 random batches" in text
    assert "epochs) in" in text
    assert during == loaded() == []
    if guide is AMORTIZED:
        assert "in the median of 32 random data" in text
        with pytest.raises(ValueError, match=r"sample is of all rows .* result.at\(x\).sample"):
            result.sample(jax.random.key(0), 3)
    else:
        assert "k-hat    not known from minibatches where the data share" in text
        z = result.sample(jax.random.key(0), 3)
        assert z["w"].shape == (3, 2)
        assert np.isfinite(result.log_prob(jax.tree.map(lambda leaf: leaf[0], z)))
    with pytest.raises(ValueError, match="log_evidence is of all rows of the data at once"):
        result.log_evidence(jax.random.key(0))
    few = result.at({k: v[3:5] for k, v in x.items()}, rows=np.arange(3, 5))
    assert jax.tree.leaves(few.sample(jax.random.key(0), 7))[0].shape == (7, 2)


def test_elbo_of_random_batches_is_that_of_all_data(x):
    result = run(x, num_steps=600)
    whole = result.at(x).elbo(jax.random.key(1), 20_000)
    batches = result.elbo(jax.random.key(2), 4000)
    error = np.hypot(whole.standard_error, batches.standard_error)
    assert abs(whole.value - batches.value) < 4.9 * error
    assert error < 2.0


@pytest.mark.usefixtures("small_feeds")
def test_restarts_are_compared_on_batches(x):
    result = run(x, EFFECTS, num_restarts=2)
    assert len({float(elbo.value) for elbo in result.restarts.elbos}) == 2
    assert result.restarts.disagreement.shape == (2,)


@pytest.mark.usefixtures("small_feeds")
def test_a_step_that_is_not_finite_names_the_data(x, tmp_path):
    y = np.array(x["y"])
    y[50] = np.nan
    bad = {**x, "y": to_disk(tmp_path / "bad", y)}
    with pytest.raises(bbvi.NonFiniteError, match=r"Data 'y' holds 1 entries that are NaN"):
        run(bad)


@pytest.mark.usefixtures("small_feeds")
def test_arrays_in_memory_beside_those_on_disk(x, key):
    mixed = {"y": jnp.asarray(x["y"]), "f": x["f"], "sd": 0.5}
    source = stored(mixed, key)
    for batch, numbers in batches_of(source, range(6)):
        np.testing.assert_array_equal(batch["y"], x["y"][np.asarray(numbers)])
        np.testing.assert_array_equal(batch["f"], x["f"][np.asarray(numbers)])
        assert float(batch["sd"]) == 0.5
    assert_same(run(mixed).params, run(x).params)


@pytest.mark.parametrize("is_double", [False, True])
def test_numbers_have_the_precision_of_jax(tmp_path, key, is_double):
    """Also in the reading thread, which does not see the caller's setting."""
    values = np.random.default_rng(0).normal(size=(N, 2))
    x = {"y": to_disk(tmp_path / "y", values[:, 0].copy()), "f": to_disk(tmp_path / "f", values)}
    with jax.enable_x64(is_double), stored(x, key) as source:
        for step in (0, EPOCH):
            feed, _ = source.feed(step, 1)
            batch, rows = source.batching.take(feed, step)
            wanted = values[np.asarray(rows)].astype(np.float64 if is_double else np.float32)
            assert batch["f"].dtype == wanted.dtype
            np.testing.assert_array_equal(batch["f"], wanted)


def test_without_batches_files_are_loaded(x):
    result = run(x, batch_size=None, num_steps=3)
    assert isinstance(result.x["f"], jax.Array)
    assert result.batching is None


def test_bad_data(x, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size must be 2 to 103, the rows of x, got 104"):
        run(x, batch_size=104)
    short = to_disk(tmp_path / "short", np.zeros(7, np.float32))
    with pytest.raises(ValueError, match=r"share one leading axis, .* \{'f': 103, 'y': 7\}"):
        run({**x, "y": short})
    with pytest.raises(TypeError, match=r"leaf 'y' of x must be an array of numbers, got str"):
        run({**x, "y": "label"})
    with pytest.raises(TypeError, match=r"x must be arrays, got <generator .* bbvi.Loader\("):
        run(iter(x[name] for name in x))
    words = np.memmap(tmp_path / "y", "S4", "r")
    with pytest.raises(TypeError, match=r"leaf 'y' of x must be an array of numbers, got dtype"):
        run({"y": words, "f": x["f"]})
