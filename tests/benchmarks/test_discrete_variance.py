import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbvi.testing import check_mean
from benchmarks import discrete_variance
from models import digits_vae


def replicates(rng, bias=0.0):
    """Twenty batches of 100 gradients for 5 images of 3 latents, of variances 1, 4 and 9."""
    exact = np.full((5, 3), 2.0)
    draws = exact + bias + rng.normal(size=(20, 100, 5, 3)) * [1.0, 2.0, 3.0]
    return draws.var(axis=1, ddof=1), draws.mean(axis=1), 100, exact


def test_summary_finds_variance_and_no_bias():
    found = discrete_variance.summary(*replicates(np.random.default_rng(0)))
    assert abs(found["variance"] - 14.0) < 4.0 * found["variance_se"] < 1.0
    # 15 variances of mean 14 / 3 over 2000 replicates, against 15 squares of 2.
    np.testing.assert_allclose(found["relative_noise"], np.sqrt(14 / 3 / 2000) / 2, rtol=0.05)
    assert found["relative_bias"] < found["relative_noise"]


def test_summary_finds_bias():
    found = discrete_variance.summary(*replicates(np.random.default_rng(0), bias=0.5))
    np.testing.assert_allclose(found["relative_bias"], 0.25, atol=0.03)
    assert found["relative_bias"] > 5.0 * found["relative_noise"]


@pytest.mark.parametrize("row", discrete_variance.ROWS, ids=lambda row: row.name)
def test_estimators_accept_the_model(row):
    x, theta = digits_vae.data(50), digits_vae.model_params()
    problem = discrete_variance.problem()
    params = jax.eval_shape(lambda key: problem.init(key, x, theta), jax.random.key(0))
    row.estimator.validate(problem, params, x)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_enumeration_gives_the_exact_gradient():
    x, at = discrete_variance.points()
    (row,) = (row for row in discrete_variance.ROWS if row.name == "enumeration")
    for params in at.values():
        exact = discrete_variance.exact_gradient(params, x)
        _, means = discrete_variance.replicated(
            row.estimator, params, x, steps=1, batches=1, size=2
        )
        np.testing.assert_allclose(means[0], exact, atol=5e-4)  # float32
        assert np.abs(exact).max() > 0.05


def exact_score_function_variance(params, x):
    """Of one draw without baseline, mean over images: by all values of the latents."""
    logits = discrete_variance.logits_of(params)
    values = jnp.asarray(digits_vae.all_values(), float)
    log_q = logits @ values.T - jax.nn.softplus(logits).sum(1, keepdims=True)
    signal = digits_vae.log_joints(x, params.model) - log_q
    scores = values[None] - jax.nn.sigmoid(logits)[:, None]
    first = jnp.einsum("ns,ns,nsd->nd", jnp.exp(log_q), signal, scores)
    second = jnp.einsum("ns,ns,nsd->nd", jnp.exp(log_q), signal**2, scores**2)
    return float((second - first**2).sum(1).mean())


@pytest.mark.usefixtures("optimized")
def test_variance_of_the_score_function_is_the_exact_one():
    """Constants of the model count for every image alike: 35 times as much if for one of them."""
    x, at = discrete_variance.points()
    (row,) = (row for row in discrete_variance.ROWS if row.name == "REINFORCE")
    for params in at.values():
        variances, _ = discrete_variance.replicated(
            row.estimator, params, x, steps=1, batches=20, size=50
        )
        found = np.asarray(variances).sum(axis=2).mean(axis=1)
        exact = exact_score_function_variance(params, x) / row.estimator.num_samples
        error = found.std(ddof=1) / np.sqrt(len(found))
        assert abs(found.mean() - exact) < 4.5 * error < 0.3 * exact


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_gradients_of_images_are_unbiased_row_by_row():
    x, at = discrete_variance.points()
    (row,) = (row for row in discrete_variance.ROWS if row.name == "leave-one-out")
    _, means = discrete_variance.replicated(row.estimator, at[0], x, steps=1, batches=200, size=20)
    exact = discrete_variance.exact_gradient(at[0], x)
    check_mean(np.asarray(means).reshape(200, -1), exact.reshape(-1), power=0.5)


@pytest.mark.slow
def test_quick_run(tmp_path):
    out = tmp_path / "discrete.json"
    options = ["--quick", "--out", str(out), "--only", "leave-one-out", "--only", "REINFORCE"]
    discrete_variance.main(options)
    cases = {case["case"]: case for case in json.loads(out.read_text())["cases"]}
    for step in ("0", "50", "1000"):
        plain, baseline = (cases[n]["points"][step] for n in ("REINFORCE", "leave-one-out"))
        assert plain["variance"] > 20.0 * baseline["variance"]
    assert "| leave-one-out | 4 | 0 |" in out.with_suffix(".md").read_text()
