"""The checks of a model against its guide and data, made before compiling."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.problem import check_problem, over_draws

GUIDE = bbvi.MeanField({"w": bbvi.Normal((2,)), "c": bbvi.Categorical(3)})


def both(z):
    return z["w"].sum() + 1.0 * z["c"]


def check(log_joint, x=None, model_params=None, guide=GUIDE):
    problem = bbvi.Problem(log_joint, guide)
    check_problem(problem, problem.init(jax.random.key(0), x, model_params), x)


@pytest.mark.parametrize(
    ("log_joint", "error", "message"),
    [
        (lambda x, z: z["w"] + z["c"], ValueError, r"must return a scalar.*got shape \(2,\)"),
        (lambda x, z: z["c"], TypeError, "floating-point scalar, got dtype int32"),
        (lambda x, z: z["c"] > 1, TypeError, "floating-point scalar, got dtype bool"),
        (lambda x, z: (both(z), both(z)), ValueError, "must return one scalar, got 2 arrays"),
        (lambda x, z: None, ValueError, "must return one scalar, got 0 arrays"),
        (lambda x, z: both(z) + z["tau"], ValueError, r"looks up 'tau'.*\{c: int32\[\], w: fl"),
        (lambda x, z: z["w"].sum(), ValueError, "log_joint never reads latent 'c'.*flat"),
        (lambda x, z: 0.0, ValueError, "log_joint never reads latent 'c', 'w'"),
        (
            lambda x, z: both(z) + z["w"] @ jnp.ones(3),
            ValueError,
            r"latents \{.*w: float32\[2\]\} and x \{\}:",
        ),
        (lambda x, z: both(z) + z.w, ValueError, "failed on one draw with latents.*attribute 'w'"),
        (lambda x: 0.0, ValueError, r"called as log_joint\(x, z\), but its signature is \(x\)"),
        (lambda x, z, theta: both(z), ValueError, "called as log_joint.*'theta'.*model_params"),
    ],
)
def test_wrong_models_are_refused(log_joint, error, message):
    with pytest.raises(error, match=message):
        check(log_joint)


def decides_in_python(x, z):
    if z["c"] == 1:
        return both(z)
    return -both(z)


@pytest.mark.parametrize(
    ("log_joint", "line"),
    [
        (decides_in_python, r'if z\["c"\] == 1:'),
        (lambda x, z: both(z) + np.exp(z["w"]).sum(), "np.exp"),
        (lambda x, z: both(z) + math.exp(z["w"][0]), "math.exp"),
        (lambda x, z: both(z) + sum(z["w"][k] for k in range(z["c"])), "range"),
        (lambda x, z: both(z) + [0.0, 1.0, 2.0][z["c"]], r"\[0.0, 1.0, 2.0\]"),
        (lambda x, z: both(z) + z["w"][z["w"] > 0].sum(), r'z\["w"\] > 0'),
    ],
)
def test_python_that_needs_values_is_told_the_line_and_the_cure(log_joint, line):
    message = rf"in Python at test_problem.py:\d+ \(`.*{line}.*`\)(.|\n)*jnp.where or jax.lax.cond"
    with pytest.raises(ValueError, match=message):
        check(log_joint)


def test_python_may_not_decide_on_data_either():
    with pytest.raises(ValueError, match=r"of data, in Python at test_problem\.py"):
        check(lambda x, z: both(z) if x.sum() > 0 else -both(z), jnp.ones(3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3)), r"data 'x' is empty \(shape \(0, 3\)\)"),
        ({"y": np.zeros(3), "n": [np.zeros(0)]}, r"data 'n.0' is empty"),
    ],
)
def test_empty_data_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        check(lambda x, z: both(z), x)


def test_statistics_of_batches_are_refused():
    """Flax returns them beside the parameters of a decoder."""

    def log_joint(x, z, theta):
        return -0.5 * (z["z"] - theta["params"]["w"]) ** 2

    theta = {"params": {"w": jnp.zeros(())}, "batch_stats": {"norm": {"mean": jnp.zeros(())}}}
    problem = bbvi.Problem(log_joint, bbvi.MeanField({"z": bbvi.Normal()}))
    params = problem.init(jax.random.key(0), None, theta)
    with pytest.raises(ValueError, match=r"model_params holds statistics.*batch_stats.norm.mean"):
        check_problem(problem, params, None)


def test_integer_parameters_are_refused():
    with pytest.raises(TypeError, match="model_params parameter 'n' has dtype int32"):
        check(lambda x, z, theta: both(z), None, {"a": jnp.ones(()), "n": jnp.array(3)})


def test_a_right_model_passes():
    check(lambda x, z: both(z) + x.sum(), jnp.ones(3))
    check(lambda x, z, theta: both(z) + theta, None, jnp.ones(()))


@pytest.mark.parametrize(
    ("function", "usable"),
    [
        (lambda w: w**2, True),
        (lambda w: jnp.where(w > 0, w, 2 * w), True),
        (jnp.round, False),
        (lambda w: jnp.where(w > 0, 1.0, 2.0), False),
        (jax.lax.stop_gradient, False),
        (lambda w: jax.lax.while_loop(lambda v: v < 10.0, lambda v: v + 1.0, w), False),
        (
            lambda w: jax.pure_callback(
                np.sin, jax.ShapeDtypeStruct((), w.dtype), w, vmap_method="expand_dims"
            ),
            False,
        ),
    ],
)
def test_pathwise_leaves(function, usable):
    guide = bbvi.MeanField({"w": bbvi.Normal(), "n": bbvi.Bernoulli()})
    problem = bbvi.Problem(lambda x, z: function(z["w"]) + 1.0 * z["n"], guide)
    params = problem.init(jax.random.key(0), None)
    assert problem.pathwise_leaves(params, None) == {"n": False, "w": usable}


def test_pathwise_leaves_are_told_apart():
    guide = bbvi.MeanField({"a": bbvi.Normal(), "b": bbvi.Normal()})
    problem = bbvi.Problem(lambda x, z: z["a"] ** 2 + jnp.round(z["b"]), guide)
    usable = problem.pathwise_leaves(problem.init(jax.random.key(0), None), None)
    assert usable == {"a": True, "b": False}


@pytest.mark.parametrize("size", [1, 3])
def test_over_draws_keeps_the_sample_axis(size):
    draws = {"a": jnp.arange(1.0 * size), "b": jnp.ones((size, 2))}
    values = over_draws(lambda z: z["a"] + z["b"].sum(), draws)
    np.testing.assert_allclose(values, np.arange(size) + 2.0)


@pytest.mark.parametrize("size", [1, 4])
def test_batched_calls_agree(size):
    guide = bbvi.MeanField({"w": bbvi.LogNormal((2,))})
    problem = bbvi.Problem(lambda x, z: norm.logpdf(z["w"], x).sum(), guide)
    params = problem.init(jax.random.key(0), 1.0)
    noise = problem.base_noise(jax.random.key(1), size)
    z, log_q = problem.sample_and_log_q(noise, params, 1.0)
    assert z["w"].shape == (size, 2)
    np.testing.assert_allclose(problem.sample(noise, params, 1.0)["w"], z["w"])
    np.testing.assert_allclose(problem.log_q(params, 1.0, z), log_q, rtol=1e-5)
    wanted = norm.logpdf(z["w"], 1.0).sum(axis=1)
    np.testing.assert_allclose(problem.log_p(params, 1.0, z), wanted, rtol=1e-6)


def test_problems_compare_by_value():
    def log_joint(x, z):
        return both(z)

    assert bbvi.Problem(log_joint, GUIDE) == bbvi.Problem(log_joint, GUIDE)
    assert hash(bbvi.Problem(log_joint, GUIDE)) == hash(bbvi.Problem(log_joint, GUIDE))
    assert bbvi.Problem(log_joint, GUIDE) != bbvi.Problem(log_joint, GUIDE, bbvi.Iwae(4))
