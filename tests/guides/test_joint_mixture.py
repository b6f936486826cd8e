"""Mixtures of joint guides: densities, draws, and the masses of modes far apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy import stats

import bbvi
from bbvi.testing import check_guide

SITES = {"w": bbvi.Normal((2,)), "tau": bbvi.LogNormal()}
PLANE = {"w": bbvi.Normal((2,))}


@pytest.mark.parametrize("family", [bbvi.FullRank, bbvi.MeanField], ids=lambda f: f.__name__)
def test_parts_of_the_guide_agree(family):
    check_guide(bbvi.Mixture(family(SITES), 3), num_samples=2000)


def test_density_and_draws_are_those_of_the_mixture():
    guide = bbvi.Mixture(bbvi.FullRank(PLANE), 2)
    near, far = np.array([0.0, 1.0]), np.array([6.0, -2.0])
    params = guide.params_at([{"w": near}, {"w": far}], 0.5, [1.0, 3.0])
    at = jnp.array([[0.2, 0.7], [4.0, -1.0], [30.0, 0.0]])
    got = jax.vmap(lambda w: guide.log_prob(params, None, {"w": w}))(at)
    by_component = [stats.norm.logpdf(at, mean, 0.5).sum(axis=1) for mean in (near, far)]
    wanted = np.logaddexp(np.log(0.25) + by_component[0], np.log(0.75) + by_component[1])
    np.testing.assert_allclose(got, wanted, rtol=1e-4)

    problem = bbvi.Problem(lambda x, z: 0.0, guide)
    noise = problem.base_noise(jax.random.key(0), 20_000)
    w = np.asarray(problem.sample(noise, bbvi.Params(params), None)["w"])
    is_far = w[:, 0] > 3.0
    assert abs(is_far.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 20_000)
    np.testing.assert_allclose(w[is_far].mean(axis=0), far, atol=0.03)
    np.testing.assert_allclose(w[~is_far].std(axis=0), 0.5, atol=0.03)


def two_modes(x, z):
    """Masses 0.3 and 0.7, ten deviations apart, one of them correlated; log Z is 0."""
    a, b = z["w"]
    far = norm.logpdf(a, 6.0) + norm.logpdf(b, 8.0 + 0.8 * (a - 6.0), 0.6)
    near = norm.logpdf(a) + norm.logpdf(b)
    return jnp.logaddexp(jnp.log(0.3) + near, jnp.log(0.7) + far)


def check_two_modes(guide, result):
    assert result.status == "converged"
    draws = result.sample(jax.random.key(1), 20_000)["w"]
    weights = jax.nn.softmax(result.params.guide["logits"])
    is_far = np.asarray(draws[:, 1]) > 4
    assert abs(is_far.mean() - 0.7) < 0.02
    np.testing.assert_allclose(sorted(np.asarray(weights)), [0.3, 0.7], atol=0.01)
    elbo = result.elbo(jax.random.key(2), 20_000)
    assert elbo.standard_error < 0.003
    assert -0.02 < elbo.value < 4.5 * elbo.standard_error


@pytest.mark.slow
def test_masses_of_modes_ten_deviations_apart(optimized):
    """From rough modes with equal weights."""
    guide = bbvi.Mixture(bbvi.FullRank(PLANE), 2)
    start = guide.params_at([{"w": jnp.zeros(2)}, {"w": jnp.array([5.0, 8.0])}], 0.3)
    result = bbvi.fit(two_modes, guide, init_params=start, progress=False)
    check_two_modes(guide, result)


@pytest.mark.slow
def test_the_plain_call_finds_modes_by_its_own_starts(optimized):
    def nearer(x, z):  # the same in units in which starts between -2 and 2 meet both
        return two_modes(x, {"w": 4.0 * z["w"] + jnp.array([3.0, 4.0])}) + jnp.log(16.0)

    guide = bbvi.Mixture(bbvi.FullRank(PLANE), 2)
    result = bbvi.fit(nearer, guide, key=jax.random.key(3), progress=False)
    weights = jax.nn.softmax(result.params.guide["logits"])
    np.testing.assert_allclose(sorted(np.asarray(weights)), [0.3, 0.7], atol=0.01)
    elbo = result.elbo(jax.random.key(2), 20_000)
    assert -0.02 < elbo.value < 4.5 * elbo.standard_error


def test_components_come_from_fitted_parameters():
    family = bbvi.MeanField(PLANE)
    guide = bbvi.Mixture(family, 2)
    fitted = [family.params_at({"w": jnp.full(2, m)}, s) for m, s in ((0.0, 0.1), (5.0, 2.0))]
    params = guide.from_components(fitted, [2.0, 6.0])
    np.testing.assert_allclose(jnp.exp(params["logits"]), [0.25, 0.75], rtol=1e-6)
    for k, one in enumerate(fitted):
        np.testing.assert_array_equal(params["components"].normal[k], one.normal)


def test_a_step_moves_each_component_as_if_it_were_alone():
    """Far apart, the step of natural gradient of a component does not depend on its weight."""
    family = bbvi.FullRank(PLANE)
    guide = bbvi.Mixture(family, 2)
    fitted = [family.params_at({"w": jnp.full(2, m)}, 1.0) for m in (0.0, 50.0)]
    params = guide.from_components(fitted, [0.02, 0.98])

    def loss(params):  # by weight, a divergence from each component
        weights, parts = jax.nn.softmax(params["logits"]), params["components"]
        return jnp.sum(weights * jax.vmap(lambda p: jnp.sum(p["loc"] * jnp.arange(1.0, 3)))(parts))

    gradient, rest = guide.local_gradient(params, jax.grad(loss)(params))
    np.testing.assert_allclose(gradient["loc"], [[1, 2], [1, 2]], rtol=1e-5)
    assert set(rest) == {"logits", "components"}
    assert guide.local_norm(gradient).shape == ()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: bbvi.Mixture(bbvi.Normal(), 2),
            TypeError,
            "Mixture needs a MeanField.*got Normal",
        ),
        (
            lambda: bbvi.Mixture(bbvi.FullRank(PLANE), 0),
            ValueError,
            "num_components must be an int",
        ),
        (
            lambda: bbvi.Mixture(bbvi.MeanField({"c": bbvi.Bernoulli()}), 2),
            ValueError,
            r"sites \['c'\] are not reparameterized",
        ),
        (
            lambda: bbvi.Mixture(bbvi.FullRank(PLANE), 2).params_at([{"w": jnp.zeros(2)}]),
            ValueError,
            "num_components=2, got 1 components",
        ),
        (
            lambda: bbvi.Mixture(bbvi.FullRank(PLANE), 2).params_at(
                [{"w": jnp.zeros(2)}] * 2, weights=[1.0, 0.0]
            ),
            ValueError,
            "weights must be positive and finite",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_pathwise_estimators_are_refused():
    guide = bbvi.Mixture(bbvi.FullRank(PLANE), 2)
    with pytest.raises(ValueError, match="not reparameterizable"):
        bbvi.fit(two_modes, guide, estimator=bbvi.Reparameterization(), num_steps=2)
