"""Families of one latent against SciPy's and NumPyro's densities and entropies."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import bbvi
from bbvi import supports
from bbvi.testing import check_guide

FAMILIES = {
    "normal": bbvi.Normal((3,)),
    "log_normal": bbvi.LogNormal((2,)),
    "laplace": bbvi.Laplace((3,)),
    "student_t": bbvi.StudentT((2,), df=6.0),
    "gamma": bbvi.Gamma((2,)),
    "beta": bbvi.Beta((2,)),
    "dirichlet": bbvi.Dirichlet((2, 3)),
    "von_mises": bbvi.VonMises((2,)),
    "bernoulli": bbvi.Bernoulli((2, 2)),
    "categorical": bbvi.Categorical(3, (2,)),
    "one_hot_categorical": bbvi.OneHotCategorical(3, (2,)),
}
SUPPORTED = {
    "greater_than": (supports.greater_than(1.5), (2,), [2.0, 3.0]),
    "less_than": (supports.less_than(-1.0), (2,), [-2.0, -1.5]),
    "interval": (supports.interval(-1.0, 3.0), (2,), [-0.5, 2.5]),
    "unit_interval": (supports.unit_interval, (2,), [0.2, 0.7]),
    "simplex": (supports.simplex, (3,), [0.2, 0.5, 0.3]),
    "ordered": (supports.ordered, (3,), [-1.0, 0.0, 2.0]),
    "positive_definite": (supports.positive_definite, (2, 2), [[2.0, 0.5], [0.5, 1.0]]),
    "cholesky_factor": (supports.cholesky_factor, (2, 2), [[1.0, 0.0], [0.5, 2.0]]),
    "correlation_cholesky": (supports.correlation_cholesky, (2, 2), [[1.0, 0.0], [0.6, 0.8]]),
}
DISCRETE = ("bernoulli", "categorical", "one_hot_categorical")


def exact(name, p):
    """The same distribution in SciPy or NumPyro, from the family's parameters."""
    p = {key: np.asarray(value, np.float64) for key, value in p.items()}
    return {
        "normal": lambda: stats.norm(p["loc"], np.exp(p["log_scale"])),
        "log_normal": lambda: stats.lognorm(np.exp(p["log_scale"]), scale=np.exp(p["loc"])),
        "laplace": lambda: stats.laplace(p["loc"], np.exp(p["log_scale"])),
        "student_t": lambda: stats.t(6.0, p["loc"], np.exp(p["log_scale"])),
        "gamma": lambda: stats.gamma(np.exp(p["log_concentration"]), scale=np.exp(-p["log_rate"])),
        "beta": lambda: stats.beta(np.exp(p["log_alpha"]), np.exp(p["log_beta"])),
        "von_mises": lambda: stats.vonmises(np.exp(p["log_concentration"]), p["loc"]),
    }[name]()


def at(family, key=0):
    """Parameters some way off the initial ones, and one draw."""
    params = family.init(jax.random.key(key))

    def moved(leaf):
        return leaf + 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)

    params = jax.tree.map(moved, params)
    return params, family.sample(family.base_noise(jax.random.key(key + 1)), params)


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_of_the_family_agree(name):
    check_guide(bbvi.MeanField({"z": FAMILIES[name]}), num_samples=2000)


@pytest.mark.parametrize("name", SUPPORTED)
def test_parts_agree_on_every_support(name):
    support, shape, _ = SUPPORTED[name]
    check_guide(bbvi.MeanField({"z": bbvi.Normal(shape, support=support)}), num_samples=2000)


def test_parts_agree_for_heavy_tails_on_a_support():
    guide = bbvi.MeanField(
        (bbvi.Laplace((2,), supports.unit_interval), bbvi.StudentT((3,), supports.simplex, df=8.0))
    )
    check_guide(guide, num_samples=2000)


@pytest.mark.parametrize(
    "name", ["normal", "log_normal", "laplace", "student_t", "gamma", "beta", "von_mises"]
)
def test_log_density_and_entropy_are_scipys(name):
    family = FAMILIES[name]
    params, z = at(family)
    reference = exact(name, params)
    wanted = reference.logpdf(np.asarray(z, np.float64)).sum()
    np.testing.assert_allclose(family.log_prob(params, z), wanted, rtol=1e-4, atol=1e-4)
    if name != "log_normal":  # there the entropy is unbiased, not exact; see check_guide
        entropy = np.sum(reference.entropy())
        np.testing.assert_allclose(family.entropy(params, z), entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("dirichlet", lambda p: dist.Dirichlet(jnp.exp(p["log_concentration"]))),
        ("bernoulli", lambda p: dist.Bernoulli(logits=p["logits"])),
        ("categorical", lambda p: dist.Categorical(logits=p["logits"])),
    ],
)
def test_log_density_and_entropy_are_numpyros(name, reference):
    family = FAMILIES[name]
    params, z = at(family)
    with jax.numpy_rank_promotion("allow"):
        log_prob, entropy = reference(params).log_prob(z).sum(), reference(params).entropy().sum()
    np.testing.assert_allclose(family.log_prob(params, z), log_prob, rtol=1e-5)
    np.testing.assert_allclose(family.entropy(params, z), entropy, rtol=1e-5)


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
        (lambda: bbvi.Categorical(1), ValueError, "num_categories >= 2 as an int, got 1"),
        (lambda: bbvi.Categorical(2.0), ValueError, "num_categories >= 2 as an int, got 2.0"),
        (lambda: bbvi.OneHotCategorical(1), ValueError, "num_categories >= 2 as an int, got 1"),
        (lambda: bbvi.StudentT((), df=0.0), ValueError, "df must be a positive number, got 0.0"),
        (lambda: bbvi.Dirichlet(()), ValueError, "Dirichlet"),
        (lambda: bbvi.Dirichlet((1,)), ValueError, "Dirichlet"),
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


@pytest.mark.parametrize("name", ["laplace", "student_t"])
def test_families_that_are_not_exponential_have_no_overdispersed_form(name):
    params, _ = at(FAMILIES[name])
    with pytest.raises(NotImplementedError, match="is not an exponential family"):
        FAMILIES[name].overdispersed(params, 2.0)
