import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.stats import qmc

import bbvi
from bbvi.sampling import sobol_digits, unit_interval
from bbvi.testing import check_mean
from tests.estimators.oracles import check_variance

COUPLED = [bbvi.Antithetic(), bbvi.ScrambledSobol()]
# What every statistical test here allows itself; the seeds are fixed.
FALSE_ALARM = 1e-6

GUIDES = {
    "mean field": bbvi.MeanField(
        {
            "w": bbvi.Normal((2, 3)),
            "s": bbvi.Normal((4,), support=bbvi.supports.simplex),
            "l": bbvi.Laplace((2,)),
            "t": bbvi.StudentT(()),
            "b": bbvi.Bernoulli((2,)),
            "c": bbvi.Categorical(3, (2, 2)),
        }
    ),
    "no normal": bbvi.MeanField((bbvi.Laplace(), bbvi.Laplace((2,), bbvi.supports.ordered))),
    "full rank": bbvi.FullRank({"w": bbvi.Normal((3,)), "tau": bbvi.LogNormal()}),
    "low rank": bbvi.LowRank({"w": bbvi.Normal((5,))}, rank=2),
    "product": bbvi.Product(
        bbvi.LowRank({"w": bbvi.Normal((5,))}, rank=2),
        bbvi.MeanField({"l": bbvi.Laplace((2,)), "v": bbvi.Normal()}),
    ),
}


def bits(num_replicates, seed=0):
    return jax.random.bits(jax.random.key(seed), (num_replicates,), jnp.uint32)


def sobol(num_samples, dimension, num_replicates=1, seed=0):
    """Points [R, S, d]."""
    keys = jax.random.split(jax.random.key(seed), num_replicates)
    draw = jax.vmap(lambda k: bbvi.ScrambledSobol().uniforms(k, num_samples, dimension))
    return np.asarray(jax.jit(draw)(keys), np.float64)


# From words to numbers.


@pytest.mark.parametrize("x64", [False, True])
def test_uniforms_lie_inside_the_interval_and_mirror_exactly(x64):
    with jax.enable_x64(x64):
        words = jnp.concatenate([jnp.array([0, 1, 2**31, 2**32 - 1], jnp.uint32), bits(1000)])
        u, mirrored = unit_interval(words), unit_interval(~words)
        assert u.dtype == (jnp.float64 if x64 else jnp.float32)
        assert float(u.min()) > 0
        assert float(u.max()) < 1
        np.testing.assert_array_equal(np.asarray(u, np.float64) + np.asarray(mirrored), 1)
        cell = 2.0 ** -(32 if x64 else 23)
        np.testing.assert_allclose(u, np.asarray(words) * 2.0**-32, rtol=0, atol=cell)


# From numbers to base noise.

QUANTILES = {
    "normal": (bbvi.Normal((500,)), stats.norm()),
    "Laplace": (bbvi.Laplace((500,)), stats.laplace()),
    **{
        f"Student-t, df {df}": (bbvi.StudentT((500,), df=df), stats.t(df))
        for df in (0.5, 1.0, 2.0, 5.0, 30.0)
    },
    "Bernoulli": (bbvi.Bernoulli((500,)), stats.uniform()),
    "categorical": (bbvi.Categorical(3, (500,)), stats.uniform()),
}


