"""RELAX against enumeration, by quadrature over the uniforms of the draw and of its copy."""

import dataclasses
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.discrete import discrete_model
from bbvi.estimators.relax import component_entries
from bbvi.testing import check_mean, exact_bernoulli_gradient
from tests.estimators.categoricals import exact_gradient
from tests.estimators.coupled import check_steps, nested_problem
from tests.estimators.oracles import bernoulli_signal_problem, signal_problem
from tests.estimators.relaxed import (
    check_precision,
    coefficients,
    exact_moments,
    last_state,
    one_hot_problem,
    one_step,
    pair_problem,
    two_data_problem,
)

ESTIMATOR = bbvi.Relax(1, temperature=0.5)


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """A network that is a polynomial of its inputs, so that few nodes integrate it."""

    def init(self, key, inputs):
        return {"slope": 0.3 * jnp.cos(jnp.arange(1.0 * len(inputs))), "bias": jnp.full((), 0.2)}

    def apply(self, params, inputs):
        return jnp.square(inputs @ params["slope"] + params["bias"])


class Network(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(inputs)))[0]


def state_at(estimator, problem, params, x, relaxed, network):
    """A state with these coefficients, and signals of mean size 2."""
    state = estimator.init(problem, params, x)
    names = state.coefficients
    return state._replace(
        signal=state.signal._replace(coefficients=coefficients(relaxed, *names)),
        coefficients=coefficients(network, *names),
        size=state.size._replace(total=jnp.asarray(2.0), weight=jnp.ones(())),
    )


# Unbiased, whatever was learned.


@pytest.mark.parametrize("make", [pair_problem, two_data_problem])
def test_mean_is_the_enumerated_gradient(x64, make):
    problem, params, x = make()
    estimator = bbvi.Relax(1, Quadratic(), temperature=0.5)
    estimator.validate(problem, params, x)
    exact = ravel_pytree(exact_bernoulli_gradient(problem, params, x))[0]
    assert np.abs(exact).max() > 0.1
    variances = []
    for network in (0.0, 0.9):
        state = state_at(estimator, problem, params, x, 0.7, network)
        mean, variance = exact_moments(estimator, problem, params, x, state, num_nodes=14)
        np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-9)
        variances.append(variance)
    assert np.abs(variances[1] / variances[0] - 1).max() > 0.1  # the network does take part


def test_mean_with_the_baseline_of_the_other_draw(x64):
    estimator = bbvi.Relax(2, Quadratic(), temperature=1.0)
    problem, params = bernoulli_signal_problem()
    state = state_at(estimator, problem, params, None, 1.3, 0.8)
    mean, _ = exact_moments(estimator, problem, params, None, state, num_nodes=12)
    np.testing.assert_allclose(mean, -0.021, atol=1e-9)


def test_mean_for_categoricals():
    """Two coupled sets of one-hot vectors, with conditional Gumbels and large coefficients."""
    problem, params, _ = one_hot_problem()
    estimator = bbvi.Relax(8, Quadratic(), temperature=1.0)
    estimator.validate(problem, params, None)
    state = state_at(estimator, problem, params, None, 1.5, 0.9)

    def one(key):
        noise = estimator.draw(key, problem)
        return ravel_pytree(estimator.estimate(noise, problem, params, None, state)[0].grads)[0]

    keys = jax.random.split(jax.random.key(1), 40_000)
    gradients = jax.jit(lambda: jax.lax.map(one, keys, batch_size=1000))()
    check_mean(gradients, exact_gradient(problem, params), power=0.03)


# What is learned.


def toy_problem(theta):
    """The toy of the papers, f = (b - 0.499)^2, hardly different for 0 and 1."""
    guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
    init = guide.init(jax.random.key(0), None)
    logit = jnp.asarray(math.log(theta / (1 - theta)))
    params = init._replace(families={"b": {"logits": logit}})
    return signal_problem(lambda z: (z["b"] - 0.499) ** 2, guide, params)


def test_variance_of_the_toy(x64):
    """That of REINFORCE is p ((1 - theta) f(1) + theta f(0))^2; the network learns it away."""
    theta = 0.3
    problem, params = toy_problem(theta)
    f1, f0, p = 0.501**2, 0.499**2, theta * (1 - theta)
    plain = p * ((1 - theta) * f1 + theta * f0) ** 2
    state = last_state(ESTIMATOR, problem, params, 1000)
    _, learned = exact_moments(ESTIMATOR, problem, params, None, state, num_nodes=60)
    assert learned < plain / 50
    # No relaxation of the signal could: it is nearly zero in the middle.
    rebar = bbvi.Rebar(1, temperature=0.5)
    state = last_state(rebar, problem, params, 1000)
    _, by_rebar = exact_moments(rebar, problem, params, None, state, num_nodes=60)
    assert 0.9 * plain < by_rebar < 1.03 * plain


