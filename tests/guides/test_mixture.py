"""Mixtures of normals as a family: densities, and gradients through draws against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm
from scipy import optimize, stats

import bbvi
from bbvi import supports
from bbvi.guides.mixture import _draw
from bbvi.testing import check_guide, check_mean, replicate_gradients
from tests.estimators.oracles import check_variance

PARAMS = {
    "logits": jnp.array([0.3, -0.5, 0.8]),
    "loc": jnp.array([-1.5, 0.2, 1.4]),
    "log_scale": jnp.array([-0.4, 0.1, -0.7]),
}


def scipy_parts(params):
    """Weights, locations and scales in float64."""
    logits, loc, log_scale = (
        np.asarray(params[name], np.float64) for name in ("logits", "loc", "log_scale")
    )
    weights = np.exp(logits - np.logaddexp.reduce(logits))
    return weights, loc, np.exp(log_scale)


@pytest.mark.parametrize(
    "family",
    [
        bbvi.NormalMixture(1, (2,)),
        bbvi.NormalMixture(3, (2, 2)),
        bbvi.NormalMixture(2, (2,), supports.positive),
        bbvi.NormalMixture(2, support=supports.interval(-1.0, 3.0)),
    ],
    ids=repr,
)
def test_parts_of_the_family_agree(family):
    check_guide(bbvi.MeanField({"z": family}))


def test_log_density_is_scipys():
    family = bbvi.NormalMixture(3, (5,))
    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (5, 3)), PARAMS)
    z = np.array([-30.0, -1.0, 0.0, 2.0, 40.0])
    weights, loc, scale = scipy_parts(PARAMS)
    wanted = np.logaddexp.reduce(np.log(weights) + stats.norm.logpdf(z[:, None], loc, scale), 1)
    np.testing.assert_allclose(family.log_probs(params, jnp.asarray(z)), wanted, rtol=1e-5)


def test_one_component_is_a_normal():
    mixture, normal = bbvi.NormalMixture(1, (3,), supports.positive), bbvi.LogNormal((3,))
    loc = jnp.array([0.5, -1.0, 2.0])
    by_normal = {"loc": loc, "log_scale": loc / 3}
    z = jnp.array([0.3, 1.0, 9.0])
    params = {"logits": jnp.zeros((3, 1))} | {k: v[:, None] for k, v in by_normal.items()}
    np.testing.assert_allclose(
        mixture.log_probs(params, z), normal.log_probs(by_normal, z), rtol=1e-5
    )

    def draw(params):
        return mixture.sample((jnp.zeros(3), jnp.array([1.0, -2.0, 0.3])), params)

    wanted = normal.sample(jnp.array([1.0, -2.0, 0.3]), by_normal)
    np.testing.assert_allclose(draw(params), wanted, rtol=1e-6)
    got = jax.jacrev(draw)(params)
    exact = jax.jacrev(lambda p: normal.sample(jnp.array([1.0, -2.0, 0.3]), p))(by_normal)
    np.testing.assert_allclose(got["loc"][..., 0], exact["loc"], rtol=1e-5)
    np.testing.assert_allclose(got["log_scale"][..., 0], exact["log_scale"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got["logits"], 0)


def test_draws_follow_the_distribution(key):
    family = bbvi.NormalMixture(3, (200_000,))
    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (200_000, 3)), PARAMS)
    z = np.asarray(family.sample(family.base_noise(key), params))
    weights, loc, scale = scipy_parts(PARAMS)
    distance = stats.kstest(z, lambda at: stats.norm.cdf(at[:, None], loc, scale) @ weights)
    assert distance.pvalue > 1e-6
    assert distance.statistic < 0.01


# Gradients.


def through_the_draw(u, params):
    """Derivatives of a draw that came out at u, as the first component's."""
    scale = jnp.exp(params["log_scale"])
    normal = (u - params["loc"][0]) / scale[0]
    arguments = tuple(params[name] for name in ("logits", "loc", "log_scale"))
    return jax.jacrev(lambda *p: _draw(jnp.zeros(()), normal, *p), argnums=(0, 1, 2))(*arguments)


