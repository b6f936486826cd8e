"""Guides with a row of parameters for each datum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import check_guide

SITES = {
    "a": bbvi.Normal((4, 2), bbvi.supports.positive),
    "b": (bbvi.Categorical(3, (4,)), bbvi.OneHotCategorical(3, (4,))),
    "c": bbvi.Gamma((4,)),
    "d": bbvi.Dirichlet((4, 3)),
}
GUIDE = bbvi.Local(SITES)


def test_parts_of_the_guide_agree():
    check_guide(GUIDE)
    check_guide(bbvi.Local({"a": bbvi.Normal((4, 2))}))


def test_it_is_the_mean_field_with_parameters_by_row(key):
    free = bbvi.MeanField(SITES)
    init_key, noise_key = jax.random.split(key)
    own, by_site = free.init(init_key, None), GUIDE.init(jax.random.clone(init_key), None)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(by_site)} == {4}
    noise = GUIDE.base_noise(noise_key)
    z = GUIDE.sample(noise, by_site, None)
    with jax.debug_key_reuse(False):  # the noise of gammas is a key
        jax.tree.map(np.testing.assert_array_equal, z, free.sample(noise, own, None))
    assert GUIDE.log_prob(by_site, None, z) == free.log_prob(own, None, z)
    assert [site.is_local for site in GUIDE.sites()] == [True] * 5
    assert not any(site.is_local for site in free.sites())


def test_rows_are_independent(key):
    """A change of a row's parameters changes that row's draw and density, and no others."""
    init_key, noise_key = jax.random.split(key)
    guide = bbvi.Local({"a": bbvi.Normal((4, 2)), "c": bbvi.Gamma((4,))})
    phi, noise = guide.init(init_key, None), guide.base_noise(noise_key)
    moved = jax.tree.map(lambda leaf: leaf.at[2].add(0.5), phi)
    with jax.debug_key_reuse(False):  # the noise of gammas is a key
        a, b = guide.sample(noise, phi, None), guide.sample(noise, moved, None)
    for name in a:
        changed = (a[name] != b[name]).reshape(4, -1).any(axis=1)
        assert changed.tolist() == [False, False, True, False]


def test_resized_to_rows_of_its_own(key):
    """A guide of two rows at two rows' parameters draws from those rows' distribution."""
    small = GUIDE.resized(2)
    assert [site.shape[0] for site in small.sites()] == [2] * 5
    assert small.resized(4) == GUIDE
    assert hash(small.resized(4)) == hash(GUIDE)
    init_key, noise_key = jax.random.split(key)
    phi = GUIDE.init(init_key, None)
    shared, rows = GUIDE.split_rows(phi)
    assert jax.tree.leaves(shared) == []
    two = GUIDE.join_rows(shared, jax.tree.map(lambda leaf: leaf[jnp.array([3, 1])], rows))
    z = GUIDE.sample(GUIDE.base_noise(noise_key), phi, None)
    part = jax.tree.map(lambda leaf: leaf[jnp.array([3, 1])], z)
    by_row = GUIDE.site_log_probs(phi, None, z)
    found = small.site_log_probs(two, None, part)
    for name, leaf in by_row.items():
        np.testing.assert_allclose(found[name], leaf[jnp.array([3, 1])], rtol=1e-6)


def test_product_keeps_what_is_shared_apart(key):
    product = bbvi.Product(bbvi.MeanField({"w": bbvi.Normal((3,))}), bbvi.Local(SITES))
    phi = product.init(key, None)
    shared, rows = product.split_rows(phi)
    assert ravel_pytree(shared)[0].shape == (6,)
    jax.tree.map(np.testing.assert_array_equal, product.join_rows(shared, rows), phi)
    assert product.resized(2).guides == (product.guides[0], GUIDE.resized(2))


def test_placed_at_values(key):
    guide = bbvi.Local({"a": bbvi.Normal((4, 2), bbvi.supports.positive)})
    z = {"a": jnp.arange(1.0, 9.0).reshape(4, 2)}
    phi = guide.params_at(z, 1e-4)
    draw = guide.sample(guide.base_noise(key), phi, None)
    np.testing.assert_allclose(draw["a"], z["a"], rtol=1e-3)


def test_overdispersed_is_the_mean_fields(key):
    guide = bbvi.Local({"b": bbvi.Bernoulli((4,))})
    phi = guide.init(key, None)
    np.testing.assert_allclose(
        guide.overdispersed(phi, 2.0)["b"]["logits"], phi["b"]["logits"] / 2.0
    )


@pytest.mark.parametrize(
    "sites",
    [{"a": bbvi.Normal()}, {"a": bbvi.Normal((3,)), "b": bbvi.Normal((4, 2))}, bbvi.Normal()],
)
def test_sites_need_one_number_of_rows(sites):
    with pytest.raises(ValueError, match=r"shapes must begin with the same number of rows, got"):
        bbvi.Local(sites)


def test_a_scalar_site_cannot_be_resized():
    class Network:
        def init(self, key, x):
            return {}

        def apply(self, params, x):
            return {"s": {"loc": x.mean(), "log_scale": x.std()}}

    guide = bbvi.Amortized({"s": bbvi.Normal()}, Network())
    with pytest.raises(ValueError, match=r"latent 's' of Amortized.* has no axis for the rows"):
        guide.resized(3)
