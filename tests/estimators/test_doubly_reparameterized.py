"""Doubly reparameterized gradients, by quadrature and draw for draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient

import bbvi
from bbvi.estimators import default_estimator
from bbvi.estimators.base import Cost
from tests.estimators.multi_sample import (
    check_components_are_separate,
    check_steps,
    normal,
    normal_moments,
)
from tests.estimators.oracles import estimate, gaussian_problem

OBJECTIVES = [
    bbvi.Iwae(1),
    bbvi.Iwae(2),
    bbvi.Renyi(0.5, 2),
    bbvi.Renyi(2.0, 2),
    bbvi.Renyi(-0.4, 2),
    bbvi.Chi(3.0, 2),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_mean_is_the_pathwise_one(objective):
    """Location, scale and theta of a normal; the pathwise gradient is the loss's own."""
    size = objective.group_size
    gradient, variance = normal_moments(bbvi.DoublyReparameterized(size), objective)
    pathwise, pathwise_variance = normal_moments(bbvi.Reparameterization(size), objective)
    assert np.abs(pathwise).min() > 0.01
    np.testing.assert_allclose(gradient, pathwise, rtol=1e-5)  # of the quadrature
    np.testing.assert_allclose(variance[2], pathwise_variance[2], rtol=1e-9)
    assert np.abs(variance[:2] - pathwise_variance[:2]).min() > 1e-3  # it is another estimator


