"""Sets of distinct joint values, by summing over all of them."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.base import Cost
from bbvi.estimators.discrete import discrete_model, log_probs
from bbvi.estimators.enumeration import joint_states, state_indices
from bbvi.estimators.unordered_set import set_weights
from bbvi.testing import check_estimator, check_mean, replicate_gradients
from tests.estimators.categoricals import (
    TARGETS,
    categorical_batch,
    exact_gradient,
    three_kinds,
)
from tests.estimators.coupled import check_steps, exact_moments
from tests.estimators.oracles import estimate, signal_problem, tensor_moments


class Given(bbvi.UnorderedSet):
    """Takes the numbers ``[S, C]`` of its joint values as noise."""

    def rank(self, noise, log_q):
        order = jnp.arange(self.num_samples, 0.0, -1.0)[None]
        return jnp.zeros(log_q.shape).at[jnp.arange(len(log_q))[:, None], noise.T].set(order)


def order_probability(p, draws, without=()):
    """Of these draws in this order, from those that are not left out."""
    probability, left = 1.0, 1 - sum(p[z] for z in without)
    for z in draws:
        probability *= p[z] / left
        left -= p[z]
    return probability


def set_probability(p, members, without=()):
    return sum(order_probability(p, order, without) for order in itertools.permutations(members))


def all_probs(estimator, problem, params, x):
    """Probabilities ``[N, C]`` of all joint values, as the estimator numbers them."""
    model = discrete_model(estimator, problem, params, x)
    logits = problem.guide.logits(params.guide, x)
    states = joint_states("", model, list(logits), 1000, "")
    shape = (states.num_states, len(states.counts))
    every = np.broadcast_to(np.arange(states.num_states)[:, None], shape)
    indices = state_indices(states, model, jnp.asarray(every), logits)
    log_q = np.asarray(model.total(log_probs(logits, indices)))
    return np.where(every < states.counts, np.exp(log_q), 0.0)


def set_quadrature(estimator, problem, params, x):
    """Rules over the sets of each component, and the numbers of their members."""
    probs, size = all_probs(estimator, problem, params, x), estimator.num_samples
    np.testing.assert_allclose(probs.sum(axis=0), 1, rtol=1e-9)
    rules, tables = [], []
    for p in probs.T:
        possible = np.flatnonzero(p)
        impossible = np.flatnonzero(p == 0)
        if len(possible) < size:
            sets = [(*possible, *impossible[: size - len(possible)])]
            weights = [1.0]
        else:
            sets = list(itertools.combinations(possible, size))
            weights = [set_probability(p, members) for members in sets]
        np.testing.assert_allclose(sum(weights), 1, rtol=1e-9)
        rules.append((np.arange(len(sets)), np.array(weights)))
        tables.append(jnp.array(sets))

    def to_noise(numbers):
        rows = [table[n] for table, n in zip(tables, numbers.astype(int), strict=True)]
        return jnp.stack(rows, axis=1)

    return rules, to_noise


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("target", TARGETS)
def test_unbiased_exactly(target, num_samples):
    problem, params, x = target()
    exact = exact_gradient(problem, params, x)
    mean, variance = exact_moments(Given(num_samples), set_quadrature, problem, params, x)
    np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-9)
    assert variance.max() > 1e-4


@pytest.mark.usefixtures("x64")
def test_loss_is_unbiased_exactly():
    problem, params, x = categorical_batch()
    estimator = Given(2)
    rules, to_noise = set_quadrature(estimator, problem, params, x)

    def loss_and_mean(u):
        made = estimator.estimate(to_noise(u), problem, params, x, ())[0]
        return made.loss, -made.log_weights.mean()

    (loss, same), _ = tensor_moments(loss_and_mean, rules)
    np.testing.assert_allclose(loss, same, rtol=1e-12)
    values = jnp.array(list(itertools.product(range(2), repeat=4))).reshape(-1, 2, 2)
    z = {"c": jax.nn.one_hot(values, 2)}
    log_q = problem.log_q(params, x, z)
    exact = -jnp.sum(jnp.exp(log_q) * (problem.log_p(params, x, z) - log_q))
    np.testing.assert_allclose(loss, exact, rtol=1e-9)


@pytest.mark.parametrize("num_samples", [2, 5])
def test_unbiased(num_samples):
    check_estimator(bbvi.UnorderedSet(num_samples))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("target", TARGETS)
def test_no_variance_when_the_set_is_all_there_is(target, key):
    """S is the number of joint values of the largest component: nothing is random."""
    problem, params, x = target()
    num_states = len(all_probs(bbvi.UnorderedSet(2), problem, params, x))
    if num_states > 8:  # more than a set may have; fewer categories have as many as fit
        problem = bbvi.Problem(problem.log_joint, bbvi.MeanField({"c": bbvi.Categorical(2, (2,))}))
        params = problem.init(jax.random.key(0), x, params.model)
        num_states = 4
    exact = exact_gradient(problem, params, x)
    estimator = bbvi.UnorderedSet(num_states)
    estimator.validate(problem, params, x)
    for k in jax.random.split(key, 2):
        grads = estimate(estimator, problem, params, estimator.draw(k, problem), x).grads
        np.testing.assert_allclose(ravel_pytree(grads)[0], exact, atol=1e-12)


weigh = jax.jit(set_weights)

PROBS = np.array([0.42, 0.3, 0.15, 0.08, 0.04, 0.01])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_weights_are_ratios_of_set_probabilities(size):
    """Sums over permutations, which the estimator never makes."""
    for members in itertools.combinations(range(6), size):
        members = np.array(members)
        rest = np.log(1 - PROBS[members].sum(keepdims=True))
        first, others = weigh(np.log(PROBS)[members, None], rest)
        everything = set_probability(PROBS, members)
        for i, z in enumerate(members):
            without_z = set_probability(PROBS, set(members) - {z}, [z])
            np.testing.assert_allclose(first[i, 0], PROBS[z] * without_z / everything, rtol=1e-9)
            np.testing.assert_allclose(others[i, i, 0], PROBS[z], rtol=1e-9)
            for j, other in enumerate(members):
                if i != j:
                    both = set_probability(PROBS, set(members) - {z, other}, [z, other])
                    np.testing.assert_allclose(
                        others[i, j, 0], PROBS[other] * both / without_z, rtol=1e-9
                    )
    np.testing.assert_allclose(first.sum(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(others.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("num_samples", [2, 4, 8])
def test_weights_in_single_precision(num_samples):
    """Probabilities from one to nothing, beyond what 1 - q can tell from 0."""

    def weigh_first(log_q):
        return weigh(log_q[:num_samples], jax.nn.logsumexp(log_q[num_samples:], axis=0))

    log_q = jax.nn.log_softmax(-(jnp.arange(10.0) ** 2) * 3)[:, None]
    log_q = jnp.concatenate(
        [log_q, jnp.roll(log_q, 4, axis=0), jnp.full((10, 1), -np.log(10))], axis=1
    )
    first, others = weigh_first(log_q)
    with jax.enable_x64(True):
        twice = jnp.asarray(np.asarray(log_q, np.float64))
        exact = [np.asarray(w) for w in weigh_first(twice)]
    np.testing.assert_allclose(first, exact[0], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(others, exact[1], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(first.sum(axis=0), 1, rtol=1e-4)


def test_sets_come_with_their_probabilities():
    log_q = jnp.log(jnp.asarray(PROBS, jnp.float32))[None]
    estimator = bbvi.UnorderedSet(3)
    keys = jax.random.split(jax.random.key(1), 50_000)
    rank = jax.vmap(lambda key: estimator.rank(key, log_q)[0])
    drawn = jax.lax.top_k(rank(keys), 3)[1]
    sets = list(itertools.combinations(range(6), 3))
    bits = jnp.sum(1 << drawn, axis=1)[:, None]
    is_set = bits == jnp.array([sum(1 << z for z in members) for members in sets])[None]
    check_mean(1.0 * is_set, np.array([set_probability(PROBS, members) for members in sets]))


def category_problem(f):
    guide = bbvi.MeanField({"c": bbvi.Categorical(len(f))})
    params = guide.init(jax.random.key(0), None)
    params = params._replace(families={"c": {"logits": jnp.log(jnp.asarray(PROBS))}})
    return signal_problem(lambda z: jnp.asarray(f)[z["c"]], guide, params)


@pytest.mark.usefixtures("x64")
def test_no_variance_where_the_signal_is_constant():
    problem, params = category_problem(np.full(6, -3.1))
    mean, variance = exact_moments(Given(3), set_quadrature, problem, params)
    np.testing.assert_allclose([mean, variance], 0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_less_variance_than_independent_draws(seed):
    """Leave-one-out with as many, by the sum over all pairs of draws."""
    f = np.random.default_rng(seed).normal(size=6)
    problem, params = category_problem(f)
    exact = PROBS * (f - PROBS @ f)
    mean, variance = exact_moments(Given(2), set_quadrature, problem, params)
    np.testing.assert_allclose(mean, -exact, atol=1e-9)
    scores = np.eye(6) - PROBS
    pairs = 0.5 * (f[:, None] - f)[..., None] * (scores[:, None] - scores)
    independent = np.tensordot(np.outer(PROBS, PROBS), (pairs - exact) ** 2, 2)
    assert variance.sum() < 0.8 * independent.sum()


def test_in_a_mixture_with_continuous_latents():
    """Beside a normal, whose draw changes the signal, the gradients of both are unbiased."""

    def log_joint(x, z):
        return -0.5 * (z["mu"] - 1) ** 2 * (1.0 + z["c"]) + 0.3 * z["c"]

    guide = bbvi.MeanField({"mu": bbvi.Normal(), "c": bbvi.Categorical(3)})
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(0), None)

    def loss(params):
        loc, log_scale = params.guide.normal[:, 0]
        log_q = jax.nn.log_softmax(params.guide.families["c"]["logits"])
        second = (loc - 1) ** 2 + jnp.exp(2 * log_scale)
        log_p = -0.5 * second * (1 + jnp.arange(3)) + 0.3 * jnp.arange(3)
        return -jnp.sum(jnp.exp(log_q) * (log_p - log_q)) - log_scale

    exact = ravel_pytree(jax.grad(loss)(params))[0]
    estimator = bbvi.Mixed(bbvi.Reparameterization(2), bbvi.UnorderedSet(2))
    estimator.validate(problem, params, None)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 50_000)
    check_mean(gradients, exact, power=0.03)


def test_steps():
    check_steps(bbvi.UnorderedSet(2), *categorical_batch())
    check_steps(bbvi.UnorderedSet(4), *three_kinds())


def test_cost():
    assert bbvi.UnorderedSet(6).cost == Cost(6)


@pytest.mark.parametrize("num_samples", [1, 9])
def test_wrong_number_of_draws(num_samples):
    with pytest.raises(ValueError, match=f"num_samples must be 2 to 8, got {num_samples}"):
        bbvi.UnorderedSet(num_samples)


def refusal(guide, log_joint, num_samples=4):
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match="UnorderedSet") as caught:
        bbvi.UnorderedSet(num_samples).validate(problem, params, None)
    return str(caught.value)


def test_refused_problems():
    def square(x, z):
        return jnp.sum(1.0 * z["b"]) ** 2

    message = refusal(bbvi.MeanField({"b": bbvi.Bernoulli((13,))}), square)
    assert "'b' would sum 8192 joint values, more than 4096: use DisArm, Arms" in message
    message = refusal(bbvi.MeanField({"b": bbvi.Bernoulli()}), square)
    assert "there are only 2: with num_samples=2 the gradient is exact" in message
    message = refusal(bbvi.MeanField({"b": bbvi.Normal()}), square)
    assert re.search(r"for discrete latents, but site 'b' \(Normal\)", message)
