"""What a call with nothing named does: it finds scale, location and the better mode by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
import models
from bbvi.infer.automatic import can_scout, choose_optimizer, scout
from bbvi.natural_gradient import NaturalState
from bbvi.problem import Problem

FAMILIES = {
    "mean_field": bbvi.MeanField,
    "full_rank": bbvi.FullRank,
    "low_rank": lambda sites: bbvi.LowRank(sites, rank=2),
}
PATHWISE = bbvi.Reparameterization()


def raw_units(x, z):
    """Two correlated coefficients far from each other in size, and a scale."""
    a, b = (z["w"][0] - 4e4) / 300.0, (z["w"][1] + 7e-4) / 2e-5
    return -0.5 * (a**2 + b**2 - 1.6 * a * b) / 0.36 + norm.logpdf(jnp.log(z["s"]), 9.0, 0.2)


RAW_SITES = {"w": bbvi.Normal((2,)), "s": bbvi.LogNormal(())}


@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
def test_units_do_not_matter(family):
    result = bbvi.fit(raw_units, FAMILIES[family](RAW_SITES), progress=False)
    assert result.status == "converged"
    z = result.sample(jax.random.key(1), 20_000)
    # log s has density N(9, 0.2) in s itself, so that the latent log s is at 9 + 0.2 ** 2.
    means = (z["w"].mean(0) - jnp.array([4e4, -7e-4])) / jnp.array([300.0, 2e-5])
    log_mean = (jnp.log(z["s"]).mean() - 9.04) / 0.2
    np.testing.assert_allclose([*means, log_mean], 0.0, atol=0.1)
    # The mean-field optimum has the conditional deviations, 0.6 of the marginal ones.
    sds = z["w"].std(0) / jnp.array([300.0, 2e-5])
    np.testing.assert_allclose(sds, 1.0 if family == "full_rank" else 0.6, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *(("kidscore_momhsiq", "full_rank"), ("kidscore_momhsiq", "mean_field")),
        # An intercept 2,000 years before the data: two latents with a correlation of 0.99999.
        *(("kilpisjarvi", "full_rank"), ("kilpisjarvi", "mean_field"), ("arK", "full_rank")),
    ],
)
def test_posteriors_in_raw_units_are_found_without_a_setting(name, family):
    target = models.get(name)
    reference = target.reference()
    result = bbvi.fit(target.log_joint, target.guides[family](), target.data(), progress=False)
    z = result.sample(jax.random.key(1), 20_000)
    for site, mean in reference.mean.items():
        sd = reference.sd[site]
        assert np.abs((np.mean(z[site], 0) - mean) / sd).max() < 0.15  # float32, and one draw of it
        if family == "full_rank":
            assert np.abs(np.log(np.std(z[site], 0) / sd)).max() < 0.15


def not_so_far(x, z):
    """The same within reach of a short run."""
    a, b = (z["w"][0] - 400.0) / 30.0, (z["w"][1] + 0.7) / 0.02
    return -0.5 * (a**2 + b**2 - 1.2 * a * b) / 0.64 + norm.logpdf(jnp.log(z["s"]), 3.0, 0.2)


def two_modes(x, z):
    """Most of the mass is in a mode that a start at zero does not find."""
    lesser = norm.logpdf(z["a"], 0.0, 0.05) - 8.0
    return jnp.logaddexp(lesser, norm.logpdf(z["a"], 1.5, 0.05))


def test_the_better_of_two_modes_is_found():
    guide = bbvi.MeanField({"a": bbvi.Normal()})
    found = bbvi.fit(two_modes, guide, progress=False).summary()["a"]["mean"]
    assert abs(found - 1.5) < 0.05
    start = guide.params_at({"a": 0.0}, 0.05)
    stuck = bbvi.fit(two_modes, guide, init_params=start, progress=False).summary()["a"]["mean"]
    assert abs(stuck) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_scouts_find_location_and_scale(family):
    guide = FAMILIES[family](RAW_SITES)
    problem = Problem(not_so_far, guide)
    own = problem.init(jax.random.key(0), None)
    found = scout(problem, jax.random.key(1), own, None).params
    again = scout(problem, jax.random.key(1), own, None).params
    jax.tree.map(np.testing.assert_array_equal, found, again)
    z = problem.sample(problem.base_noise(jax.random.key(2), 1000), found, None)
    assert abs(float(z["w"][:, 0].mean()) - 400) < 30
    assert 0.4 < float(z["w"][:, 0].std()) / 30 < 1.4


def test_scouts_of_many_dimensions_are_mean_field():
    scale = jnp.geomspace(1e-3, 1e3, 70)
    guide = bbvi.FullRank({"w": bbvi.Normal((70,))})
    problem = Problem(lambda x, z: norm.logpdf(z["w"] / scale, 1.0).sum(), guide)
    own = problem.init(jax.random.key(0), None)
    found = scout(problem, jax.random.key(1), own, None).params.guide
    np.testing.assert_array_equal(found["lower"], 0.0)
    np.testing.assert_allclose(found["loc"] / scale, 1.0, atol=0.6)
    np.testing.assert_allclose(found["log_diagonal"], jnp.log(scale), atol=0.6)


def test_scouts_go_on_until_they_are_level():
    """The mean of many correlated latents, which mean field cannot walk to from where it starts."""
    features = np.random.default_rng(0).standard_normal((200, 12)) @ np.diag(
        np.geomspace(1, 1e3, 12)
    )
    features += 50 * features[:, :1]

    def log_joint(x, z):
        return norm.logpdf(x @ jnp.linspace(-1.0, 1.0, 12), x @ z["w"], 1.0).sum()

    problem = Problem(log_joint, bbvi.MeanField({"w": bbvi.Normal((12,))}))
    x = jnp.asarray(features, jnp.float32)
    found = scout(problem, jax.random.key(1), problem.init(jax.random.key(0), x), x)
    assert int(found.num_steps) > 4 * 256  # of each of four runs: a fixed number was too few
    sd = np.sqrt(np.diag(np.linalg.inv(features.T @ features)))
    loc, log_scale = problem.guide.mean_field(found.params.guide)
    np.testing.assert_allclose((loc - np.linspace(-1.0, 1.0, 12)) / sd, 0.0, atol=0.3)
    conditional = -0.5 * np.log((features**2).sum(axis=0))
    np.testing.assert_allclose(log_scale, conditional, atol=0.5)


def test_where_nothing_is_finite_the_start_is_kept():
    problem = Problem(lambda x, z: jnp.nan * z["a"], bbvi.FullRank({"a": bbvi.Normal()}))
    own = problem.init(jax.random.key(0), None)
    found = scout(problem, jax.random.key(1), own, None).params
    jax.tree.map(np.testing.assert_array_equal, found, own)


def test_restarts_are_scouted_one_by_one():
    guide = bbvi.FullRank(RAW_SITES)
    result = bbvi.fit(not_so_far, guide, num_restarts=3, num_steps=50, progress=False)
    locs = result.restarts.states.params.guide["loc"][:, 1]  # of w[0]
    assert len(np.unique(locs)) == 3
    np.testing.assert_allclose(locs, 400, atol=60)


def is_natural(log_joint, guide, estimator, objective=None, *, has_batches=False):
    problem = Problem(log_joint, guide, objective or bbvi.Elbo())
    chosen = choose_optimizer(problem, estimator, has_batches=has_batches)[0]
    assert isinstance(chosen, optax.GradientTransformation)
    return isinstance(chosen.init(problem.init(jax.random.key(0), None)), NaturalState)


def test_natural_gradients_are_for_little_noise():
    normal, mixed = bbvi.MeanField(RAW_SITES), bbvi.MeanField(RAW_SITES | {"c": bbvi.Bernoulli(())})
    per_site = bbvi.PerSite({"w": PATHWISE, "s": PATHWISE, "c": bbvi.LocalExpectation(8)})
    score = bbvi.PerSite({"w": PATHWISE, "s": bbvi.ScoreFunction(8), "c": bbvi.ScoreFunction(8)})
    assert is_natural(raw_units, normal, PATHWISE)
    assert is_natural(raw_units, mixed, per_site)
    assert is_natural(raw_units, bbvi.FullRank({"w": bbvi.Normal((256,))}), PATHWISE)
    assert not is_natural(raw_units, bbvi.FullRank({"w": bbvi.Normal((257,))}), PATHWISE)
    assert is_natural(raw_units, bbvi.MeanField({"w": bbvi.Normal((1000,))}), PATHWISE)
    assert not is_natural(raw_units, mixed, score)
    assert not is_natural(raw_units, normal, PATHWISE, has_batches=True)
    assert not is_natural(raw_units, normal, bbvi.ScoreFunction(8))
    assert not is_natural(raw_units, normal, bbvi.DoublyReparameterized(8), bbvi.Iwae(8))


def test_only_normal_sites_are_scouted():
    mixed = bbvi.MeanField(RAW_SITES | {"g": bbvi.Gamma(())})
    assert can_scout(Problem(raw_units, bbvi.MeanField(RAW_SITES)), PATHWISE)
    assert not can_scout(Problem(raw_units, mixed), PATHWISE)
    annealed = bbvi.Tempered(optax.linear_schedule(0.1, 1.0, 100))
    assert not can_scout(Problem(raw_units, bbvi.MeanField(RAW_SITES), annealed), PATHWISE)
    assert not can_scout(Problem(raw_units, bbvi.MeanField(RAW_SITES)), bbvi.ScoreFunction(8))
