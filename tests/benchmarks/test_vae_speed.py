import jax
import numpy as np
import pytest

from benchmarks import vae_speed as benchmark


@pytest.mark.parametrize("name", benchmark.CONTESTANTS)
def test_contestants_train_the_same_model(name):
    """The same start and the same bound: losses of a first epoch agree up to draws."""
    # NumPyro draws an order of its plate from a key it has used, and relies on broadcasting.
    with jax.debug_key_reuse(False), jax.numpy_rank_promotion("allow"):
        losses = np.asarray(benchmark.contestant(name, "200", 50, 1000)(2, 0)) / 1000
    assert len(losses) == 40
    # They start within 15 nats of each other, by the seeds of their networks.
    np.testing.assert_allclose(losses[:3].mean(), 220.0, atol=15.0)
    np.testing.assert_allclose(losses[-10:].mean(), 197.0, atol=8.0)


def test_table_has_a_row_for_each():
    spread = {"median": 1.0, "q1": 0.9, "q3": 1.1, "min": 0.8}
    each = dict.fromkeys(benchmark.CONTESTANTS, spread)
    numbers = dict.fromkeys(benchmark.CONTESTANTS, 500.0)
    case = {
        "network": "200",
        "batch_size": 128,
        "seconds_per_epoch": each,
        "ratio_to_hand": each,
        "peak_mib": numbers,
        "last_epoch_loss_per_image": numbers,
    }
    rows = benchmark.table([case]).splitlines()
    assert len(rows) == 5
    assert len({row.count("|") for row in rows}) == 1