@pytest.mark.usefixtures("x64")
def test_variance_of_a_normal():
    gradient, variance = normal_moments(bbvi.DoublyReparameterized(2), bbvi.Iwae(2))
    pathwise, pathwise_variance = normal_moments(bbvi.Reparameterization(2), bbvi.Iwae(2))
    np.testing.assert_allclose([gradient[0], pathwise[0]], 0.156402, atol=1e-6)
    np.testing.assert_allclose(variance[0], 0.08327, atol=1e-5)
    np.testing.assert_allclose(pathwise_variance[0], 0.29263, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_one_draw_is_stick_the_landing():
    problem, params = normal(bbvi.Iwae(1))
    noise = problem.base_noise(jax.random.key(0), 5)
    double = estimate(bbvi.DoublyReparameterized(5), problem, params, noise)
    elbo, _ = normal(bbvi.Elbo())
    landing = bbvi.Reparameterization(5, entropy="stick_the_landing")
    wanted = estimate(landing, elbo, params, noise)
    np.testing.assert_allclose(
        ravel_pytree(double.grads)[0], ravel_pytree(wanted.grads)[0], rtol=1e-10
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("objective", [bbvi.Iwae(4), bbvi.Renyi(0.5, 4), bbvi.Chi(2.0, 4)])
def test_no_variance_in_the_guide_at_the_posterior(objective):
    problem, params = normal(objective, loc=0.0, scale=1.2)
    noise = problem.base_noise(jax.random.key(0), 8)
    double = estimate(bbvi.DoublyReparameterized(8), problem, params, noise).grads
    pathwise = estimate(bbvi.Reparameterization(8), problem, params, noise).grads
    np.testing.assert_allclose(double.guide.normal, 0, atol=1e-12)
    assert np.abs(pathwise.guide.normal).min() > 0.01
    np.testing.assert_allclose(double.model, pathwise.model, rtol=1e-9)
    assert abs(double.model) > 0.01


def mixed_problem(objective):
    """Sites of one block, of rows and of entries, in three components, and learned theta."""

    def log_joint(x, z, theta):
        w, rows, rates = z["w"], z["d"], z["g"]
        joint = -0.5 * (w["a"] - theta * w["b"].sum()) ** 2 - 0.5 * jnp.sum(w["b"] ** 2)
        pairs = jnp.sum(jnp.log(rows), axis=1) + jnp.log(rates) - rates * rows[:, 0] * theta**2
        return joint + jnp.sum(pairs)

    guide = bbvi.Product(
        bbvi.FullRank({"w": {"a": bbvi.Normal(), "b": bbvi.Normal((2,))}}),
        bbvi.MeanField(
            {"d": bbvi.Normal((2, 3), support=bbvi.supports.simplex), "g": bbvi.LogNormal((2,))}
        ),
    )
    problem = bbvi.Problem(log_joint, guide, objective)
    return problem, problem.init(jax.random.key(0), None, jnp.asarray(0.7))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "objective", [bbvi.Iwae(3), bbvi.Renyi(0.3, 6), bbvi.Chi(2.5, 3)], ids=repr
)
def test_draw_for_draw_by_the_formula(objective):
    """Each component's log weight, with its own factor, differentiated by itself."""
    problem, params = mixed_problem(objective)
    estimator = bbvi.DoublyReparameterized(6)
    estimator.validate(problem, params, None)
    noise = problem.base_noise(jax.random.key(1), 6)
    got = estimate(estimator, problem, params, noise)
    assert got.log_weights.shape == (6, 3)

    groups = got.log_weights.reshape(-1, objective.group_size, 3)
    r = objective.power
    shares = jax.nn.softmax(r * groups, axis=1)
    factors = ((1 - r) * shares + r * shares**2).reshape(6, 3)
    shares = shares.reshape(6, 3)

    def surrogate(params):
        z = problem.sample(noise, params, None)
        log_p, log_q = problem.by_component(stop_gradient(params), None, z)
        by_draw = jnp.sum(factors * (log_p - log_q))
        model_p, _ = problem.by_component(params, None, stop_gradient(z))
        return objective.sign * (by_draw + jnp.sum(shares * model_p)) / len(groups)

    wanted = jax.jit(jax.grad(surrogate))(params)
    np.testing.assert_allclose(ravel_pytree(got.grads)[0], ravel_pytree(wanted)[0], rtol=1e-9)
    np.testing.assert_allclose(got.loss, objective(got.log_weights), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("objective", [bbvi.Iwae(4), bbvi.Renyi(0.5, 2), bbvi.Chi(2.0, 4)])
def test_components_are_separate(objective):
    check_components_are_separate(bbvi.DoublyReparameterized(4), objective)
    check_components_are_separate(bbvi.Reparameterization(4), objective)


class Network:
    """Locations and log scales that are linear in the data."""

    def init(self, key, x):
        return jnp.array([[0.5, 0.2], [0.1, -0.4]])

    def apply(self, params, x):
        loc, log_scale = jnp.outer(params[:, 0], x) + params[:, 1:]
        return {"z": {"loc": loc, "log_scale": log_scale}}


@pytest.mark.usefixtures("x64")
def test_data_of_a_batch_have_their_own_weights():
    """An amortized guide: the sum over the data of the gradients of one at a time."""

    def log_joint(x, z):
        return -0.5 * jnp.sum(z["z"] ** 2) - jnp.sum((x - jnp.exp(z["z"])) ** 2)

    def gradient(x, draws):
        guide = bbvi.Amortized({"z": bbvi.Normal(x.shape)}, NETWORK)
        problem = bbvi.Problem(log_joint, guide, bbvi.Iwae(4))
        params = problem.init(jax.random.key(0), x)
        estimate = bbvi.DoublyReparameterized(4).estimate
        noise = (jnp.asarray(draws), {})
        got, _ = jax.jit(lambda n: estimate(n, problem, params, x, ()))(noise)
        assert got.log_weights.shape == (4, len(x))
        return np.asarray(got.grads.guide)

    x = jnp.array([0.3, 1.5, 2.0])
    draws = np.random.default_rng(0).normal(size=(4, 3))
    one_by_one = sum(gradient(x[i : i + 1], draws[:, i : i + 1]) for i in range(3))
    np.testing.assert_allclose(gradient(x, draws), one_by_one, rtol=1e-9)


NETWORK = Network()


def test_steps():
    check_steps(bbvi.DoublyReparameterized(4), *normal(bbvi.Iwae(2)))


def test_cost():
    assert bbvi.DoublyReparameterized(6).cost == Cost(gradients=6)
    assert not bbvi.DoublyReparameterized(6).is_biased


@pytest.mark.parametrize(
    ("objective", "num_samples"),
    [(bbvi.Iwae(3), 9), (bbvi.Iwae(1), 8), (bbvi.Renyi(0.5), 8), (bbvi.Chi(2.0, 20), 20)],
    ids=repr,
)
def test_default_for_pathwise_latents(objective, num_samples):
    problem, params = gaussian_problem(objective=objective)
    estimator = default_estimator(problem, params, None)
    assert estimator == bbvi.DoublyReparameterized(num_samples)
    estimator.validate(problem, params, None)


def test_default_for_an_objective_of_ones_own():
    class Worst(bbvi.Objective):
        group_size = 5

        def __call__(self, log_weights):
            return -jnp.sum(jnp.min(log_weights, axis=0))

    problem, params = gaussian_problem(objective=Worst())
    assert default_estimator(problem, params, None) == bbvi.Reparameterization(10)


# Errors.


@pytest.mark.parametrize("objective", [bbvi.Elbo(), bbvi.ForwardKl(4)], ids=repr)
def test_other_objectives_are_refused(objective):
    problem, params = gaussian_problem(objective=objective)
    with pytest.raises(ValueError, match=r"for bbvi.Iwae, bbvi.Renyi and bbvi.Chi, got "):
        bbvi.DoublyReparameterized(4).validate(problem, params, None)


def test_discrete_sites_are_refused():
    guide = bbvi.MeanField({"b": bbvi.Bernoulli(), "z": bbvi.Normal()})
    problem = bbvi.Problem(lambda x, z: z["b"] * z["z"], guide, bbvi.Iwae(4))
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=r"site 'b' \(Bernoulli\) is not reparameterizable"):
        bbvi.DoublyReparameterized(4).validate(problem, params, None)
