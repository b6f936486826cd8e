import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.taylor import TaylorState, coefficients
from bbvi.testing import check_estimator, check_mean, normal_problem
from tests.estimators.oracles import check_variance, estimate

REPLICATES = 100_000


def state_with(a, b, d):
    """A long past that led to coefficients a, b (one for each site) and d (one for each entry)."""
    products = jnp.stack([jnp.atleast_1d(jnp.asarray(c, float)) for c in (a, b)])
    d = jnp.atleast_1d(jnp.asarray(d, float))
    curvature = jnp.stack([2 * d, jnp.full_like(d, 2)])
    return TaylorState(jnp.ones(()), products, jnp.ones_like(products), curvature)


def replicates(estimator, problem, params, state, num_replicates=REPLICATES):
    """Gradients [R, P] at one point and one state."""

    def one(key):
        noise = estimator.draw(key, problem)
        return ravel_pytree(estimator.estimate(noise, problem, params, None, state)[0].grads)[0]

    keys = jax.random.split(jax.random.key(1), num_replicates)
    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=1000))(keys)


def learned_state(estimator, problem, params, num_steps, key=None):
    """The state after steps that leave the parameters alone."""
    key = jax.random.key(2) if key is None else key

    def step(state, index):
        noise = estimator.draw(jax.random.fold_in(key, index), problem)
        return estimator.estimate(noise, problem, params, None, state)[1], None

    first = estimator.init(problem, params, None)
    return jax.lax.scan(step, first, jnp.arange(num_steps))[0]


def quartic_problem(loc, scale):
    """f(z) = z^4 / 4, whose gradient is z^3; as in the closed forms below."""
    guide = bbvi.MeanField({"z": bbvi.Normal()})
    problem = bbvi.Problem(lambda x, z: z["z"] ** 4 / 4, guide)
    return problem, bbvi.Params(guide.params_at({"z": jnp.asarray(loc)}, scale))


def quartic_variances(m, s, a, b, d):
    """Variances for one draw, from the Hermite coefficients of z^3 and of z^3 s e."""
    by_loc = [3 * m**2 * s + 3 * s**3 - a * 3 * m**2 * s, 3 * m * s**2, s**3]
    by_scale = [m**3 * s + 9 * m * s**3 - b * m**3 * s]
    by_scale += [3 * m**2 * s**2 + 6 * s**4 - d, 3 * m * s**3, s**4]
    factorials = np.array([1, 2, 6, 24])
    return [np.square(c) @ factorials[: len(c)] for c in (by_loc, by_scale)]


# Identities.

GUIDES = {
    "normal": bbvi.MeanField({"z": bbvi.Normal((3,))}),
    "supports": bbvi.MeanField(
        (bbvi.LogNormal((2,)), bbvi.Normal((3,), support=bbvi.supports.simplex))
    ),
}


def log_joint(x, z):
    return sum(jnp.sum(jnp.sin(leaf) - leaf**2) for leaf in jax.tree.leaves(z))


@pytest.mark.parametrize("guide", GUIDES.values(), ids=list(GUIDES))
@pytest.mark.parametrize("num_samples", [1, 4])
def test_first_step_is_reparameterization(guide, num_samples, key):
    with jax.enable_x64(True):
        problem = bbvi.Problem(log_joint, guide)
        params = problem.init(jax.random.key(1), None)
        taylor = bbvi.TaylorControlVariate(num_samples)
        taylor.validate(problem, params, None)
        noise = taylor.draw(key, problem)
        got, wanted = (
            estimate(e, problem, params, noise)
            for e in (taylor, bbvi.Reparameterization(num_samples, "closed_form"))
        )
        assert float(jnp.abs(ravel_pytree(wanted.grads)[0]).max()) > 0.1
        np.testing.assert_allclose(ravel_pytree(got)[0], ravel_pytree(wanted)[0], rtol=1e-9)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_no_variance_on_a_quadratic(num_samples):
    """With the right coefficients every draw gives the exact gradient: -(b + A m), -(1 + A s^2)."""
    curvature, slope = jnp.array([-1.0, -4.0, 0.5]), jnp.array([0.3, -2.0, 1.0])
    guide = bbvi.MeanField({"z": bbvi.Normal((3,))})
    problem = bbvi.Problem(
        lambda x, z: jnp.dot(slope, z["z"]) + 0.5 * jnp.dot(curvature, z["z"] ** 2), guide
    )
    loc, scale = jnp.array([1.0, -0.5, 2.0]), 0.7
    params = bbvi.Params(guide.params_at({"z": loc}, scale))
    state = state_with(1.0, 1.0, curvature * scale**2)
    estimator = bbvi.TaylorControlVariate(num_samples)
    gradients = replicates(estimator, problem, params, state, 100)
    exact = -np.concatenate([slope + curvature * loc, 1 + curvature * scale**2])
    np.testing.assert_allclose(gradients, np.broadcast_to(exact, gradients.shape), atol=1e-4)


