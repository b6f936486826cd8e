"""DisARM: antithetic pairs of Bernoulli draws, by exact integration over their uniforms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi.estimators.base import Cost
from bbvi.testing import check_estimator, replicate_gradients
from tests.estimators.coupled import (
    NEAR,
    batch_problem,
    check_learns,
    check_precision,
    check_steps,
    check_unbiased,
    coupled_problem,
    exact_moments,
    nested_problem,
    pair_quadrature,
)
from tests.estimators.oracles import (
    LEVEL,
    THETA,
    bernoulli_signal_problem,
    check_variance,
    estimate,
    signal_problem,
)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("signal", ["adaptive", "component"])
def test_unbiased_exactly(signal):
    check_unbiased(bbvi.DisArm(2, signal), pair_quadrature)


@pytest.mark.parametrize("num_samples", [2, 6])
def test_unbiased(num_samples):
    check_estimator(bbvi.DisArm(num_samples))


@pytest.mark.usefixtures("x64")
def test_variance_of_a_pair():
    """Row by row, for S/2 pairs: (1 - 2t)^2 / 2 max^2 min (1 - 2 min) over S/2."""
    problem, params = bernoulli_signal_problem()
    low, high = min(THETA, 1 - THETA), max(THETA, 1 - THETA)
    exact = (1 - 2 * LEVEL) ** 2 / 2 * high**2 * low * (1 - 2 * low)
    assert round(exact, 6) == 2.94e-4
    for num_pairs in (1, 2):
        estimator = bbvi.DisArm(2 * num_pairs)
        _, variance = exact_moments(estimator, pair_quadrature, problem, params)
        np.testing.assert_allclose(variance, exact / num_pairs, rtol=1e-6)


def mean_square_problem(theta, num_latents, *, is_split):
    """f = mean_j (b_j - 0.499)^2 of Bernoullis; a root and a square hide that it is a sum."""

    def f(z):
        mean = jnp.mean((z["b"] - 0.499) ** 2)
        return mean if is_split else jnp.sqrt(mean) ** 2

    guide = bbvi.MeanField({"b": bbvi.Bernoulli((num_latents,))})
    start = guide.init(jax.random.key(0), None)
    logits = jnp.full(num_latents, np.log(theta / (1 - theta)))
    return signal_problem(f, guide, start._replace(families={"b": {"logits": logits}}))


def mean_square_variance(theta, num_latents):
    low, high = min(theta, 1 - theta), max(theta, 1 - theta)
    e = 0.002 / (2 * num_latents)
    return e**2 * high**2 * (2 * low * (1 - 2 * low) + (num_latents - 1) * 4 * low**2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("theta", [0.2, 0.5, 0.7])
def test_variance_with_other_latents_in_the_signal(theta):
    problem, params = mean_square_problem(theta, 4, is_split=False)
    estimator = bbvi.DisArm(2, "component")
    _, variance = exact_moments(estimator, pair_quadrature, problem, params)
    np.testing.assert_allclose(variance, mean_square_variance(theta, 4), rtol=1e-6)


@pytest.mark.parametrize(("theta", "published"), [(0.5, 1.2438e-9), (0.2, 5.133e-10)])
@pytest.mark.usefixtures("x64")
def test_variance_with_two_hundred_latents(theta, published):
    np.testing.assert_allclose(mean_square_variance(theta, 200), published, rtol=1e-4)
    problem, params = mean_square_problem(theta, 200, is_split=False)
    estimator = bbvi.DisArm(2, "component")
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 20_000)
    check_variance(gradients[:, :3], np.full(3, published))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("signal", ["adaptive", "component"])
def test_components_have_their_own_signals(signal):
    """Latents that share no term add nothing to each other's variance."""
    problem, params = mean_square_problem(0.2, 4, is_split=True)
    _, variance = exact_moments(bbvi.DisArm(2, signal), pair_quadrature, problem, params)
    np.testing.assert_allclose(variance, mean_square_variance(0.2, 1) / 16, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_no_variance_at_one_half_alone():
    """At theta = 1/2 the two draws always differ."""
    problem, params = mean_square_problem(0.5, 4, is_split=True)
    _, variance = exact_moments(bbvi.DisArm(2), pair_quadrature, problem, params)
    np.testing.assert_allclose(variance, 0, atol=1e-30)


@pytest.mark.usefixtures("x64")
def test_learned_coefficient():
    check_learns(bbvi.DisArm(2), pair_quadrature)


def test_component_signal_learns_nothing(key):
    problem, params = coupled_problem(NEAR)
    estimator = bbvi.DisArm(2, "component")
    state = estimator.init(problem, params, None)
    noise = estimator.draw(key, problem)
    _, after = estimator.estimate(noise, problem, params, None, state)
    assert after == state


def test_steps():
    check_steps(bbvi.DisArm(2), *batch_problem())
    check_steps(bbvi.DisArm(2), *nested_problem())
    check_precision(bbvi.DisArm(4), batch_problem)


def test_extreme_logits(key):
    """One value is certain: nothing is left to estimate, and nothing overflows."""
    problem, params = coupled_problem((200.0, -200.0, 0.3))
    estimator = bbvi.DisArm(4, "component")
    grads = estimate(estimator, problem, params, estimator.draw(key, problem)).grads
    logits = grads.guide.families["b"]["logits"]
    np.testing.assert_array_equal(logits[:2], 0.0)
    assert float(jnp.abs(logits[2])) > 0


def test_cost():
    assert bbvi.DisArm(6).cost == Cost(6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bbvi.DisArm(3), "DisArm draws pairs, so num_samples must be even, got 3"),
        (lambda: bbvi.DisArm(0), "num_samples must be an int >= 1, got 0"),
        (lambda: bbvi.DisArm(2, "full"), "signal must be 'adaptive' or 'component', got 'full'"),
    ],
)
def test_wrong_configuration(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def log_joint_of(name):
    return lambda x, z: jnp.sum(z[name] * 1.0)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            bbvi.Problem(log_joint_of("z"), bbvi.MeanField({"z": bbvi.Normal()})),
            "DisArm is for discrete latents, but site 'z' (Normal) is not one",
        ),
        (
            bbvi.Problem(log_joint_of("c"), bbvi.MeanField({"c": bbvi.Categorical(3)})),
            "DisArm is for Bernoulli sites, but site 'c' (Categorical) has 3 logits per entry",
        ),
        (
            bbvi.Problem(log_joint_of("b"), bbvi.MeanField({"b": bbvi.Bernoulli()}), bbvi.Iwae(2)),
            "DisArm estimates the gradient of bbvi.Elbo() only",
        ),
    ],
)
def test_refused_problems(problem, message):
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=re.escape(message)):
        bbvi.DisArm(2).validate(problem, params, None)
