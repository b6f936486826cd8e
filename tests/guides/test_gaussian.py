"""Full-rank and low-rank Gaussians against dense multivariate normals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bbvi
from bbvi import supports
from bbvi.testing import check_guide

LATENTS = {
    "dict": {"w": bbvi.Normal((2,)), "tau": bbvi.LogNormal(())},
    "tuple": (bbvi.Normal((2,)), bbvi.Normal((2,), support=supports.ordered)),
    "nested": {"a": [bbvi.Normal(()), {"b": bbvi.Normal((3,), support=supports.simplex)}]},
    "single": bbvi.Normal((2, 2), support=supports.positive_definite),
    "correlation": {"r": bbvi.Normal((3, 3), support=supports.correlation_cholesky)},
    "interval": (bbvi.Normal((2,), support=supports.interval(-1.0, 2.0)), bbvi.Normal((1,))),
}
KINDS = {"full": bbvi.FullRank, "low": lambda sites: bbvi.LowRank(sites, rank=2)}


def real_guide(kind):
    """Over five real latents, with parameters that have every correlation."""
    guide = KINDS[kind]({"a": bbvi.Normal((3,)), "b": bbvi.Normal((2,))})
    params = guide.init(jax.random.key(0), None)
    rng = np.random.default_rng(0)
    params = {
        name: leaf + jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype)
        for name, leaf in params.items()
    }
    if kind == "full":
        params["lower"] = jnp.tril(params["lower"], -1)
    noise = guide.base_noise(jax.random.key(7))
    mixing = jax.jacobian(guide.location)(noise, params)  # u = loc + mixing @ noise
    return guide, params, np.asarray(mixing, np.float64) @ np.asarray(mixing, np.float64).T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latents", LATENTS)
def test_parts_of_the_guide_agree(kind, latents):
    check_guide(KINDS[kind](LATENTS[latents]), num_samples=2000)


@pytest.mark.parametrize("kind", KINDS)
def test_density_entropy_and_moments_are_those_of_the_dense_normal(kind):
    guide, params, covariance = real_guide(kind)
    reference = stats.multivariate_normal(np.asarray(params["loc"], np.float64), covariance)
    u = np.linspace(-1.0, 1.5, 5)
    z = {"a": jnp.asarray(u[:3]), "b": jnp.asarray(u[3:])}
    np.testing.assert_allclose(guide.log_prob(params, None, z), reference.logpdf(u), rtol=1e-4)
    np.testing.assert_allclose(guide.vector_entropy(params), reference.entropy(), rtol=1e-4)

    problem = bbvi.Problem(lambda x, z: 0.0, guide)
    noise = problem.base_noise(jax.random.key(1), 10_000)
    draws = problem.sample(noise, bbvi.Params(params), None)
    vectors = np.concatenate([draws["a"], draws["b"]], axis=1)
    error = np.cov(vectors.T) - covariance
    assert np.abs(error).max() < 6 * np.diag(covariance).max() * np.sqrt(2 / 10_000)


@pytest.mark.parametrize("kind", KINDS)
def test_density_on_a_support_subtracts_the_volume(kind):
    guide = KINDS[kind]({"tau": bbvi.LogNormal((2,))})
    params = guide.init(jax.random.key(3), None)
    tau = jnp.array([0.5, 2.0])
    real = KINDS[kind]({"tau": bbvi.Normal((2,))})
    wanted = real.log_prob(params, None, {"tau": jnp.log(tau)}) - jnp.log(tau).sum()
    np.testing.assert_allclose(guide.log_prob(params, None, {"tau": tau}), wanted, rtol=1e-5)


def test_gradient_of_the_upper_triangle_is_zero():
    guide, params, _ = real_guide("full")
    noise = guide.base_noise(jax.random.key(2))
    gradient = jax.grad(lambda p: sum(leaf.sum() for leaf in guide.sample(noise, p, None).values()))
    lower = np.asarray(gradient(params)["lower"])
    assert (np.triu(lower) == 0).all()
    assert (np.abs(lower[np.tril_indices(5, -1)]) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("site", "z"),
    [
        (bbvi.Normal((2,)), [1.0, -2.0]),
        (bbvi.LogNormal((2,)), [0.5, 3.0]),
        (bbvi.Normal((3,), support=supports.simplex), [0.2, 0.5, 0.3]),
        (bbvi.Normal((2, 2), support=supports.positive_definite), [[2.0, 0.5], [0.5, 1.0]]),
    ],
    ids=repr,
)
def test_params_at_puts_draws_at_the_value(kind, site, z):
    guide = KINDS[kind](site)
    params = bbvi.Params(guide.params_at(jnp.array(z), scale=0.02))
    problem = bbvi.Problem(lambda x, z: 0.0, guide)
    draws = problem.sample(problem.base_noise(jax.random.key(0), 500), params, None)
    np.testing.assert_allclose(np.mean(draws, axis=0), z, atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_double_precision(kind):
    with jax.enable_x64(True):
        guide, params, covariance = real_guide(kind)
        z = guide.sample(guide.base_noise(jax.random.key(0)), params, None)
        log_q = guide.log_prob(params, None, z)
        assert log_q.dtype == z["a"].dtype == jnp.float64
        reference = stats.multivariate_normal(params["loc"], covariance)
        wanted = reference.logpdf(np.concatenate([z["a"], z["b"]]))
        np.testing.assert_allclose(log_q, wanted, rtol=1e-9)


def test_guides_compare_by_value_and_print():
    sites = {"w": bbvi.Normal((2,))}
    assert bbvi.FullRank(sites) == bbvi.FullRank(dict(sites))
    assert hash(bbvi.LowRank(sites, rank=2)) == hash(bbvi.LowRank(sites, rank=2))
    assert bbvi.LowRank(sites, rank=2) != bbvi.LowRank(sites, rank=1)
    assert bbvi.FullRank(sites) != bbvi.MeanField(sites)
    assert repr(bbvi.FullRank(sites)) == "FullRank({'w': Normal(shape=(2,), support=real)})"
    assert (
        repr(bbvi.LowRank(sites, 2)) == "LowRank({'w': Normal(shape=(2,), support=real)}, rank=2)"
    )


def test_one_site_covers_all_latents():
    (site,) = bbvi.FullRank({"w": bbvi.Normal((2,)), "b": bbvi.Normal()}).sites()
    assert site.leaves == ("b", "w")
    assert site.reparameterized


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: bbvi.LowRank(s, rank=0), ValueError, "rank must be an int of at least 1, got 0"),
        (lambda s: bbvi.LowRank(s, rank=1.5), ValueError, "rank must be an int of at least 1, got"),
        (
            lambda s: bbvi.FullRank({"g": bbvi.Gamma()}),
            TypeError,
            "FullRank got Gamma.*'g'.*Normal",
        ),
        (lambda s: bbvi.FullRank({"g": (3,)}), TypeError, "FullRank got 3 for latent 'g.0'"),
        (lambda s: bbvi.FullRank({}), ValueError, "FullRank needs at least one latent"),
        (
            lambda s: bbvi.FullRank(s).params_at({"v": jnp.zeros(2)}),
            ValueError,
            "names and nesting must match",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make({"w": bbvi.Normal((2,))})
