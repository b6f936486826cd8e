"""Discrete estimators beside pathwise ones, against quadrature times enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import check_mean, replicate_gradients
from tests.estimators.oracles import cells, gauss_hermite

pytestmark = pytest.mark.usefixtures("x64")

NODES, WEIGHTS = gauss_hermite(24)


def log_joint(x, z, theta):
    """A regression with a slope r and two switches b, coupled; polynomial in r."""
    b, r = z["b"].astype(theta.dtype), z["r"]
    mean = r * b[0] + theta[0] * b[1] + theta[1] * b[0] * b[1] * r
    return -0.5 * jnp.sum((x - mean) ** 2) - 0.5 * r**2 - 0.3 * b[1]


X = jnp.array([0.4, -0.7, 1.1])


def mixed_problem():
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((2,)), "r": bbvi.Normal()})
    params = guide.params_at({"b": jnp.array([0, 1]), "r": jnp.array(0.4)}, 0.8)
    return bbvi.Problem(log_joint, guide), bbvi.Params(params, jnp.array([0.6, -0.9]))


def exact_gradient(problem, params):
    table = jnp.array(list(itertools.product([0, 1], repeat=2)))

    def loss(params):
        def given(node):
            def value(b):
                noise = (node[None], {"b": jnp.zeros(2)})
                r = problem.guide.sample(noise, params.guide, None)["r"]
                z = {"b": b, "r": r}
                log_q = problem.guide.site_log_probs(params.guide, None, z)
                log_p = problem.log_joint(X, z, params.model)
                q = jnp.exp(log_q["b"].sum())
                return q * (log_p - log_q["b"].sum() - log_q["r"])

            return jax.vmap(value)(table).sum()

        return -jnp.asarray(WEIGHTS) @ jax.vmap(given)(jnp.asarray(NODES))

    return ravel_pytree(jax.jit(jax.grad(loss))(params))[0]


def expectation(estimator, uniforms):
    """Mean gradient over the base noise of r and, by the pieces they are constant on, uniforms."""
    problem, params = mixed_problem()
    estimator.validate(problem, params, X)
    state = estimator.init(problem, params, X)
    grid = list(itertools.product(range(len(NODES)), *[range(len(u[0])) for u in uniforms]))
    node = jnp.array([NODES[g[0]] for g in grid])
    u = np.array([[rule[0][i] for rule, i in zip(uniforms, g[1:], strict=True)] for g in grid])
    lengths = [[rule[1][i] for rule, i in zip(uniforms, g[1:], strict=True)] for g in grid]
    weight = np.array([WEIGHTS[g[0]] for g in grid]) * np.prod(lengths, axis=1)

    def gradient(node, u):
        outer = (node.reshape(1, 1), {"b": jnp.full((1, 2), 0.5)})
        noise = (outer, {"b": u.reshape(1, -1, 2)})
        return ravel_pytree(estimator.estimate(noise, problem, params, X, state)[0].grads)[0]

    return weight @ np.asarray(jax.jit(jax.vmap(gradient))(node, jnp.asarray(u)))


@pytest.mark.parametrize("entropy", ["closed_form", "monte_carlo", "stick_the_landing"])
def test_enumeration_given_the_draws_is_exact(entropy):
    problem, params = mixed_problem()
    continuous = bbvi.Reparameterization(1, entropy)
    estimator = bbvi.Mixed(continuous, bbvi.Enumeration())
    found = expectation(estimator, [cells(), cells()])
    np.testing.assert_allclose(found, exact_gradient(problem, params), rtol=1e-9)


@pytest.mark.parametrize("signal", ["adaptive", "component"])
def test_antithetic_pairs_given_the_draws_are_exact(signal):
    problem, params = mixed_problem()
    theta = jax.nn.sigmoid(params.guide.families["b"]["logits"])
    estimator = bbvi.Mixed(bbvi.Reparameterization(1), bbvi.DisArm(2, signal))
    found = expectation(estimator, [cells(float(t), 1 - float(t)) for t in theta])
    np.testing.assert_allclose(found, exact_gradient(problem, params), rtol=1e-9)


def test_several_groups_are_averaged():
    problem, params = mixed_problem()
    estimator = bbvi.Mixed(bbvi.Reparameterization(3), bbvi.DisArm(4))
    gradients = replicate_gradients(jax.random.key(0), estimator, problem, params, X, 40_000)
    exact = exact_gradient(problem, params)
    check_mean(gradients, exact, power=0.05)
    check_mean((gradients @ exact / (exact @ exact))[:, None], np.ones(1), power=0.03)


def local_model(x, z):
    """A global weight and a switch for each datum."""
    mean = z["w"] * (2.0 * z["b"] - 1.0)
    return -0.5 * jnp.sum((x - mean) ** 2) - 0.5 * z["w"] ** 2


def test_given_global_latents_data_are_components_of_their_own():
    """2 values of log_joint sum out 40 switches exactly: the gradient has no discrete noise."""
    x = jnp.linspace(-2.0, 2.0, 40)
    guide = bbvi.MeanField({"w": bbvi.Normal(), "b": bbvi.Bernoulli((40,))})
    problem = bbvi.Problem(local_model, guide)
    params = problem.init(jax.random.key(0), x)
    estimator = bbvi.Mixed(bbvi.Reparameterization(1), bbvi.Enumeration())
    estimator.validate(problem, params, x)
    outer, inner = estimator.draw(jax.random.key(1), problem)
    found, _ = estimator.estimate((outer, inner), problem, params, x, ())
    w = problem.sample(outer, params, x)["w"][0]
    eta = params.guide.families["b"]["logits"]
    # d ELBO / d eta of a switch: theta (1 - theta) (log p(1) - log p(0) - eta).
    exact = jax.nn.sigmoid(eta) * jax.nn.sigmoid(-eta) * (2 * x * w - eta)
    np.testing.assert_allclose(-found.grads.guide.families["b"]["logits"], exact, rtol=1e-9)
    assert found.log_weights.shape == (1,)


def test_fit_finds_switches_and_weight():
    rng = np.random.default_rng(0)
    signs = rng.integers(0, 2, 30)
    x = jnp.asarray(2.0 * (2 * signs - 1) + 0.3 * rng.normal(size=30))
    guide = bbvi.MeanField({"w": bbvi.Normal(), "b": bbvi.Bernoulli((30,))})
    start = guide.params_at({"w": jnp.array(1.0), "b": jnp.zeros(30)}, 1.0)
    for discrete in (bbvi.Enumeration(), bbvi.DisArm(4)):
        result = bbvi.fit(
            local_model,
            guide,
            x,
            estimator=bbvi.Mixed(bbvi.Reparameterization(4), discrete),
            init_params=start,
            num_steps=1500,
            progress=False,
        )
        assert ((result.sample(jax.random.key(1), 200)["b"].mean(0) > 0.5) == signs).all()
        mean = result.sample(jax.random.key(1), 2000)["w"].mean()
        np.testing.assert_allclose(mean, jnp.abs(x).sum() / 31, atol=0.03)


def test_state_of_groups_is_merged_and_stays_the_same_kind():
    problem, params = mixed_problem()
    estimator = bbvi.Mixed(bbvi.Reparameterization(3), bbvi.DisArm(4))
    state = estimator.init(problem, params, X)
    noise = estimator.draw(jax.random.key(0), problem)
    _, after = estimator.estimate(noise, problem, params, X, state)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), after) == jax.tree.map(
        lambda s: (s.shape, s.dtype), state
    )
    assert float(after["b"].variance) > 0


def test_cost_and_repr():
    estimator = bbvi.Mixed(bbvi.Reparameterization(3), bbvi.DisArm(4))
    assert estimator.cost == bbvi.Cost(0, 12)
    assert estimator.num_samples == 12
    assert repr(estimator).startswith("Mixed(Reparameterization(num_samples=3")
    assert not estimator.is_biased


def test_errors():
    with pytest.raises(TypeError, match=r"made for discrete sites.*got ScoreFunction"):
        bbvi.Mixed(bbvi.Reparameterization(2), bbvi.ScoreFunction(2))
    with pytest.raises(TypeError, match="Reparameterization for continuous sites, got DisArm"):
        bbvi.Mixed(bbvi.DisArm(2), bbvi.DisArm(2))
    estimator = bbvi.Mixed(bbvi.Reparameterization(2), bbvi.DisArm(2))
    only = bbvi.Problem(lambda x, z: jnp.sum(z["b"]) * 1.0, bbvi.MeanField({"b": bbvi.Bernoulli()}))
    with pytest.raises(ValueError, match="no continuous site: use DisArm"):
        estimator.validate(only, only.init(jax.random.key(0), None), None)
    only = bbvi.Problem(lambda x, z: -(z["r"] ** 2), bbvi.MeanField({"r": bbvi.Normal()}))
    with pytest.raises(ValueError, match="no discrete site: use Reparameterization"):
        estimator.validate(only, only.init(jax.random.key(0), None), None)
    guide = bbvi.MeanField({"r": bbvi.Normal(), "c": bbvi.Categorical(3)})
    three = bbvi.Problem(lambda x, z: -(z["r"] ** 2) * z["c"], guide)
    with pytest.raises(ValueError, match="DisArm is for Bernoulli sites, but site 'c'"):
        estimator.validate(three, three.init(jax.random.key(0), None), None)
    guide = bbvi.MeanField({"r": bbvi.Normal(), "b": bbvi.Bernoulli((20,))})
    many = bbvi.Problem(lambda x, z: z["r"] * jnp.prod(1.0 * z["b"]), guide)
    with pytest.raises(ValueError, match="would sum 1048576 joint values"):
        bbvi.Mixed(bbvi.Reparameterization(2), bbvi.Enumeration()).validate(
            many, many.init(jax.random.key(0), None), None
        )