def test_no_variance_in_the_location_on_a_correlated_quadratic():
    precision = jnp.array([[2.0, 0.9], [0.9, 1.0]])
    guide = bbvi.MeanField({"z": bbvi.Normal((2,))})
    problem = bbvi.Problem(lambda x, z: -0.5 * z["z"] @ precision @ z["z"], guide)
    loc = jnp.array([1.0, -0.5])
    params = bbvi.Params(guide.params_at({"z": loc}, 0.7))
    state = state_with(1.0, 0.0, jnp.zeros(2))
    gradients = replicates(bbvi.TaylorControlVariate(4), problem, params, state, 100)
    wanted = np.broadcast_to(precision @ loc, (100, 2))
    np.testing.assert_allclose(gradients[:, :2], wanted, atol=1e-5)


def test_every_site_has_its_coefficients(key):
    """Coefficients of one site leave the gradient of the other as it was."""
    guide = bbvi.MeanField({"a": bbvi.Normal((2,)), "b": bbvi.LogNormal((3,))})
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(1), None)
    estimator = bbvi.TaylorControlVariate(4)
    noise = estimator.draw(key, problem)
    none, only_b = (
        estimator.estimate(noise, problem, params, None, state)[0].grads.guide.normal
        for state in (
            estimator.init(problem, params, None),
            state_with([0.0, 1.0], [0.0, 0.5], jnp.zeros(5)),
        )
    )
    np.testing.assert_array_equal(only_b[:, :2], none[:, :2])
    assert float(jnp.abs(only_b - none)[:, 2:].min()) > 1e-4


# Means: whatever the coefficients are.


@pytest.mark.parametrize("coefficients", [(1.0, 1.0, -0.4), (0.4, 2.0, 0.5)])
def test_unbiased_with_learned_model_parameters(coefficients):
    problem, params, loss = normal_problem()
    estimator = bbvi.TaylorControlVariate(2)
    gradients = replicates(estimator, problem, params, state_with(*coefficients))
    check_mean(gradients, ravel_pytree(jax.grad(loss)(params))[0], power=0.05)


@pytest.mark.parametrize("coefficients", [(1.0, 1.0, -1.0), (0.4, 2.0, 0.5)])
def test_unbiased_through_a_bijector(coefficients):
    """tau = e^u: f(u) = 4 u - 2 e^u, with mean 4 m - 2 exp(m + s^2 / 2)."""
    guide = bbvi.MeanField({"tau": bbvi.LogNormal()})
    problem = bbvi.Problem(lambda x, z: 3 * jnp.log(z["tau"]) - 2 * z["tau"], guide)
    m, s = 0.3, 0.6
    params = bbvi.Params(guide.params_at({"tau": jnp.exp(jnp.asarray(m))}, s))
    mean = 2 * np.exp(m + s**2 / 2)
    gradients = replicates(bbvi.TaylorControlVariate(2), problem, params, state_with(*coefficients))
    check_mean(gradients, np.array([mean - 4, s**2 * mean - 1]), power=0.05)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_first_step_is_unbiased(num_samples):
    check_estimator(bbvi.TaylorControlVariate(num_samples))


# Exact variances.


@pytest.mark.parametrize("coefficients", [(0.0, 0.0, 0.0), (1.0, 1.0, 0.7), (1.5625, 2.0, 1.469)])
def test_variance_on_a_quartic(coefficients):
    """f = z^4 / 4: without, with fixed, and with the best coefficients (b bounded by 2)."""
    m, s = 0.8, 0.6
    exact = quartic_variances(m, s, *coefficients)
    if coefficients[0] == 0:
        np.testing.assert_allclose(exact[0], 9 * m**4 * s**2 + 36 * m**2 * s**4 + 15 * s**6)
        np.testing.assert_allclose(exact[0], 5.0129, rtol=1e-4)
    if coefficients[0] == 1:
        np.testing.assert_allclose(exact[0], 18 * m**2 * s**4 + 15 * s**6)
        np.testing.assert_allclose(exact[0], 2.1928, rtol=1e-4)
    problem, params = quartic_problem(m, s)
    estimator = bbvi.TaylorControlVariate(1)
    gradients = replicates(estimator, problem, params, state_with(*coefficients), 4 * REPLICATES)
    check_variance(gradients[:, 0], exact[0])
    check_variance(gradients[:, 1], exact[1], power=0.3)


# What is learned.


def test_learned_coefficients():
    """The least-squares ones, from a long past: 1 + s^2/m^2, 1 + 9 s^2/m^2, 3 m^2 s^2 + 6 s^4."""
    m, s = 2.0, 0.5
    problem, params = quartic_problem(m, s)
    estimator = bbvi.TaylorControlVariate(8, decay=0.999)
    state = learned_state(estimator, problem, params, 20_000)
    (a, b), d = coefficients(state)
    np.testing.assert_allclose(state.weight, 1, rtol=1e-3)
    np.testing.assert_allclose(a, [1 + s**2 / m**2], rtol=0.05)
    np.testing.assert_allclose(b, [1 + 9 * s**2 / m**2], rtol=0.05)
    np.testing.assert_allclose(d, [3 * m**2 * s**2 + 6 * s**4], rtol=0.05)