def test_network_that_does_harm_is_left_out(x64):
    """One that cannot be trained and fits nothing: its coefficient falls to about zero."""

    @dataclasses.dataclass(frozen=True)
    class Stubborn:
        def init(self, key, inputs):
            return jnp.zeros(())

        def apply(self, params, inputs):
            return jnp.sin(40 * inputs[0]) + 0 * params

    problem, params = toy_problem(0.3)
    estimator = bbvi.Relax(1, Stubborn(), temperature=0.5)
    with_network = state_at(estimator, problem, params, None, 0.0, 1.0)
    without = state_at(estimator, problem, params, None, 0.0, 0.0)
    _, harmed = exact_moments(estimator, problem, params, None, with_network, num_nodes=100)
    _, plain = exact_moments(estimator, problem, params, None, without, num_nodes=100)
    assert harmed > 10 * plain
    state = last_state(estimator, problem, params, 1000)
    _, learned = exact_moments(estimator, problem, params, None, state, num_nodes=100)
    assert learned < 1.03 * plain


def test_network_follows_the_squared_estimate(x64, key):
    """The first moment of Adam is a tenth of the gradient: here against finite differences."""
    problem, params, _ = pair_problem()
    estimator = bbvi.Relax(2, Quadratic())
    noise = estimator.draw(key, problem)
    start = state_at(estimator, problem, params, None, 0.8, 1.0)

    def half_square(network):
        state = start._replace(network=network)
        estimate, _ = estimator.estimate(noise, problem, params, None, state)
        return 0.5 * jnp.sum(estimate.grads.guide.families["b"]["logits"] ** 2)

    at, unravel = ravel_pytree(start.network)
    h = 1e-5
    moves = jnp.concatenate([jnp.eye(len(at)), -jnp.eye(len(at))]) * h
    up, down = jnp.split(jax.jit(jax.vmap(lambda e: half_square(unravel(at + e))))(moves), 2)
    wanted = (up - down) / (2 * h)
    assert np.abs(wanted).max() > 0.01
    # The same with the network left out of the estimate: else it would never get in.
    step = one_step(estimator, problem, params)
    for network in (1.0, 0.0):
        _, state = step(noise, start._replace(coefficients=coefficients(network, "b")))
        moment = ravel_pytree(optax.tree_utils.tree_get(state.opt_state, "mu"))[0]
        np.testing.assert_allclose(10 * moment, wanted, rtol=1e-5, atol=1e-9)


def test_first_step_is_rebars(x64, key):
    """And so is every step as long as the network's coefficient is zero."""
    problem, params, _ = pair_problem()
    rebar, relax = bbvi.Rebar(3), bbvi.Relax(3, Quadratic())
    noise = rebar.draw(key, problem)
    start = rebar.init(problem, params, None)
    by_rebar, by_relax = (one_step(e, problem, params) for e in (rebar, relax))
    for relaxed in (0.0, 0.8):
        plain = start._replace(coefficients=coefficients(relaxed, "b"))
        wanted, after = by_rebar(noise, plain)
        found, learned = by_relax(noise, state_at(relax, problem, params, None, relaxed, 0.0))
        chex.assert_trees_all_close(found, wanted, rtol=1e-12)
        chex.assert_trees_all_close(learned.signal, after, rtol=1e-12)


def test_huge_signal_leaves_no_trace(key):
    """Squares that overflow are not learned from; only the size of signals is."""
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((2,))})
    problem = bbvi.Problem(lambda x, z: x * jnp.prod(1.0 + z["b"]), guide)
    params = problem.init(jax.random.key(0), 1.0)
    estimator = bbvi.Relax(2)
    state = state_at(estimator, problem, params, 1.0, 0.5, 0.5)
    noise = estimator.draw(key, problem)
    huge = jnp.finfo(noise["b"].dtype).max ** 0.65
    estimate, after = one_step(estimator, problem, params, huge)(noise, state)
    assert 1e-3 < jnp.abs(estimate.grads.guide.families["b"]["logits"] / huge).max() < 100
    chex.assert_trees_all_equal(after.signal, state.signal)
    chex.assert_trees_all_equal(after.network, state.network)
    chex.assert_trees_all_equal(after.opt_state, state.opt_state)


# What the network sees.