@pytest.mark.parametrize("u", [-9.0, -3.0, -0.6, 0.4, 1.3, 3.0, 8.0])
def test_derivative_moves_the_quantile(u):
    """F(u(phi); phi) stays as it is, solved in double precision; far out in the tails as well."""
    weights, loc, scale = scipy_parts(PARAMS)
    flat = np.concatenate([np.asarray(PARAMS[n], np.float64) for n in PARAMS])
    is_lower = stats.norm.cdf(u, loc, scale) @ weights < 0.5

    def log_tail(at, flat):
        logits, loc, log_scale = np.split(flat, 3)
        log_weights = logits - np.logaddexp.reduce(logits)
        log_tails = (stats.norm.logcdf if is_lower else stats.norm.logsf)(
            at, loc, np.exp(log_scale)
        )
        return np.logaddexp.reduce(log_weights + log_tails)

    level, step = log_tail(u, flat), 1e-5

    def quantile(shift):
        found = optimize.root_scalar(
            lambda at: log_tail(at, flat + shift) - level, bracket=(u - 1, u + 1), xtol=1e-13
        )
        return found.root

    exact = [(quantile(e) - quantile(-e)) / (2 * step) for e in step * np.eye(flat.size)]
    got = np.concatenate([np.asarray(d) for d in through_the_draw(jnp.asarray(u), PARAMS)])
    np.testing.assert_allclose(got, exact, rtol=2e-3, atol=2e-5)


def test_weights_that_vanish_do_no_harm():
    """Logits of -200: the component is never drawn, and no derivative overflows."""
    family = bbvi.NormalMixture(3)
    params = PARAMS | {"logits": jnp.array([0.0, 0.0, -200.0]), "loc": jnp.array([-60.0, 60, 0])}
    for uniform in (0.0, 0.49, 0.5, np.nextafter(np.float32(1), np.float32(0))):
        for deviation in (-5.5, 0.0, 5.5):
            noise = jnp.asarray(uniform, jnp.float32), jnp.asarray(deviation, jnp.float32)
            z, pullback = jax.vjp(lambda p, noise=noise: family.sample(noise, p), params)
            assert abs(abs(float(z)) - 60) < 10
            (moved,) = pullback(jnp.ones(()))
            assert np.isfinite(ravel_pytree(moved)[0]).all()


def grid(params, num=20_001):
    """Points that cover a mixture, and their weights under it, differentiable."""
    u = jnp.linspace(-12.0, 12.0, num)
    log_q = jax.nn.logsumexp(
        jax.nn.log_softmax(params["logits"])
        + norm.logpdf(u[:, None], params["loc"], jnp.exp(params["log_scale"])),
        axis=1,
    )
    return u, log_q, jnp.exp(log_q) * (u[1] - u[0])


@pytest.mark.parametrize("entropy", ["monte_carlo", "stick_the_landing"])
@pytest.mark.parametrize("support", [supports.real, supports.positive], ids=repr)
def test_unbiased_against_quadrature(support, entropy):
    """All three parameters, and a log joint that is no polynomial."""

    def log_joint_at(u):
        return jnp.sin(2 * u) - 0.3 * jnp.abs(u - 0.5) ** 1.5

    def log_joint(x, z):
        u = support.unconstrain(z["z"])
        return log_joint_at(u) - support.log_det(u)

    with jax.numpy_rank_promotion("allow"), jax.enable_x64(True):

        def loss(params):
            u, log_q, mass = grid(params)
            return jnp.sum(mass * (log_q - log_joint_at(u)))

        exact = ravel_pytree(jax.grad(loss)(jax.tree.map(jnp.float64, PARAMS)))[0]
    guide = bbvi.MeanField({"z": bbvi.NormalMixture(3, support=support)})
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(0), None)
    params = params._replace(guide=params.guide._replace(families={"z": PARAMS}))
    estimator = bbvi.Reparameterization(2, entropy)
    estimator.validate(problem, params, None)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 50_000)
    check_mean(gradients, exact, power=0.05)


