import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from benchmarks import binary_vae_speed as benchmark
from models import binary_vae

ESTIMATOR = bbvi.ScoreFunction(2, signal="component")
TINY = benchmark.Run("leave-one-out", ESTIMATOR, "linear", batch_size=20, num_images=20)


@pytest.mark.parametrize("network", ["linear", pytest.param("nonlinear", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("optimized")
def test_step_by_hand_is_the_same_step(network):
    """After one step Adam's first moments are the gradient, times a constant."""
    run = dataclasses.replace(TINY, network=network)
    images = jnp.asarray(binary_vae.images("train")[:20])
    mean = jnp.asarray(binary_vae.train_mean())
    ours, by_hand = (
        train(run, benchmark.start(run), images, mean, jnp.int32(0)).opt_state[0].mu
        for train in (benchmark.train, benchmark.train_by_hand)
    )
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(by_hand))
    assert scale > 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), ours, by_hand
    )


@pytest.mark.slow
def test_timing_reports_both():
    found = benchmark.time_step("linear", 2, steps=2, rounds=2)
    assert set(found["cpu_ms_per_step"]) == {"bbvi", "by hand"}
    assert 0.3 < found["ratio"]["median"] < 5.0
