"""Mean-field guides over latents of every structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bbvi
from bbvi import supports
from bbvi.testing import check_guide

LATENTS = {
    "dict": {"w": bbvi.Normal((2,)), "tau": bbvi.LogNormal(()), "c": bbvi.Categorical(3, (2,))},
    "tuple": (bbvi.Laplace(()), bbvi.Normal((2,)), bbvi.Bernoulli((2,))),
    "nested": {"a": [bbvi.StudentT(()), {"b": bbvi.Normal((3,), support=supports.simplex)}]},
    "single": bbvi.Normal((3,)),
    "single_discrete": bbvi.Bernoulli((2, 2)),
    "no_normal": {"p": bbvi.Gamma(()), "t": bbvi.Categorical(3)},
}


def draw(guide, key=0):
    params = guide.init(jax.random.key(key), None)
    return params, guide.sample(guide.base_noise(jax.random.key(key + 1)), params, None)


@pytest.mark.parametrize("latents", LATENTS)
def test_parts_of_the_guide_agree(latents):
    check_guide(bbvi.MeanField(LATENTS[latents]), num_samples=2000)


@pytest.mark.parametrize("latents", LATENTS)
def test_draws_have_the_structure_of_the_sites(latents):
    sites = LATENTS[latents]
    guide = bbvi.MeanField(sites)
    _, z = draw(guide)
    is_family = lambda leaf: isinstance(leaf, bbvi.guides.Family)  # noqa: E731
    wanted = jax.tree.map(lambda family: family.shape, sites, is_leaf=is_family)
    assert jax.tree.map(jnp.shape, z) == wanted


def test_log_density_is_the_sum_of_independent_ones():
    guide = bbvi.MeanField({"w": bbvi.Normal((2,)), "g": bbvi.Gamma(()), "b": bbvi.Bernoulli()})
    params, z = draw(guide)
    by_site = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), guide.site_params(params))
    w = stats.norm(by_site["w"]["loc"], np.exp(by_site["w"]["log_scale"])).logpdf(z["w"]).sum()
    shape, rate = np.exp(by_site["g"]["log_concentration"]), np.exp(by_site["g"]["log_rate"])
    g = stats.gamma(shape, scale=1 / rate).logpdf(z["g"])
    b = stats.bernoulli(1 / (1 + np.exp(-by_site["b"]["logits"]))).logpmf(z["b"])
    np.testing.assert_allclose(guide.log_prob(params, None, z), w + g + b, rtol=1e-5)
    terms = guide.site_log_probs(params, None, z)
    assert {name: term.shape for name, term in terms.items()} == {"w": (2,), "g": (), "b": ()}
    np.testing.assert_allclose([terms[n].sum() for n in "wgb"], [w, g, b], rtol=1e-5)


def test_rows_of_a_site_are_its_blocks():
    """Simplexes and the values of an ordered support are drawn jointly, whole axes at a time."""
    guide = bbvi.MeanField(
        {
            "rows": bbvi.Dirichlet((4, 3)),
            "stick": bbvi.Normal((4, 3), support=bbvi.supports.simplex),
            "cuts": bbvi.Normal((5,), support=bbvi.supports.ordered),
            "labels": bbvi.Categorical(3, (2, 2)),
        }
    )
    params, z = draw(guide)
    terms = guide.site_log_probs(params, None, z)
    shapes = {name: term.shape for name, term in terms.items()}
    assert shapes == {"rows": (4,), "stick": (4,), "cuts": (), "labels": (2, 2)}
    one = bbvi.MeanField({"stick": bbvi.Normal((3,), support=bbvi.supports.simplex)})
    row = jax.tree.map(lambda leaf: leaf[2], guide.site_params(params)["stick"])
    alone = one.log_prob(one.from_site_params({"stick": row}), None, {"stick": z["stick"][2]})
    np.testing.assert_allclose(terms["stick"][2], alone, rtol=1e-5)


def test_sites_say_what_is_reparameterized():
    guide = bbvi.MeanField(LATENTS["dict"])
    assert {site.name: site.reparameterized for site in guide.sites()} == {
        "w": True,
        "tau": True,
        "c": False,
    }
    assert not guide.reparameterized
    assert [site.name for site in bbvi.MeanField(LATENTS["nested"]).sites()] == ["a.0", "a.1.b"]


def test_params_at_then_site_params():
    guide = bbvi.MeanField({"w": bbvi.Normal((2,)), "tau": bbvi.LogNormal(), "g": bbvi.Gamma()})
    z = {"w": jnp.array([1.0, 2.0]), "tau": jnp.array(3.0), "g": jnp.array(0.5)}
    by_site = guide.site_params(guide.params_at(z, scale=0.2))
    np.testing.assert_allclose(by_site["w"]["loc"], [1.0, 2.0])
    np.testing.assert_allclose(by_site["tau"]["loc"], np.log(3.0), rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(by_site["w"]["log_scale"]), [0.2, 0.2], rtol=1e-6)
    mean = jnp.exp(by_site["g"]["log_concentration"] - by_site["g"]["log_rate"])
    np.testing.assert_allclose(mean, 0.5, rtol=1e-5)


@pytest.mark.parametrize("latents", LATENTS)
def test_double_precision(latents):
    with jax.enable_x64(True):
        guide = bbvi.MeanField(LATENTS[latents])
        params, z = draw(guide)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
        assert guide.log_prob(params, None, z).dtype == jnp.float64
        noise = guide.base_noise(jax.random.key(5))
        same, log_q = guide.sample_and_log_prob(noise, params, None)
        np.testing.assert_allclose(guide.log_prob(params, None, same), log_q, rtol=1e-8)


def test_guides_compare_by_value_and_print():
    sites = {"w": bbvi.Normal((2,)), "c": bbvi.Categorical(3)}
    assert bbvi.MeanField(sites) == bbvi.MeanField(dict(sites))
    assert hash(bbvi.MeanField(sites)) == hash(bbvi.MeanField(dict(sites)))
    assert bbvi.MeanField(sites) != bbvi.MeanField(sites | {"c": bbvi.Categorical(4)})
    assert bbvi.MeanField({"w": bbvi.Normal()}) != bbvi.MeanField({"v": bbvi.Normal()})
    rebuilt = eval(repr(bbvi.MeanField(sites)), {**vars(bbvi), **vars(supports)})
    assert rebuilt == bbvi.MeanField(sites)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        ({"w": np.zeros(2), "v": 1.0}, "names and nesting must match"),
        ({"w": np.zeros(2)}, "names and nesting must match"),
        ((np.zeros(2), 1.0), "names and nesting must match"),
        ({"w": np.zeros(3), "tau": 1.0}, r"latent 'w' has shape \(3,\).*has shape \(2,\)"),
    ],
)
def test_latents_that_do_not_match_are_refused(z, message):
    guide = bbvi.MeanField({"w": bbvi.Normal((2,)), "tau": bbvi.LogNormal(())})
    params = guide.init(jax.random.key(0), None)
    z = jax.tree.map(jnp.asarray, z)
    with pytest.raises(ValueError, match=message):
        guide.log_prob(params, None, z)
    with pytest.raises(ValueError, match=message):
        guide.params_at(z)


@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        ({"w": 3}, TypeError, r"MeanField got 3 for latent 'w'; expected a site"),
        ({"w": bbvi.Normal}, TypeError, "for latent 'w'; expected a site such as bbvi.Normal"),
        ([bbvi.Normal(), "x"], TypeError, "MeanField got 'x' for latent '1'"),
        ({}, ValueError, "MeanField needs at least one latent, got {}"),
    ],
)
def test_bad_sites_are_refused(sites, error, message):
    with pytest.raises(error, match=message):
        bbvi.MeanField(sites)
