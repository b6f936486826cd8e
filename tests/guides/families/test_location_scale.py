"""Families of a location and a scale, on every support, against SciPy and NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import bbvi
from bbvi import supports
from bbvi.testing import check_guide
from tests.guides.families.oracles import FAMILIES, SUPPORTED, at, check_with_scipy


@pytest.mark.parametrize("name", SUPPORTED)
def test_parts_agree_on_every_support(name):
    support, shape, _ = SUPPORTED[name]
    check_guide(bbvi.MeanField({"z": bbvi.Normal(shape, support=support)}), num_samples=2000)


def test_parts_agree_for_heavy_tails_on_a_support():
    guide = bbvi.MeanField(
        (bbvi.Laplace((2,), supports.unit_interval), bbvi.StudentT((3,), supports.simplex, df=8.0))
    )
    check_guide(guide, num_samples=2000)


@pytest.mark.parametrize("name", ["normal", "log_normal", "laplace", "student_t"])
def test_log_density_and_entropy_are_scipys(name):
    check_with_scipy(name)


@pytest.mark.parametrize("name", ["simplex", "ordered", "unit_interval"])
def test_log_density_on_a_support_is_numpyros_transformed_normal(name):
    support, shape, z = SUPPORTED[name]
    constraint = {
        "simplex": dist.constraints.simplex,
        "ordered": dist.constraints.ordered_vector,
        "unit_interval": dist.constraints.unit_interval,
    }[name]
    family = bbvi.Normal(shape, support=support)
    params, _ = at(family)
    base = dist.Normal(params["loc"], jnp.exp(params["log_scale"]))
    with jax.numpy_rank_promotion("allow"):
        wanted = dist.TransformedDistribution(base, dist.biject_to(constraint)).log_prob(
            jnp.array(z)
        )
    np.testing.assert_allclose(family.log_prob(params, jnp.array(z)), wanted.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["laplace", "student_t"])
def test_families_that_are_not_exponential_have_no_overdispersed_form(name):
    params, _ = at(FAMILIES[name])
    with pytest.raises(NotImplementedError, match="is not an exponential family"):
        FAMILIES[name].overdispersed(params, 2.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bbvi.StudentT((), df=0.0), ValueError, "df must be a positive number, got 0.0"),
        (lambda: bbvi.Normal((), support=supports.simplex), ValueError, "Normal.*simplex"),
        (
            lambda: bbvi.Normal((2, 3), support=supports.positive_definite),
            ValueError,
            "square matrices",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