@pytest.mark.parametrize(("family", "exact"), QUANTILES.values(), ids=list(QUANTILES))
def test_quantiles(family, exact):
    """Against SciPy, to the ends of the grid; and base noise itself has that distribution."""
    extremes = jnp.array([0, 2**9, 2**31 - 2**9, 2**31, 2**32 - 1], jnp.uint32)
    u = unit_interval(jnp.concatenate([extremes, bits(family.noise_size - 5)]))
    quantile = jax.jit(family.noise_from_uniform)
    got = quantile(u)
    np.testing.assert_allclose(got, exact.ppf(np.asarray(u, np.float64)), rtol=1e-4, atol=1e-6)
    centre = exact.ppf(0.5)
    np.testing.assert_allclose(got - centre, centre - quantile(1 - u), rtol=1e-5, atol=1e-6)
    noise = np.concatenate(
        [family.base_noise(key) for key in jax.random.split(jax.random.key(1), 40)]
    )
    assert stats.kstest(noise, exact.cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize("guide", GUIDES.values(), ids=list(GUIDES))
@pytest.mark.parametrize("sampling", COUPLED, ids=repr)
def test_noise_has_the_form_of_base_noise(guide, sampling, key):
    fresh = jax.random.clone(key)
    sampling.validate(guide, bbvi.Elbo())
    coupled = jax.jit(lambda k: sampling.draw(k, guide, 4))(key)
    plain = jax.eval_shape(lambda k: bbvi.Independent().draw(k, guide, 4), fresh)
    assert jax.tree.structure(coupled) == jax.tree.structure(plain)
    for got, wanted in zip(jax.tree.leaves(coupled), jax.tree.leaves(plain), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    entries = np.concatenate(
        [np.ravel(leaf[0]) for leaf in jax.device_get(jax.tree.leaves(coupled))]
    )
    assert len(np.unique(entries)) == entries.size, "two entries share a uniform"


def test_independent_draws_are_those_of_the_problem(key):
    guide = GUIDES["product"]
    problem = bbvi.Problem(lambda x, z: z["v"], guide)
    jax.tree.map(
        np.testing.assert_array_equal,
        bbvi.Reparameterization(4).draw(jax.random.clone(key), problem),
        problem.base_noise(key, 4),
    )


@pytest.mark.parametrize("sampling", COUPLED, ids=repr)
def test_draws_of_many_steps_at_once(sampling, key):
    """The engine's vmap gives what single calls give, and no two steps the same."""
    guide, keys = GUIDES["full rank"], jax.random.split(key, 5)
    copies = jax.random.clone(keys)
    together = jax.jit(jax.vmap(lambda k: sampling.draw(k, guide, 8)))(keys)
    for noise, k in zip(together, copies, strict=True):
        np.testing.assert_allclose(noise, sampling.draw(k, guide, 8), rtol=1e-5, atol=1e-6)
    assert len(np.unique(together)) == together.size


# Antithetic pairs.


def test_antithetic_noise_is_mirrored(key):
    draw = jax.jit(lambda k: bbvi.Antithetic().draw(k, GUIDES["mean field"], 6))
    noise, families = draw(key)
    np.testing.assert_array_equal(noise[3:], -noise[:3])
    for name, centre in (("l", 0.0), ("t", 0.0), ("b", 0.5), ("c", 0.5)):
        half, mirrored = np.split(np.asarray(families[name]), 2)
        np.testing.assert_allclose(mirrored - centre, centre - half, rtol=1e-5, atol=1e-6)
    assert len(np.unique(noise)) == noise.size


# Scrambled Sobol points.


def test_digits_are_those_of_the_sobol_points():
    digits = sobol_digits(16, 7)
    points = np.tensordot(0.5 ** np.arange(1, 5), digits, axes=1)
    np.testing.assert_array_equal(points, qmc.Sobol(7, scramble=False).random(16))


@pytest.mark.parametrize("num_samples", [1, 2, 8, 64])
def test_one_point_in_every_slice(num_samples):
    """Scrambling keeps the balance: each coordinate has one point in each interval 1/S."""
    cells = np.floor(sobol(num_samples, 5, 20) * num_samples)
    wanted = np.broadcast_to(np.arange(num_samples)[:, None], cells.shape)
    np.testing.assert_array_equal(np.sort(cells, axis=1), wanted)


@pytest.mark.parametrize("split", range(5))
def test_first_two_coordinates_are_a_net(split):
    """One of 16 points in every box of 2^-split by 2^-(4 - split)."""
    rows, columns = 2**split, 2 ** (4 - split)
    points = sobol(16, 2, 20)
    boxes = np.floor(points[..., 0] * rows) * columns + np.floor(points[..., 1] * columns)
    np.testing.assert_array_equal(np.sort(boxes), np.broadcast_to(np.arange(16), boxes.shape))


def test_every_point_is_uniform():
    """Each of the S points in each coordinate, its fine digits, and pairs of coordinates."""
    points = sobol(8, 3, 10_000)
    columns = [*points.reshape(len(points), -1).T, *(points * 8 % 1).reshape(len(points), -1).T]
    columns += [(points[:, n, 0] + points[:, n, 1]) % 1 for n in range(8)]
    pvalues = [stats.kstest(column, stats.uniform.cdf).pvalue for column in columns]
    assert min(pvalues) > FALSE_ALARM / len(columns)


@pytest.mark.parametrize("num_samples", [2, 8, 32])
def test_variance_of_a_coordinate(num_samples):
    """The mean of S points, one in each interval 1/S and unrelated within: 1 / (12 S^3).

    Without the random matrix all points would sit at one place of their intervals: 1 / (12 S^2).
    """
    means = sobol(num_samples, 2, 20_000).mean(axis=1)
    check_variance(means, np.full(2, 1 / (12 * num_samples**3)))
    check_mean(jnp.asarray(means), np.full(2, 0.5), power=0.01)


# Errors.


class Exponential(bbvi.Guide):
    reparameterized = True

    def init(self, key, x):
        return jnp.zeros(())

    def sample(self, key, params, x):
        return jax.random.exponential(key) * jnp.exp(params)

    def log_prob(self, params, x, z):
        return -params - z * jnp.exp(-params)


REJECTION = [bbvi.Gamma(), bbvi.Beta(), bbvi.Dirichlet((3,)), bbvi.VonMises()]


@jax.debug_key_reuse(False)  # it mistakes the loop of distrax's von Mises sampler for a reuse
@pytest.mark.parametrize("sampling", COUPLED, ids=repr)
@pytest.mark.parametrize("family", REJECTION, ids=lambda family: type(family).__name__)
def test_sites_without_a_map_are_refused(sampling, family):
    guide = bbvi.MeanField({"w": bbvi.Normal((2,)), "g": family})
    product = bbvi.Product(bbvi.FullRank({"v": bbvi.Normal()}), guide)
    message = rf"site 'g' \({type(family).__name__}\) has no map.*sampling=bbvi.Independent\(\)"
    for refused in (guide, product):
        bbvi.Independent().validate(refused, bbvi.Elbo())
        with pytest.raises(ValueError, match=message):
            sampling.validate(refused, bbvi.Elbo())


def test_guides_without_a_map_are_refused():
    with pytest.raises(ValueError, match=r"site 'latents' \(Exponential\) has no map from them"):
        bbvi.ScrambledSobol().validate(Exponential(), bbvi.Elbo())


@pytest.mark.parametrize("owner", [Exponential(), bbvi.Gamma()], ids=["guide", "family"])
def test_calling_a_map_that_is_not_there(owner):
    with pytest.raises(NotImplementedError, match="has no map from uniforms to base noise"):
        owner.noise_from_uniform(jnp.full((1,), 0.5))


def test_dimensions_of_sobol_points():
    sampling, limit = bbvi.ScrambledSobol(), qmc.Sobol.MAXDIM
    sampling.validate(bbvi.MeanField(bbvi.Normal((limit,))), bbvi.Elbo())
    with pytest.raises(ValueError, match=f"{limit} dimensions, but .* has {limit + 1} entries"):
        sampling.validate(bbvi.MeanField(bbvi.Normal((limit + 1,))), bbvi.Elbo())


def test_numbers_of_samples():
    for sampling, good, bad, message in (
        (bbvi.Antithetic(), (2, 6), (1, 7), "must be even, got"),
        (bbvi.ScrambledSobol(), (1, 2, 8), (3, 6), "must be one, got"),
    ):
        for num_samples in good:
            bbvi.Reparameterization(num_samples, sampling=sampling)
        for num_samples in bad:
            with pytest.raises(ValueError, match=f"{message} {num_samples}"):
                bbvi.Reparameterization(num_samples, sampling=sampling)
