"""Checks of estimators from coupled draws, by exact integration over their noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.coefficient import Coefficient
from bbvi.testing import bernoulli_problem, exact_bernoulli_gradient
from tests.estimators.oracles import estimate, pieces, tensor_moments

# Three coupled Bernoullis far from their posterior, where blankets are better than the signal of
# the whole component; and near it, where they are worse.
FAR, NEAR = (2.5, -2.0, 2.0), (0.9, -0.5, 0.1)


def coupled_problem(logits):
    """``bernoulli_problem`` at given logits, in the precision that is on."""
    problem, params = bernoulli_problem()
    families = {"b": {"logits": jnp.array(logits)}}
    return problem, params._replace(guide=params.guide._replace(families=families))


class LinearNetwork:
    """Logits ``[B, D]`` that are a linear map of the data ``[B]``."""

    def __init__(self, num_latents):
        self.num_latents = num_latents

    def init(self, key, x):
        return {"slope": jnp.linspace(0.8, -0.5, self.num_latents), "bias": jnp.asarray(0.2)}

    def apply(self, params, x):
        return jnp.outer(x, params["slope"]) + params["bias"]


def batch_problem():
    """Two data with two Bernoullis each, an amortized guide and learned theta: 2 components."""

    def log_joint(x, z, theta):
        b = z["b"].astype(theta.dtype)
        pairs = b[:, 0] * b[:, 1]
        return jnp.sum(b @ theta + x * pairs - jnp.logaddexp(theta.sum(), 0.0))

    problem = bbvi.Problem(log_joint, bbvi.Amortized({"b": bbvi.Bernoulli((2, 2))}, NETWORK))
    x = jnp.array([1.5, -2.0])
    return problem, problem.init(jax.random.key(0), x, jnp.array([0.7, -0.4])), x


NETWORK = LinearNetwork(2)


def nested_problem():
    """Latents as a tuple with a dict in it, one of them a scalar."""

    def log_joint(x, z):
        first, rest = z
        return 1.3 * first * rest["pair"][0] - 0.7 * rest["pair"].sum() + 0.5 * first

    guide = bbvi.MeanField((bbvi.Bernoulli(), {"pair": bbvi.Bernoulli((2,))}))
    problem = bbvi.Problem(log_joint, guide)
    return problem, problem.init(jax.random.key(2), None)


def with_alpha(state, alpha):
    """The state whose learned coefficients are ``alpha``."""
    return {name: Coefficient(jnp.asarray(-alpha), jnp.ones(()), jnp.zeros(())) for name in state}


def pair_quadrature(estimator, problem, params, x):
    """Rules for the uniforms of antithetic pairs of Bernoullis, and the noise that they make.

    Two nodes between thresholds: exact for what is quadratic there, as squares of ARM are.
    """
    logits = problem.guide.logits(params.guide, x)
    breaks = {
        name: jnp.broadcast_to(jax.nn.sigmoid(logits[name]), leaf.shape)
        for name, leaf in estimator.draw(jax.random.key(0), problem).items()
    }
    thresholds, to_noise = ravel_pytree(breaks)
    return [pieces(2, t, 1 - t) for t in thresholds], to_noise


def exact_moments(estimator, quadrature, problem, params, x=None, alpha=0.0):
    """Mean and variance of the gradient ``[P]``, the learned coefficients being ``alpha``."""
    rules, to_noise = quadrature(estimator, problem, params, x)
    state = with_alpha(estimator.init(problem, params, x), alpha)
    estimator.validate(problem, params, x)

    def gradient(u):
        return estimator.estimate(to_noise(u), problem, params, x, state)[0].grads

    return tensor_moments(gradient, rules)


def check_unbiased(estimator, quadrature):
    """Raise unless the exact mean is the exact gradient, whatever the coefficient has learned."""
    for problem, params, x in (
        (*coupled_problem(FAR), None),
        batch_problem(),
        (*nested_problem(), None),
    ):
        exact = ravel_pytree(exact_bernoulli_gradient(problem, params, x))[0]
        assert np.abs(exact).max() > 0.05
        mean, _ = exact_moments(estimator, quadrature, problem, params, x, alpha=0.6)
        np.testing.assert_allclose(mean, exact, rtol=0, atol=1e-9)


def check_learns(estimator, quadrature, *, steps=500):
    """Raise unless the coefficient learned on the way is as good as the better of 0 and 1.

    The textbook's, 1, is worse than 0 at the one point; 0 worse than 1 at the other.
    """
    is_whole_worse = []
    for logits in (FAR, NEAR):
        problem, params = coupled_problem(logits)

        def variance(alpha, problem=problem, params=params):
            at = functools.partial(exact_moments, estimator, quadrature, problem, params)
            return at(alpha=alpha)[1][:3].sum()  # of the logits, not of theta

        def step(state, key, problem=problem, params=params):
            noise = estimator.draw(key, problem)
            return estimator.estimate(noise, problem, params, None, state)[1], None

        keys = jax.random.split(jax.random.key(1), steps)
        state, _ = jax.lax.scan(step, estimator.init(problem, params, None), keys)
        zero, one, learned = variance(0.0), variance(1.0), variance(float(state["b"].value()))
        assert learned <= 1.03 * min(zero, one)
        is_whole_worse.append(bool(one > 1.1 * zero))
        assert abs(np.log(one / zero)) > 0.1
    assert is_whole_worse == [True, False]


def check_steps(estimator, problem, params, x=None):
    """Raise unless two steps are one trace, and many keys at once give what each gives alone."""
    traces = []

    @jax.jit
    def step(noise, state):
        traces.append(None)
        made, state = estimator.estimate(noise, problem, params, x, state)
        return made.grads, state

    def draws():  # afresh: noise may be keys, which are not to be used twice
        keys = jax.random.split(jax.random.key(3), 2)
        return jax.vmap(lambda key: estimator.draw(key, problem))(keys)

    one, two = (jax.tree.map(lambda leaf, i=i: leaf[i], draws()) for i in range(2))
    start = estimator.init(problem, params, x)
    first, state = step(one, start)
    step(two, state)
    assert len(traces) == 1
    together = jax.jit(
        jax.vmap(lambda n: estimator.estimate(n, problem, params, x, start)[0].grads)
    )(draws())
    np.testing.assert_allclose(
        ravel_pytree(jax.tree.map(lambda leaf: leaf[0], together))[0],
        ravel_pytree(first)[0],
        rtol=1e-4,
        atol=1e-6,
    )


def check_precision(estimator, target):
    """Raise unless gradients have the dtype of the parameters, and float32 agrees with float64.

    ``target()`` makes problem, parameters and data, in the precision that is on.
    """
    with jax.enable_x64(False):
        problem, params, x = target()
        noise = estimator.draw(jax.random.key(4), problem)
        single = estimate(estimator, problem, params, noise, x).grads
        assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {jnp.dtype("float32")}
        single = np.asarray(ravel_pytree(single)[0])
        noise = jax.tree.map(np.asarray, noise)
    with jax.enable_x64(True):
        problem, params, x = target()
        noise = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), noise)
        double = estimate(estimator, problem, params, noise, x).grads
        assert {leaf.dtype for leaf in jax.tree.leaves(double)} == {jnp.dtype("float64")}
        double = np.asarray(ravel_pytree(double)[0])
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5)