def test_variance_against_quadrature():
    """f = z: the variance of the derivative of a draw, by quadrature of the squared formula."""
    problem = bbvi.Problem(lambda x, z: z["z"], bbvi.MeanField({"z": bbvi.NormalMixture(3)}))
    weights, loc, scale = scipy_parts(PARAMS)
    u = np.linspace(-12, 12, 200_001)[:, None]
    densities = weights * stats.norm.pdf(u, loc, scale)
    q = densities.sum(axis=1, keepdims=True)
    below = stats.norm.cdf(u, loc, scale)
    by_logits = -weights * (below - (below @ weights)[:, None]) / q
    derivatives = np.hstack([densities / q, densities / q * (u - loc), by_logits])
    mass = q * (u[1] - u[0])
    exact = (mass * derivatives**2).sum(axis=0) - (mass * derivatives).sum(axis=0) ** 2
    params = problem.init(jax.random.key(0), None)
    params = params._replace(guide=params.guide._replace(families={"z": PARAMS}))

    # The gradient of the draw alone: that of the entropy is taken off.
    def derivative(key):
        noise = problem.base_noise(key, 1)
        return ravel_pytree(jax.grad(lambda p: problem.sample(noise, p, None)["z"][0])(params))[0]

    gradients = jax.jit(jax.vmap(derivative))(jax.random.split(jax.random.key(1), 200_000))
    assert list(sorted(PARAMS)) == ["loc", "log_scale", "logits"]
    check_variance(gradients, exact, power=0.2)


# Fits.


def log_evidence(log_joint, x):
    u = np.linspace(-15, 15, 200_001)
    log_p = np.asarray(jax.vmap(lambda m: log_joint(x, {"mu": m}))(jnp.asarray(u)), np.float64)
    return np.logaddexp.reduce(log_p) + np.log(u[1] - u[0])


def two_modes(x, z):
    """Unequal ones, four deviations apart; the evidence is exp(0.7)."""
    left = jnp.log(0.3) + norm.logpdf(z["mu"], -2.0, 0.6)
    return 0.7 + jnp.logaddexp(left, jnp.log(0.7) + norm.logpdf(z["mu"], 2.0, 1.0))


def square_root(x, z):
    """The square of mu is observed: modes 28 deviations apart, and not quite normal."""
    return norm.logpdf(z["mu"], 0.0, 3.0) + norm.logpdf(x, z["mu"] ** 2, 1.0).sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log_joint", "estimator", "of_normal"),
    [(two_modes, bbvi.Reparameterization(8), 0.3), (square_root, bbvi.ScoreFunction(32), 0.6)],
)
def test_evidence_of_bimodal_posteriors(log_joint, estimator, of_normal):
    """The ELBO reaches the evidence up to 0.01 nats; a normal's stays at one mode."""
    x = jnp.array([3.0, 5.0, 4.5])
    exact = log_evidence(log_joint, x)

    def gap(family):
        guide = bbvi.MeanField({"mu": family})
        result = bbvi.fit(
            log_joint,
            guide,
            x,
            key=jax.random.key(0),
            estimator=estimator,
            num_steps=3000,
            progress=False,
        )
        elbo = result.elbo(jax.random.key(1), 20_000)
        return exact - elbo.value, elbo.standard_error

    mixture, error = gap(bbvi.NormalMixture(2))
    assert error < 0.002
    assert -4.5 * error < mixture < 0.01
    assert gap(bbvi.Normal())[0] > of_normal


# Errors.


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="NormalMixture needs num_components >= 1 as an int, got"):
        bbvi.NormalMixture(0)
    with pytest.raises(ValueError, match=r"support 'simplex' constrains several together"):
        bbvi.NormalMixture(2, (3,), supports.simplex)
