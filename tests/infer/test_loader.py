"""Loaders: what they may be, what they may not give, and fits from them."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.infer import streams

N, B = 60, 10
RNG = np.random.default_rng(0)
Y = RNG.normal(size=N).astype(np.float32)
SHARED = bbvi.MeanField({"w": bbvi.Normal()})
EFFECTS = bbvi.Product(SHARED, bbvi.Local({"u": bbvi.Normal((N,))}))


def log_joint(x, z):
    loc, total = z["w"], norm.logpdf(z["w"])
    if "u" in z:
        total += norm.logpdf(z["u"]).sum()
        loc += z["u"]
    return total + norm.logpdf(x["y"], loc, 0.5).sum()


def batch(rows):
    return {"y": Y[rows], "row": np.asarray(rows)}


IN_ORDER = [batch(np.arange(first, first + B)) for first in range(0, N, B)]


class Shuffled:
    """As a ``DataLoader``: can be iterated over again, in another order."""

    def __init__(self):
        self.epoch, self.given = 0, []

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(N)
        self.epoch += 1
        for rows in order.reshape(-1, B):
            self.given.append(rows)
            yield batch(rows)


def run(batches, guide=SHARED, num_data=N, rows=None, **options):
    chosen = {"num_steps": 20, "progress": False, "optimizer": optax.adam(0.1)} | options
    loader = bbvi.Loader(batches, num_data=num_data, rows=rows)
    return bbvi.fit(log_joint, guide, loader, key=jax.random.key(3), **chosen)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    np.testing.assert_array_equal(a.history.loss, b.history.loss)


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert [t for t in threading.enumerate() if t.name.startswith("bbvi-read")] == []


@pytest.mark.parametrize("guide", [SHARED, EFFECTS], ids=["global", "free"])
def test_a_fit_is_that_of_data_on_the_device_in_the_same_order(guide, monkeypatch):
    loader = Shuffled()
    loaded = run(loader, guide, rows="row")
    order = jnp.asarray(np.concatenate(loader.given[:24]))
    monkeypatch.setattr("bbvi.infer.batching._orders", lambda *_: order)
    monkeypatch.setattr("bbvi.infer.batching.MAX_EPOCHS", 4)
    resident = bbvi.fit(
        log_joint,
        guide,
        batch(jnp.arange(N)),
        key=jax.random.key(3),
        batch_size=B,
        num_steps=20,
        progress=False,
        optimizer=optax.adam(0.1),
    )
    # To rounding: the programs differ in how they get at a batch.
    np.testing.assert_allclose(loaded.history.loss, resident.history.loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        loaded.params,
        resident.params,
    )


def test_epochs_and_kinds_of_iterables():
    once = run(IN_ORDER, num_steps=None, num_epochs=4)
    assert int(once.state.step) == 24
    assert_same(run(lambda: iter(IN_ORDER), num_steps=24), once)
    assert_same(run(tuple(IN_ORDER), num_steps=24), once)
    assert_same(run((b for b in 4 * IN_ORDER), num_steps=24), once)  # four epochs, once
    assert_same(
        run([{k: jnp.asarray(v) for k, v in b.items()} for b in IN_ORDER], num_steps=24), once
    )


def test_grain():
    grain = pytest.importorskip("grain")
    source = grain.MapDataset.source([batch(i) for i in range(N)])
    batches = source.seed(3).shuffle().batch(B, drop_remainder=True)
    rows = [b["row"] for b in batches]
    assert np.unique(rows).size == N
    result = run(batches, EFFECTS, rows="row", num_steps=24)
    again = run([batch(r) for r in rows], EFFECTS, rows="row", num_steps=24)
    assert_same(result, again)
    endless = run(batches.repeat(), EFFECTS, rows="row", num_steps=24)
    assert np.isfinite(endless.history.loss).all()
    with_workers = grain.DataLoader(
        data_source=[batch(i) for i in range(N)],
        sampler=grain.samplers.IndexSampler(N, num_epochs=1, shuffle=True, seed=1),
        operations=[grain.transforms.Batch(B)],
    )
    assert int(run(with_workers, num_epochs=3, num_steps=None).state.step) == 18


def test_a_short_last_batch_is_left_out():
    whole = run(IN_ORDER[:5], num_data=53)
    short = run([*IN_ORDER[:5], batch(np.arange(50, 53))], num_data=53)
    assert_same(short, whole)


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_how_batches_are_stacked_does_not_matter(seconds, monkeypatch):
    """A slow loader's are handed on one by one."""
    whole = run(Shuffled(), EFFECTS, rows="row")
    monkeypatch.setattr(streams, "READ_SECONDS", seconds)
    monkeypatch.setattr(streams, "FEED_BYTES", 3 * B * 12)
    assert_same(run(Shuffled(), EFFECTS, rows="row"), whole)


def test_resumed_in_the_middle_of_an_epoch_is_uninterrupted():
    whole = run(Shuffled(), EFFECTS, rows="row")
    first = run(Shuffled(), EFFECTS, rows="row", num_steps=9)
    rest = run(Shuffled(), EFFECTS, rows="row", num_steps=11, init_state=first.state)
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)
    joined = np.concatenate([first.history.loss, rest.history.loss])
    np.testing.assert_array_equal(joined, whole.history.loss)


def test_batches_are_read_while_steps_are_taken():
    threads = []

    def batches():
        for b in IN_ORDER:
            threads.append(threading.current_thread().name)
            yield b

    run(batches, num_steps=24)
    assert threads[0] == "MainThread"
    assert threads[-1].startswith("bbvi-read")


