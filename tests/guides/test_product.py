"""Products of guides over disjoint latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi import supports
from bbvi.testing import check_guide

PARTS = (
    bbvi.FullRank({"w": bbvi.Normal((2,)), "s": bbvi.Normal((3,), support=supports.simplex)}),
    bbvi.MeanField({"c": bbvi.Bernoulli((3,)), "nested": {"g": bbvi.Gamma(())}}),
    bbvi.LowRank({"v": bbvi.Normal((3,))}, rank=1),
)


def test_parts_of_the_guide_agree():
    check_guide(bbvi.Product(*PARTS), num_samples=2000)
    check_guide(bbvi.Product(PARTS[0], PARTS[2]), num_samples=2000)


def test_log_density_is_the_sum_of_the_parts():
    guide = bbvi.Product(*PARTS)
    params = guide.init(jax.random.key(0), None)
    z = guide.sample(guide.base_noise(jax.random.key(1)), params, None)
    assert set(z) == {"w", "s", "c", "nested", "v"}
    parts = ({"w": z["w"], "s": z["s"]}, {"c": z["c"], "nested": z["nested"]}, {"v": z["v"]})
    wanted = sum(g.log_prob(p, None, part) for g, p, part in zip(PARTS, params, parts, strict=True))
    np.testing.assert_allclose(guide.log_prob(params, None, z), wanted, rtol=1e-6)


def test_properties_follow_the_parts():
    assert not bbvi.Product(*PARTS).reparameterized
    assert bbvi.Product(PARTS[0], PARTS[2]).reparameterized
    assert bbvi.Product(*PARTS).has_entropy
    assert [site.name for site in bbvi.Product(*PARTS).sites()] == ["s,w", "c", "nested.g", "v"]


def test_double_precision():
    with jax.enable_x64(True):
        guide = bbvi.Product(*PARTS)
        params = guide.init(jax.random.key(0), None)
        z = guide.sample(guide.base_noise(jax.random.key(1)), params, None)
        assert guide.log_prob(params, None, z).dtype == jnp.float64


def test_guides_compare_by_value():
    assert bbvi.Product(*PARTS) == bbvi.Product(*PARTS)
    assert hash(bbvi.Product(*PARTS)) == hash(bbvi.Product(*PARTS))
    assert bbvi.Product(*PARTS) != bbvi.Product(*PARTS[:2])
    assert "rank=1" in repr(bbvi.Product(*PARTS))


@pytest.mark.parametrize(
    ("guides", "message"),
    [
        ((), "at least two guides"),
        (PARTS[:1], "at least two guides"),
        ((PARTS[0], "guide"), "at least two guides"),
        ((PARTS[0], bbvi.MeanField({"w": bbvi.Normal()})), r"latents \['w'\] appear in more than"),
        ((PARTS[0], bbvi.MeanField(bbvi.Normal())), "draws are dicts"),
    ],
)
def test_bad_parts_are_refused(guides, message):
    with pytest.raises(ValueError, match=message):
        bbvi.Product(*guides)


@pytest.mark.parametrize("z", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, (1.0, 1.0)])
def test_latents_that_do_not_match_are_refused(z):
    guide = bbvi.Product(bbvi.MeanField({"a": bbvi.Normal()}), bbvi.MeanField({"b": bbvi.Normal()}))
    params = guide.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=r"Product.*latents.*'a', 'b'"):
        guide.log_prob(params, None, jax.tree.map(jnp.asarray, z))
