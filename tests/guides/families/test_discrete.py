"""Discrete families against NumPyro and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import bbvi
from tests.guides.families.oracles import at, check_with_numpyro


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("bernoulli", lambda p: dist.Bernoulli(logits=p["logits"])),
        ("categorical", lambda p: dist.Categorical(logits=p["logits"])),
    ],
)
def test_log_density_and_entropy_are_numpyros(name, reference):
    check_with_numpyro(name, reference)


def test_saturated_discrete_sites_stay_finite():
    for family, logits in (
        (bbvi.Bernoulli((2,)), jnp.array([200.0, -200.0])),
        (bbvi.Categorical(2), jnp.array([200.0, -200.0])),
        (bbvi.OneHotCategorical(2), jnp.array([200.0, -200.0])),
    ):
        params = {"logits": logits}
        z = family.sample(family.base_noise(jax.random.key(0)), params)

        def parts(params, family=family, z=z):
            return family.log_prob(params, z) + family.entropy(params, z)

        value, gradient = jax.value_and_grad(parts)(params)
        assert value == pytest.approx(0.0, abs=1e-6)
        assert np.isfinite(gradient["logits"]).all()


def test_one_hot_vectors_are_categories_written_otherwise():
    """The same parameters, noise, densities, entropies and blocks; only the values differ."""
    numbers, vectors = bbvi.Categorical(4, (2, 3)), bbvi.OneHotCategorical(4, (2, 3))
    params, z = at(numbers)
    found_params, found = at(vectors)
    np.testing.assert_array_equal(found_params["logits"], params["logits"])
    assert found.shape == vectors.shape == (2, 3, 4)
    np.testing.assert_array_equal(found, jax.nn.one_hot(z, 4))
    np.testing.assert_allclose(
        vectors.log_probs(params, found), numbers.log_probs(params, z), rtol=1e-6
    )
    np.testing.assert_allclose(
        vectors.entropy(params, found), numbers.entropy(params, z), rtol=1e-6
    )
    assert vectors.noise_size == numbers.noise_size
    np.testing.assert_allclose(
        vectors.params_at(found, 0.1)["logits"], numbers.params_at(z, 0.1)["logits"], rtol=1e-6
    )
    for family, event_ndims in ((numbers, 0), (vectors, 1)):
        (site,) = bbvi.MeanField({"c": family}).sites()
        assert (site.num_values, site.event_ndims, site.block_shape) == (4, event_ndims, (2, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bbvi.Categorical(1), ValueError, "num_categories >= 2 as an int, got 1"),
        (lambda: bbvi.Categorical(2.0), ValueError, "num_categories >= 2 as an int, got 2.0"),
        (lambda: bbvi.OneHotCategorical(1), ValueError, "num_categories >= 2 as an int, got 1"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
