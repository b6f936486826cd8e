"""What every family must be: draws, densities and parameters that agree, by value and printed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi import supports
from bbvi.testing import check_guide
from tests.guides.families.oracles import FAMILIES, SUPPORTED, at, exact

DISCRETE = ("bernoulli", "categorical", "one_hot_categorical")


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_of_the_family_agree(name):
    check_guide(bbvi.MeanField({"z": FAMILIES[name]}), num_samples=2000)


@pytest.mark.parametrize(
    ("family", "z"),
    [
        (bbvi.Normal((2,)), [1.0, -2.0]),
        (bbvi.LogNormal((2,)), [0.5, 3.0]),
        (bbvi.Laplace(()), 4.0),
        (bbvi.StudentT((1,)), [-3.0]),
        (bbvi.Gamma((2,)), [0.5, 3.0]),
        (bbvi.Beta((2,)), [0.2, 0.7]),
        (bbvi.Dirichlet((3,)), [0.2, 0.5, 0.3]),
        (bbvi.VonMises((2,)), [1.0, -2.0]),
        (bbvi.Bernoulli((2,)), [0, 1]),
        (bbvi.Categorical(3, (3,)), [0, 2, 1]),
        (bbvi.OneHotCategorical(3, (2,)), [[0, 0, 1], [1, 0, 0]]),
        *[(bbvi.Normal(shape, support=s), z) for s, shape, z in SUPPORTED.values()],
    ],
    ids=repr,
)
def test_params_at_puts_draws_at_the_value(family, z):
    guide = bbvi.MeanField({"z": family})
    params = bbvi.Params(guide.params_at({"z": jnp.array(z)}, scale=0.02))
    problem = bbvi.Problem(lambda x, z: 0.0, guide)
    noise = problem.base_noise(jax.random.key(0), 500)
    draws = jax.jit(problem.sample)(noise, params, None)["z"]
    np.testing.assert_allclose(np.mean(draws, axis=0), z, atol=0.03)


def test_params_at_sets_standard_deviations():
    for family, z in ((bbvi.Gamma(()), 2.0), (bbvi.Beta(()), 0.4), (bbvi.Normal(()), 1.0)):
        params = family.params_at(jnp.array(z), 0.1)
        name = type(family).__name__.lower()
        assert exact(name, params).std() == pytest.approx(0.1, rel=1e-3)
        assert exact(name, params).mean() == pytest.approx(z, rel=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_double_precision(name):
    with jax.enable_x64(True):
        family = FAMILIES[name]
        params, z = at(family)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
        assert z.dtype == (jnp.int32 if name in ("bernoulli", "categorical") else jnp.float64)
        assert family.log_prob(params, z).dtype == jnp.float64
        if name in ("normal", "gamma", "beta", "laplace"):
            wanted = exact(name, params).logpdf(np.asarray(z)).sum()
            np.testing.assert_allclose(family.log_prob(params, z), wanted, rtol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_compare_by_value_and_print(name):
    family = FAMILIES[name]
    rebuilt = eval(repr(family), {**vars(bbvi), **vars(supports)})
    assert rebuilt == family
    assert hash(rebuilt) == hash(family)
    assert family.reparameterized == (name not in DISCRETE)


def test_different_families_are_not_equal():
    different = [*FAMILIES.values(), bbvi.Normal((4,)), bbvi.StudentT((2,), df=7.0)]
    different += [bbvi.Categorical(4, (2,)), bbvi.Normal((3,), support=supports.unit_interval)]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bbvi.Normal(3), TypeError, r"Normal shape must be a tuple, got 3; write \(3,\)"),
        (lambda: bbvi.Gamma((0,)), ValueError, r"Gamma shape must hold positive ints, got \(0,\)"),
        (lambda: bbvi.Beta((2.5,)), ValueError, "Beta shape must hold positive ints"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# log of the base measure's density, for which the natural parameters are divided.
BASE_MEASURES = {
    "normal": lambda z: 0.0 * z,
    "log_normal": lambda z: -jnp.log(z),
    "gamma": lambda z: -jnp.log(z),
    "beta": lambda z: -jnp.log(z) - jnp.log1p(-z),
    "dirichlet": lambda z: -jnp.sum(jnp.log(z), axis=-1),
    "von_mises": lambda z: 0.0 * z,
    "bernoulli": lambda z: 0.0 * z,
    "categorical": lambda z: 0.0 * z,
    "one_hot_categorical": lambda z: 0.0 * z[..., 0],
}


@pytest.mark.parametrize("name", BASE_MEASURES)
def test_overdispersed_divides_the_natural_parameters(name):
    """log r - (log q) / 2 relative to the base measure is a normaliser: the same at all z."""
    family, base = FAMILIES[name], BASE_MEASURES[name]
    params, _ = at(family)
    wide = family.overdispersed(params, 2.0)
    draws = [at(family, key)[1] for key in (0, 10, 20, 30)]
    log_q = np.stack([family.log_probs(params, z) - base(z) for z in draws])
    log_r = np.stack([family.log_probs(wide, z) - base(z) for z in draws])
    constant = log_r - 0.5 * log_q
    assert np.ptp(log_q, axis=0).max() > 0.1
    np.testing.assert_allclose(np.ptp(constant, axis=0), 0, atol=1e-4)
    assert np.abs(log_r - log_q).max() > 0.1
