import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import pytest

import bbvi
from benchmarks import binary_vae as benchmark
from models import binary_vae

TINY = benchmark.Run(
    "leave-one-out",
    bbvi.ScoreFunction(2, signal="component"),
    "linear",
    batch_size=20,
    num_images=200,
)


@pytest.fixture
def arguments():
    images = jnp.asarray(binary_vae.images("train")[:200])
    return images, jnp.asarray(binary_vae.train_mean()), jnp.int32(0)


def test_elbo_of_a_decoder_without_weights_is_closed_form(arguments):
    images, mean, _ = arguments
    params = benchmark.start(TINY).params
    decoder = params.model["decoders"][0]["params"]["Dense_0"]
    decoder["kernel"] = jnp.zeros_like(decoder["kernel"])
    params.model["prior"] = jnp.linspace(-1.0, 1.0, 200)
    elbo, error = benchmark.evaluate(TINY, params, images, mean)

    x = binary_vae.batch(images)
    q = jax.nn.sigmoid(TINY.problem(200).guide.logits(params.guide, x)["z1"])
    p = jax.nn.sigmoid(params.model["prior"])[None, :]
    divergence = jnp.sum(q * jnp.log(q / p) + (1 - q) * jnp.log((1 - q) / (1 - p)), axis=1)
    bias = decoder["bias"][None, :]
    log_likelihood = jnp.sum(x["pixels"] * bias - jax.nn.softplus(bias), axis=1)
    exact = jnp.mean(log_likelihood - divergence)
    assert 0.01 < error < 1.0
    assert abs(elbo - exact) < 5.0 * error


def test_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = benchmark.follow(TINY, tmp_path / "whole", seconds=100.0, steps=20)
    for steps in (10, 20):
        resumed = benchmark.follow(TINY, tmp_path / "parts", seconds=100.0, steps=steps)
    assert [point.step for point in resumed] == [0, 10, 20]
    assert [p.elbo for p in resumed] == [p.elbo for p in whole]
    assert whole[2].elbo > whole[0].elbo + 2.0
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(whole))

    result = json.loads((tmp_path / "parts" / "linear-leave-one-out-0.json").read_text())
    assert [point["evaluations"] for point in result["curve"]] == [0, 20, 40]
    with pytest.raises(ValueError, match=r"is of .*use another --out"):
        benchmark.follow(
            dataclasses.replace(TINY, learning_rate=0.1), tmp_path / "parts", 1.0, steps=30
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark.ESTIMATORS)
@pytest.mark.usefixtures("optimized")
def test_every_estimator_climbs(name, tmp_path):
    options = ["--num-images", "400", "--batch-size", "20", "--steps", "20", "--seconds", "60"]
    benchmark.main(["--estimator", name, "--out", str(tmp_path), *options])
    (path,) = tmp_path.glob("*.json")
    curve = json.loads(path.read_text())["curve"]
    assert curve[-1]["elbo"] > curve[0]["elbo"] + 2.0
    assert (tmp_path / "linear.png").stat().st_size > 10_000