def recorded_inputs(problem, params, x, num_samples=2):
    """What the network is given at one step, ``[2 S, C, 2 n]``."""
    seen = []

    class Recorder:
        def init(self, key, inputs):
            return jnp.zeros(())

        def apply(self, params, inputs):
            jax.debug.callback(lambda inputs: seen.append(np.asarray(inputs)), inputs)
            return jnp.sum(inputs) * params

    estimator = bbvi.Relax(num_samples, Recorder())
    state = estimator.init(problem, params, x)
    noise = estimator.draw(jax.random.key(5), problem)
    one_step(estimator, problem, params, x)(noise, state)
    jax.effects_barrier()
    return noise, np.stack([row for row in seen if row.ndim == 1])


def test_inputs_are_the_latents_and_probabilities_of_a_component():
    problem, params, x = two_data_problem()
    noise, inputs = recorded_inputs(problem, params, x)
    assert inputs.shape == (2 * 2 * 2, 2)  # free and given, two draws, two data
    logits = problem.guide.logits(params.guide, x)["b"]
    (u, _), theta = noise["b"], jax.nn.sigmoid(logits)
    free = jax.nn.sigmoid(logits[None] + jnp.log(u) - jnp.log1p(-u))
    wanted = np.stack([free.reshape(-1), np.tile(theta.reshape(-1), 2)], axis=1)
    distance = np.abs(wanted[:, None] - inputs[None]).max(axis=-1).min(axis=1)
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_entries_of_components():
    """Two sites, one of them one-hot, and components of different sizes: padded with zeros."""

    def log_joint(x, z):
        pairs = z["b"][:, 0] * z["b"][:, 1] + z["b"][:, 1]
        return jnp.sum(pairs) + jnp.sum(z["c"] @ jnp.arange(3.0) * z["b"][:2, 0])

    guide = bbvi.MeanField({"b": bbvi.Bernoulli((3, 2)), "c": bbvi.OneHotCategorical(3, (2,))})
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(0), None)
    model = discrete_model(bbvi.Relax(2), problem, params, None)
    table = component_entries(model)
    # Entries 0..5 are b, 6..11 the two vectors of c; 12 is none.
    np.testing.assert_array_equal(table, [[0, 1, 6, 7, 8], [2, 3, 9, 10, 11], [4, 5, 12, 12, 12]])
    check_steps(bbvi.Relax(2, Quadratic()), problem, params)


def test_one_component_holds_all_entries():
    problem, params, _ = pair_problem()
    table = component_entries(discrete_model(bbvi.Relax(2), problem, params, None))
    np.testing.assert_array_equal(table, [[0, 1]])


# The same under every transformation, in every precision.


def test_two_steps_are_one_trace():
    check_steps(bbvi.Relax(1), *nested_problem())
    check_steps(bbvi.Relax(2, Network()), *two_data_problem())


@pytest.mark.parametrize("make", [two_data_problem, one_hot_problem])
def test_precision(make):
    estimator = bbvi.Relax(2, Quadratic())
    check_precision(estimator, make, lambda *at: state_at(estimator, *at, 0.8, 0.5))


def test_equal_networks_make_equal_estimators():
    assert bbvi.Relax(2, Network()) == bbvi.Relax(2, Network())
    assert hash(bbvi.Relax(2, Network())) == hash(bbvi.Relax(2, Network()))
    assert bbvi.Relax(2, Network()) != bbvi.Relax(2)


def test_cost():
    assert bbvi.Relax(3).cost == bbvi.Cost(values=3, gradients=6)


# Errors.


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), "0.5"])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="Relax temperature must be a positive number, got"):
        bbvi.Relax(2, temperature=temperature)


@dataclasses.dataclass(frozen=True)
class Unhashable:
    sizes: list

    def init(self, key, inputs):
        return ()

    def apply(self, params, inputs):
        return inputs.sum()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network, "network must have init"),
        (jnp.sum, "network must have init"),
        (Unhashable([4]), "network must be hashable"),
    ],
)
def test_bad_network(network, message):
    with pytest.raises(TypeError, match=message):
        bbvi.Relax(2, network)


class Wide(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(1)(inputs)


class Integer(Unhashable):
    def apply(self, params, inputs):
        return jnp.asarray(1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Wide(), r"one floating-point scalar, .* of shape \(4,\); got shapes \[\(1,\)\]"),
        (Integer(()), r"one floating-point scalar"),
    ],
)
def test_network_of_a_wrong_output(network, message):
    problem, params, _ = pair_problem()
    with pytest.raises(ValueError, match=message):
        bbvi.Relax(2, network).init(problem, params, None)


def test_refused():
    guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
    problem = bbvi.Problem(lambda x, z: 1.0 * (z["b"] == 1), guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="Relax needs a log_joint that is differentiable"):
        ESTIMATOR.validate(problem, params, None)