@pytest.mark.parametrize(("num_samples", "ratio"), [(1, 3.0), (8, 1.6)])
def test_learned_coefficients_lower_the_variance(num_samples, ratio):
    """With the default decay, over many pasts: near the least possible, 20 times lower here."""
    m, s = 2.0, 0.3
    problem, params = quartic_problem(m, s)
    estimator = bbvi.TaylorControlVariate(num_samples)
    learn = jax.vmap(lambda key: coefficients(learned_state(estimator, problem, params, 200, key)))
    (by_site, by_entry) = jax.jit(learn)(jax.random.split(jax.random.key(3), 500))
    learned = np.concatenate([by_site[..., 0], by_entry], axis=1)
    variances = np.array([quartic_variances(m, s, *row) for row in learned])
    best = quartic_variances(m, s, 1 + s**2 / m**2, 1 + 9 * s**2 / m**2, 3 * m**2 * s**2 + 6 * s**4)
    plain = np.array(quartic_variances(m, s, 0, 0, 0))
    assert (plain > 20 * np.array(best)).all()
    assert (variances.mean(axis=0) < ratio * np.array(best)).all()
    assert (variances < plain).all()


def test_coefficients_grow_in_and_are_bounded(key):
    problem, params = quartic_problem(0.1, 1.0)  # far beyond what the expansion is good for
    estimator = bbvi.TaylorControlVariate(1, decay=0.9)
    first = learned_state(estimator, problem, params, 1)
    np.testing.assert_allclose(first.weight, 0.1, rtol=1e-5)
    wild = first._replace(products=1e6 * jnp.ones((2, 1)), curvature=jnp.zeros((2, 1)))
    at_most = state_with(0.2, 0.2, 0.0)
    noise = estimator.draw(key, problem)
    got, wanted = (
        estimator.estimate(noise, problem, params, None, state)[0].grads
        for state in (wild, at_most)
    )
    np.testing.assert_allclose(got.guide.normal, wanted.guide.normal, rtol=1e-5)


def test_flat_log_joint():
    """No curvature, so no control: the coefficients stay zero, not 0/0."""
    guide = bbvi.MeanField({"z": bbvi.Normal((2,))})
    problem = bbvi.Problem(lambda x, z: 2 * jnp.sum(z["z"]), guide)
    params = problem.init(jax.random.key(0), None)
    estimator = bbvi.TaylorControlVariate(4)
    state = learned_state(estimator, problem, params, 5)
    np.testing.assert_array_equal(state.squares[0], 0)
    gradients = replicates(estimator, problem, params, state, 10)
    np.testing.assert_allclose(gradients[:, :2], -2, rtol=1e-5)


# Errors.


def test_decay_is_checked():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        bbvi.TaylorControlVariate(4, decay=1)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (bbvi.FullRank({"z": bbvi.Normal()}), "needs a bbvi.MeanField .* got a FullRank"),
        (bbvi.MeanField({"z": bbvi.Gamma()}), r"site 'z' is Gamma\(shape=\(\)\)"),
        (bbvi.MeanField({"z": bbvi.Bernoulli()}), r"site 'z' is Bernoulli\(shape=\(\)\)"),
    ],
)
def test_other_guides_are_refused(guide, message):
    problem = bbvi.Problem(lambda x, z: -1.0 * z["z"], guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=message):
        bbvi.TaylorControlVariate().validate(problem, params, None)


def test_other_objectives_are_refused():
    problem, params = quartic_problem(1.0, 1.0)
    problem = bbvi.Problem(problem.log_joint, problem.guide, bbvi.Iwae(4))
    with pytest.raises(ValueError, match=r"estimates the gradient of bbvi.Elbo\(\) only, got Iwae"):
        bbvi.TaylorControlVariate(4).validate(problem, params, None)


@jax.custom_vjp
def once_differentiable(z):
    return -(z**2)


def host_derivative(z, g):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return (g * jax.pure_callback(lambda z: -2 * z, shape, z, vmap_method="expand_dims"),)


once_differentiable.defvjp(lambda z: (-(z**2), z), host_derivative)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (once_differentiable, "needs a Hessian-vector product of log_joint, which JAX could not"),
        (jnp.round, "log_joint is not differentiable in latent 'z'"),
    ],
)
def test_log_joints_without_second_derivatives_are_refused(f, message):
    guide = bbvi.MeanField({"z": bbvi.Normal()})
    problem = bbvi.Problem(lambda x, z: f(z["z"]), guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=message):
        bbvi.TaylorControlVariate().validate(problem, params, None)
