"""RODEO, by exact enumeration of the draws."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.base import Cost
from bbvi.estimators.coefficient import Coefficient
from bbvi.estimators.discrete import discrete_model
from bbvi.estimators.first_order import uniform_draws
from bbvi.estimators.rodeo import Scales, apply_network, other_draws, stein_control
from bbvi.testing import check_estimator
from tests.estimators.coupled import (
    batch_problem,
    check_precision,
    check_steps,
    exact_moments,
    nested_problem,
)
from tests.estimators.first_order import (
    adapt,
    check_refused,
    curved_problem,
    exact_gradient,
    gradients_at,
    uniform_quadrature,
)
from tests.estimators.oracles import signal_problem, tensor_moments

SCALES = Scales(*jnp.array([-0.4, 1.3, 0.7, 0.9]))


def learned_state(estimator, problem, params, x=None, multiple=0.6):
    """A state as training might leave it: every parameter of the network is at work."""
    state = estimator.init(problem, params, x)
    flat, unravel = ravel_pytree(state.network)
    weight = jnp.ones(())
    return state._replace(
        coefficients={
            name: Coefficient(jnp.asarray(-multiple), weight, jnp.zeros(()))
            for name in state.coefficients
        },
        network=unravel(flat + 0.3 * jax.random.normal(jax.random.key(7), flat.shape)),
        moments=state.moments._replace(total=jnp.stack(SCALES), weight=weight),
    )


def moments_at(estimator, state, problem, params, x=None):
    """Exact mean and variance of the gradient from a given state."""
    rules, to_noise = uniform_quadrature(estimator, problem, params, x)

    def gradient(u):
        return estimator.estimate(to_noise(u), problem, params, x, state)[0].grads

    return tensor_moments(gradient, rules)


def logit_variance(estimator, state, problem, params):
    return moments_at(estimator, state, problem, params)[1][:3].sum()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("make", "num_samples"),
    [
        (lambda: (*curved_problem(), None), 2),
        (batch_problem, 2),
        (lambda: (*nested_problem(), None), 2),
        (lambda: (*nested_problem(), None), 3),
    ],
    ids=["curved", "batch", "nested", "three-draws"],
)
def test_unbiased_exactly(make, num_samples):
    problem, params, x = make()
    estimator = bbvi.Rodeo(num_samples)
    start = estimator.init(problem, params, x)
    state = learned_state(estimator, problem, params, x)
    mean, variance = moments_at(estimator, state, problem, params, x)
    np.testing.assert_allclose(mean, exact_gradient(problem, params, x), rtol=0, atol=1e-11)
    plain = moments_at(estimator, start, problem, params, x)[1]
    assert abs(np.log(variance[:3].sum() / plain[:3].sum())) > 0.01  # the network is at work


def test_unbiased():
    check_estimator(bbvi.Rodeo(4))


@pytest.mark.usefixtures("x64")
def test_control_variate_is_the_operator_written_out():
    """Flip by flip; h s has as many entries as there are logits."""
    problem, params = curved_problem()
    estimator = bbvi.Rodeo(3)
    state = learned_state(estimator, problem, params)
    logits = problem.guide.logits(params.guide, None)
    model = discrete_model(estimator, problem, params, None)
    noise = estimator.draw(jax.random.key(3), problem)
    draws = uniform_draws(model, logits, noise, with_slopes=True)
    others = other_draws(model, draws)
    got = stein_control(state.network, others, SCALES, model, draws)["b"]

    b, f, slopes = np.asarray(draws.values["b"]), draws.log_weights[:, 0], draws.slopes["b"]
    theta = np.asarray(jax.nn.sigmoid(logits["b"]))
    num_samples = len(b)

    def h(k, at):
        rest = [j for j in range(num_samples) if j != k]
        signal = np.mean([f[j] for j in rest])
        change = np.mean([slopes[j] @ (at - b[j]) for j in rest])
        outputs = apply_network(
            state.network,
            jnp.asarray((signal - SCALES.center) / SCALES.spread),
            jnp.asarray(change / SCALES.change),
        )
        return SCALES.noise * np.asarray(outputs)

    def operator(function, at):
        total = 0.0
        for i in range(3):
            flipped = at.copy()
            flipped[i] = 1 - at[i]
            rate = theta[i] if at[i] == 0 else 1 - theta[i]
            total = total + rate * (function(flipped) - function(at))
        return total

    baselines = [operator(lambda at, k=k: h(k, at)[0], b[k]) for k in range(num_samples)]
    wanted = np.zeros(3)
    for k in range(num_samples):
        baseline = np.mean([baselines[j] for j in range(num_samples) if j != k])
        wanted -= baseline * (b[k] - theta) / num_samples
        wanted += operator(lambda at, k=k: h(k, at)[1] * (at - theta), b[k]) / num_samples
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_at_the_start_it_is_leave_one_out():
    problem, params = curved_problem()
    state = bbvi.Rodeo(2).init(problem, params, None)
    _, variance = moments_at(bbvi.Rodeo(2), state, problem, params)
    _, plain = exact_moments(bbvi.DoubleCv(2), uniform_quadrature, problem, params)
    np.testing.assert_allclose(variance, plain, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_learns_where_a_taylor_expansion_is_worse_than_nothing():
    problem, params = curved_problem()
    estimator = bbvi.Rodeo(2)
    none = logit_variance(estimator, estimator.init(problem, params, None), problem, params)
    _, taylor = exact_moments(bbvi.DoubleCv(2), uniform_quadrature, problem, params, alpha=-1.0)
    assert taylor[:3].sum() > 1.5 * none
    learned = adapt(estimator, problem, params)
    assert logit_variance(estimator, learned, problem, params) < 0.6 * none


@pytest.mark.usefixtures("x64")
def test_coefficient_gives_up_a_bad_network():
    problem, params = curved_problem()
    estimator = bbvi.Rodeo(2)
    bad = learned_state(estimator, problem, params, multiple=1.0)
    network = {**bad.network, "output": 5 * bad.network["output"]}
    bad = bad._replace(network=network)
    none = logit_variance(estimator, estimator.init(problem, params, None), problem, params)
    assert logit_variance(estimator, bad, problem, params) > 2 * none

    def step(state, key):
        noise = estimator.draw(key, problem)
        coefficients = estimator.estimate(noise, problem, params, None, state)[1].coefficients
        return state._replace(coefficients=coefficients), None  # the network stays bad

    keys = jax.random.split(jax.random.key(1), 1000)
    after = jax.jit(lambda: jax.lax.scan(step, bad, keys)[0])()
    assert logit_variance(estimator, after, problem, params) < 1.03 * none


@pytest.mark.usefixtures("x64")
def test_two_hundred_latents():
    """On a parabola at theta = 1/2 slopes tell next to nothing: a Taylor expansion saves 0.2%.

    What the network learns there is f from its slope, and comes near the exact mean as baseline.
    """
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((200,))})
    start = guide.init(jax.random.key(0), None)
    start = start._replace(families={"b": {"logits": jnp.zeros(200)}})
    problem, params = signal_problem(
        lambda z: jnp.sqrt(jnp.mean((z["b"] - 0.499) ** 2)) ** 2, guide, start
    )
    estimator = bbvi.Rodeo(2)
    gradients = gradients_at(estimator, problem, params, adapt(estimator, problem, params), 2000)
    assert np.var(gradients, axis=0).mean() < 0.7 * 1.25e-9


@pytest.mark.usefixtures("x64")
def test_units_of_the_log_joint_do_not_matter():
    """Neither a constant nor a factor changes what is learned."""

    def last(factor, constant):
        guide = bbvi.MeanField({"b": bbvi.Bernoulli((3,))})
        problem, params = signal_problem(
            lambda z: factor * jnp.sin(1.0 * z["b"] @ jnp.array([0.5, -1.0, 2.0])) + constant,
            guide,
            guide.init(jax.random.key(0), None),
        )
        state = adapt(bbvi.Rodeo(2), problem, params, steps=30)
        return moments_at(bbvi.Rodeo(2), state, problem, params)[1]

    reference = last(1.0, 0.0)
    np.testing.assert_allclose(last(1e-4, 0.0), 1e-8 * reference, rtol=1e-5)
    np.testing.assert_allclose(last(1.0, 100.0), reference, rtol=1e-5)


def test_one_huge_signal_does_not_spoil_the_state(key):
    problem, params = curved_problem(curvature=1e25)
    estimator = bbvi.Rodeo(2)
    state = estimator.init(problem, params, None)
    for step_key in jax.random.split(key, 3):
        noise = estimator.draw(step_key, problem)
        estimate, state = estimator.estimate(noise, problem, params, None, state)
    assert float(jnp.abs(estimate.log_weights).max()) > 1e20  # its square is not a float32
    for leaf in jax.tree.leaves(state):
        assert bool(jnp.isfinite(leaf).all())


def test_steps():
    for problem in (batch_problem(), nested_problem()):
        check_steps(bbvi.Rodeo(2), *problem)
    check_precision(bbvi.Rodeo(3), batch_problem)


def test_extreme_logits(key):
    """One value is certain: nothing is left to estimate, and nothing overflows."""
    problem, params = curved_problem(logits=(200.0, -200.0, 0.3))
    estimator = bbvi.Rodeo(4)
    state = learned_state(estimator, problem, params)
    noise = estimator.draw(key, problem)
    grads = estimator.estimate(noise, problem, params, None, state)[0].grads
    logits = grads.guide.families["b"]["logits"]
    np.testing.assert_allclose(logits[:2], 0.0, rtol=0, atol=1e-30)
    assert float(jnp.abs(logits[2])) > 0


def test_cost():
    assert bbvi.Rodeo(3).cost == Cost(values=0, gradients=3)


def test_wrong_configuration():
    with pytest.raises(ValueError, match=re.escape("num_samples must be at least 2, got 1")):
        bbvi.Rodeo(1)


def test_refused_problems():
    check_refused(bbvi.Rodeo(2))
