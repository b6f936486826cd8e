"""Targets and quadrature for estimators that relax discrete draws."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.coefficient import Coefficient
from tests.estimators.coupled import LinearNetwork
from tests.estimators.oracles import pieces, signal_problem, tensor_moments


def pair_problem():
    """Two coupled Bernoullis with a learned field: not linear between the values."""

    def log_joint(x, z, theta):
        b = z["b"].astype(theta.dtype)
        return theta @ b + 1.5 * b[0] ** 2 * b[1] - 2.0 * b[1] ** 3 - jnp.logaddexp(theta.sum(), 0)

    guide = bbvi.MeanField({"b": bbvi.Bernoulli((2,))})
    params = guide.init(jax.random.key(0), None)._replace(
        families={"b": {"logits": jnp.array([0.4, -0.6])}}
    )
    return bbvi.Problem(log_joint, guide), bbvi.Params(params, jnp.array([0.7, -0.4])), None


def two_data_problem():
    """Two data with a Bernoulli each, an amortized guide and a learned field: two components."""

    def log_joint(x, z, theta):
        b = z["b"].astype(theta.dtype)[:, 0]
        return jnp.sum(theta * b**2 + jnp.sin(x * b) - jnp.logaddexp(theta, 0))

    problem = bbvi.Problem(log_joint, bbvi.Amortized({"b": bbvi.Bernoulli((2, 1))}, NETWORK))
    x = jnp.array([1.5, -2.0])
    return problem, problem.init(jax.random.key(0), x, jnp.array(0.7)), x


NETWORK = LinearNetwork(1)


def one_hot_problem():
    """Two coupled categoricals of three and a learned field, in terms of one-hot vectors."""
    table = jnp.cos(jnp.arange(9.0)).reshape(3, 3)

    def log_joint(x, z, theta):
        first, second = z["c"]
        bonus = jnp.sum(jnp.sin(2 * first) * theta)
        return 2 * first @ table @ second + bonus - jax.nn.logsumexp(theta)

    problem = bbvi.Problem(log_joint, bbvi.MeanField({"c": bbvi.OneHotCategorical(3, (2,))}))
    guide = problem.guide.init(jax.random.key(0), None)
    logits = jnp.sin(jnp.arange(6.0)).reshape(2, 3)
    params = bbvi.Params(guide._replace(families={"c": {"logits": logits}}), jnp.arange(3) / 2.0)
    return problem, params, None


def linear_problem():
    """``signal_problem`` with f(b) = b for one Bernoulli."""
    guide = bbvi.MeanField({"b": bbvi.Bernoulli()})
    families = {"b": {"logits": jnp.asarray(-0.8)}}
    params = guide.init(jax.random.key(0), None)._replace(families=families)
    return signal_problem(lambda z: 1.0 * z["b"], guide, params)


def coefficients(value, *names):
    """Learned coefficients of this value, for the sites of these names."""
    return {name: Coefficient(jnp.asarray(-value), jnp.ones(()), jnp.zeros(())) for name in names}


def exact_moments(estimator, problem, params, x, state, num_nodes):
    """Mean and variance of the gradient of Bernoullis over all uniforms, by quadrature.

    At temperatures 1 and 1/2 a relaxed draw is a rational function of its uniform, smooth between
    the thresholds.
    """
    logits = problem.guide.logits(params.guide, x)["b"]
    drawn = np.broadcast_to(jax.nn.sigmoid(-logits), (estimator.num_samples, *logits.shape))
    rules = [pieces(num_nodes, t) for t in drawn.ravel()]
    rules += [pieces(num_nodes) for _ in rules]

    def gradient(u):
        noise = {"b": u.reshape(2, *drawn.shape)}
        return estimator.estimate(noise, problem, params, x, state)[0].grads

    return tensor_moments(gradient, rules)


def one_step(estimator, problem, params, x=None):
    """``(noise, state) -> (estimate, next state)``, compiled."""
    return jax.jit(lambda noise, state: estimator.estimate(noise, problem, params, x, state))


def last_state(estimator, problem, params, steps, x=None):
    """What an estimator has learned after so many steps at one point."""

    def step(state, key):
        noise = estimator.draw(key, problem)
        return estimator.estimate(noise, problem, params, x, state)[1], None

    keys = jax.random.split(jax.random.key(1), steps)
    start = estimator.init(problem, params, x)
    return jax.jit(lambda: jax.lax.scan(step, start, keys)[0])()


def check_precision(estimator, make, state_at):
    """Raise unless gradients have the dtype of the parameters, and float32 agrees with float64.

    ``state_at(problem, params, x)`` has coefficients other than zero, so that all parts count.
    """
    found, noise = [], None
    for is_double, dtype in ((False, jnp.dtype("float32")), (True, jnp.dtype("float64"))):
        with jax.enable_x64(is_double):
            problem, params, x = make()
            if noise is None:
                noise = jax.tree.map(np.asarray, estimator.draw(jax.random.key(4), problem))
            mine = jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf, dtype), noise)
            start = state_at(problem, params, x)
            made, after = one_step(estimator, problem, params, x)(mine, start)
            assert {leaf.dtype for leaf in jax.tree.leaves(made.grads)} == {dtype}
            before = [leaf.dtype for leaf in jax.tree.leaves(start)]
            assert [leaf.dtype for leaf in jax.tree.leaves(after)] == before
            found.append(np.asarray(ravel_pytree(made.grads)[0]))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