def test_the_loader_is_let_go():
    ended = []

    def batches():
        try:
            while True:
                yield from IN_ORDER
        finally:
            ended.append(True)

    run(batches)
    assert ended == [True]


def test_result():
    result = run(Shuffled(), EFFECTS, rows="row", num_steps=30)
    assert isinstance(result.x, bbvi.Loader)
    text = repr(result)
    assert "ELBO     -" in text
    assert "random batches" in text
    assert "k-hat    not known" in text
    elbo = result.elbo(jax.random.key(0), 600)
    whole = result.at(batch(np.arange(N)), rows=np.arange(N)).elbo(jax.random.key(1), 4000)
    assert abs(elbo.value - whole.value) < 5 * np.hypot(elbo.standard_error, whole.standard_error)
    z = result.sample(jax.random.key(0), 5)
    assert z["u"].shape == (5, N)
    with pytest.raises(ValueError, match="component_log_weights is of all rows of the data"):
        result.component_log_weights(jax.random.key(0), 5)


def test_verdict_where_no_batches_are_left():
    result = run((b for b in IN_ORDER), num_steps=6)
    assert "ELBO     not known: the loader has no batch 0" in repr(result)
    assert "run      6 steps (1 epochs)" in repr(result)


def replaced(index, **leaves):
    return [*IN_ORDER[:index], {**IN_ORDER[index], **leaves}, *IN_ORDER[index + 1 :]]


UNLIKE = {
    "structure": (
        [*IN_ORDER[:3], [Y[:B]]],
        r"batch 3 .* holds \{0: float32\[10\]\}, but the first",
    ),
    "dtype": (replaced(3, y=np.zeros(B)), r"batch 3 .* holds \{row: int64\[10\], y: float64\[10\]"),
    "shape": (replaced(3, y=np.zeros((B, 2), np.float32)), r"batch 3 .* y: float32\[10, 2\]\}"),
    "rows": (replaced(3, y=Y[:7]), r"batch 3 .* y: float32\[7\]\}"),
    "short": (
        [*IN_ORDER[:3], batch(np.arange(7)), *IN_ORDER[4:]],
        r"batch 3 of the loader has 7 rows, but the first has 10",
    ),
    "long": ([*IN_ORDER[:5], batch(np.arange(20))], r"batch 5 of the loader has 20 rows"),
    "used up": ((b for b in IN_ORDER), r"no batch 6: iterating over generator gave none"),
    "few": (IN_ORDER[:4], r"ended before batch 4, after 40 rows, but num_data=60"),
    "many": (3 * IN_ORDER, r"ended before batch 18, after 180 rows, but num_data=60"),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_a_batch_unlike_the_first_ends_the_run_at_its_step(kind):
    batches, message = UNLIKE[kind]
    with pytest.raises(ValueError, match=message) as info:
        run(batches)
    step = {"used up": 6, "few": 4, "many": 18, "long": 5}.get(kind, 3)
    assert int(info.value.result.state.step) == step
    assert info.value.result.status == "failed"


def test_an_error_of_the_loader_itself():
    def batches():
        yield from IN_ORDER[:4]
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost") as info:
        run(batches)
    assert int(info.value.result.state.step) == 4
    assert "The loader raised this at batch 4." in info.value.__notes__


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.arange(B) + 55, r"batch 1 .* in 'row' the row numbers 55 to 64, 10 different .* = 59"),
        (np.arange(B) // 2, r"row numbers 0 to 4, 5 different ones in 10 rows"),
        (np.arange(B) - 1, r"row numbers -1 to 8"),
    ],
)
def test_row_numbers_are_checked(numbers, message):
    with pytest.raises(ValueError, match=message):
        run(replaced(1, row=numbers), EFFECTS, rows="row")


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, r"the loader has no batch 0: iterating over list gave none"),
        (IN_ORDER, {"batch_size": 5}, r"batch_size=5, but a Loader's batches have"),
        (IN_ORDER, {"num_data": 9}, r"has 10 rows; expected 2 to num_data=9"),
        (IN_ORDER, {"guide": EFFECTS}, r"each of the 60 rows: .* Loader\(..., rows='number'\)"),
        (IN_ORDER, {"rows": "index"}, r"rows='index' must name a leaf .* holds \{row: int64\[10\]"),
        (IN_ORDER, {"rows": "y"}, r"rows='y' must name a leaf with the number of each row"),
        ([{"y": Y[:B], "sd": np.float32(1)}], {}, r"as many rows, .* \{'sd': None, 'y': 10\}"),
        ([{"y": Y[:B], "f": Y[:4]}], {}, r"as many rows, .* \{'f': 4, 'y': 10\}"),
        ([{}], {}, r"as many rows, on the leading axis, got sizes \{\}"),
    ],
)
def test_bad_loaders(batches, options, message):
    with pytest.raises(ValueError, match=message):
        run(batches, **options)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"batches must be what can be iterated over, .* got 3"):
        bbvi.Loader(3, num_data=10)
    for count in (1, 10.0, True):
        with pytest.raises(ValueError, match=f"num_data must be an int >= 2, got {count!r}"):
            bbvi.Loader(IN_ORDER, num_data=count)
    with pytest.raises(
        TypeError, match=r"leaf 'y' of x must be an array of numbers, got dtype <U1"
    ):
        run([{"y": np.array(["a"] * B)}])


def test_a_slow_loader_can_be_interrupted():
    def batches():
        for b in IN_ORDER:
            time.sleep(0.01)
            yield b

    def interrupt(info):
        raise KeyboardInterrupt

    assert run(batches, callbacks=[interrupt], num_steps=1000).status == "interrupted"
