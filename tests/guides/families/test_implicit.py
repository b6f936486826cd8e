"""Families reparameterized implicitly against SciPy and NumPyro."""

import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import bbvi
from tests.guides.families.oracles import check_with_numpyro, check_with_scipy


@pytest.mark.parametrize("name", ["gamma", "beta", "von_mises"])
def test_log_density_and_entropy_are_scipys(name):
    check_with_scipy(name)


def test_log_density_and_entropy_of_a_dirichlet_are_numpyros():
    check_with_numpyro("dirichlet", lambda p: dist.Dirichlet(jnp.exp(p["log_concentration"])))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bbvi.Dirichlet(()), ValueError, "Dirichlet"),
        (lambda: bbvi.Dirichlet((1,)), ValueError, "Dirichlet"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
