"""Models of PyMC: the same density, supports of every kind, and what cannot be translated."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import bbvi
from bbvi import supports
from bbvi.interop import from_pymc
from models import eight_schools

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of ArviZ, as PyMC imports it
    pm = pytest.importorskip("pymc")
pt = pytest.importorskip("pytensor.tensor")

# It looks for one for PyTensor's own C code, which is not used here.
pytestmark = pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def tolerance(request):
    """Tests run in both precisions of JAX."""
    with jax.enable_x64(request.param):
        yield 1e-10 if request.param else 1e-4


def schools_model():
    x = eight_schools.data()
    with pm.Model() as model:
        y, sigma = (pm.Data(name, np.asarray(x[name], np.float64)) for name in ("y", "sigma"))
        # PyTensor holds Python's 5.0 in single precision, and takes the logarithm in it.
        mu = pm.Normal("mu", 0.0, np.float64(5.0))
        tau = pm.HalfCauchy("tau", np.float64(5.0))
        theta_trans = pm.Normal("theta_trans", 0.0, 1.0, shape=8)
        theta = pm.Deterministic("theta", mu + tau * theta_trans)
        pm.Normal("obs", theta, sigma, observed=y)
    return model


def regression_model(inputs, y):
    with pm.Model(coords={"input": ["first", "second"]}) as model:
        inputs, y = pm.Data("inputs", inputs), pm.Data("y", y)
        w = pm.Normal("w", 0.0, np.float64(2.5), dims="input")
        sigma = pm.Uniform("sigma", np.float64(0.5), np.float64(3.0))
        pm.Potential("ridge", -0.3 * w[0] ** 2)
        pm.Normal("obs", inputs @ w, sigma, observed=y)
    return model


def draw(sites, seed=0):
    """One draw of the latents from a wide guide."""
    guide = bbvi.MeanField(sites)

    @jax.jit
    def one(init_key, noise_key):
        params = guide.init(init_key, None)
        params = params._replace(normal=params.normal.at[1].set(-0.3))
        return guide.sample(guide.base_noise(noise_key), params, None)

    with jax.debug_key_reuse(False):  # distrax uses keys of von Mises draws more than once
        return one(jax.random.key(seed), jax.random.key(seed + 1))


def test_eight_schools_has_the_density_by_hand(tolerance):
    log_joint, sites, x = from_pymc(schools_model())
    assert sites == {"mu": bbvi.Normal(), "tau": bbvi.LogNormal(), "theta_trans": bbvi.Normal((8,))}
    assert set(x) == {"y", "sigma"}
    z = draw(sites)
    mu, tau, theta_trans = (np.asarray(z[name], np.float64) for name in sites)
    wanted = (
        stats.norm.logpdf(mu, 0.0, 5.0)
        + stats.halfcauchy.logpdf(tau, 0.0, 5.0)
        + stats.norm.logpdf(theta_trans).sum()
        + stats.norm.logpdf(x["y"], mu + tau * theta_trans, x["sigma"]).sum()
    )
    found = jax.jit(log_joint)(x, z)
    assert found.dtype == jnp.result_type(float)
    np.testing.assert_allclose(found, wanted, rtol=tolerance)


def test_regression_and_other_data_have_the_density_by_hand(tolerance):
    random = np.random.default_rng(0)
    log_joint, sites, x = from_pymc(regression_model(random.normal(size=(6, 2)), np.arange(6.0)))
    assert sites["sigma"] == bbvi.Normal(support=supports.interval(0.5, 3.0))
    z = draw(sites)
    w, sigma = (np.asarray(z[name], np.float64) for name in ("w", "sigma"))
    # Data are arguments: other values of another length, without another import.
    other = {"inputs": random.normal(size=(4, 2)), "y": np.ones(4)}
    for data in (x, other):
        wanted = (
            stats.norm.logpdf(w, 0.0, 2.5).sum()
            - np.log(2.5)
            - 0.3 * w[0] ** 2
            + stats.norm.logpdf(data["y"], data["inputs"] @ w, sigma).sum()
        )
        np.testing.assert_allclose(log_joint(data, z), wanted, rtol=tolerance)


@pytest.mark.parametrize("x64", [False, True])
def test_the_precision_of_jax_stays(x64):
    before = jax.config.jax_enable_x64
    with jax.enable_x64(x64):
        log_joint, sites, x = from_pymc(schools_model())
    assert jax.config.jax_enable_x64 == before
    for is_double, dtype in ((False, jnp.float32), (True, jnp.float64)):
        with jax.enable_x64(is_double):
            assert log_joint(x, draw(sites)).dtype == dtype


def test_batches_are_fitted(optimized):
    y = np.linspace(-1.0, 3.0, 40)
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 2.0)
        pm.Normal("obs", mu, 1.0, observed=pm.Data("y", y))
    log_joint, sites, x = from_pymc(model)
    result = bbvi.fit(
        log_joint,
        bbvi.MeanField(sites),
        x,
        num_steps=400,
        batch_size=10,
        optimizer=optax.adam(0.05),
        progress=False,
    )
    # The posterior of 40 data of mean 1: N(40 / 40.25, 1 / 40.25).
    assert result.summary()["mu"]["mean"] == pytest.approx(40 / 40.25, abs=0.1)


def ordered(name):
    return pm.Normal(name, 0.0, 2.0, shape=3, transform=pm.distributions.transforms.ordered)


def factor(name):
    deviations = pm.Exponential.dist(1.0)
    return pm.LKJCholeskyCov(name, n=3, eta=2.0, sd_dist=deviations, compute_corr=False)


SUPPORTS = {
    "real": (lambda n: pm.StudentT(n, 3.0, mu=0.0, sigma=1.0), bbvi.Normal()),
    "flat": (lambda n: pm.Flat(n, shape=2), bbvi.Normal((2,))),
    "vector": (lambda n: pm.MvNormal(n, np.zeros(2), np.eye(2)), bbvi.Normal((2,))),
    "walk": (
        lambda n: pm.GaussianRandomWalk(n, sigma=1.0, init_dist=pm.Normal.dist(), steps=3),
        bbvi.Normal((4,)),
    ),
    "positive": (lambda n: pm.Gamma(n, 2.0, 3.0), bbvi.LogNormal()),
    "by_hand": (lambda n: pm.HalfNormal(n, 2.0, default_transform=None), bbvi.LogNormal()),
    "above": (lambda n: pm.Pareto(n, 2.0, 3.0), bbvi.Normal(support=supports.greater_than(3.0))),
    "below": (
        lambda n: pm.TruncatedNormal(n, 0.0, 1.0, upper=3.0),
        bbvi.Normal(support=supports.less_than(3.0)),
    ),
    "unit": (lambda n: pm.Beta(n, 2.0, 3.0), bbvi.Normal(support=supports.unit_interval)),
    "interval": (
        lambda n: pm.Uniform(n, -1.0, 2.5, shape=2),
        bbvi.Normal((2,), support=supports.interval(-1.0, 2.5)),
    ),
    "simplex": (
        lambda n: pm.Dirichlet(n, np.ones(3) * 2.0),
        bbvi.Normal((3,), support=supports.simplex),
    ),
    "ordered": (ordered, bbvi.Normal((3,), support=supports.ordered)),
    "factor": (factor, bbvi.Normal((3, 3), support=supports.cholesky_factor)),
    "circle": (lambda n: pm.VonMises(n, 0.5, 1.0), bbvi.VonMises()),
    "bits": (lambda n: pm.Bernoulli(n, 0.3, shape=4), bbvi.Bernoulli((4,))),
    "category": (
        lambda n: pm.Categorical(n, np.ones((5, 3)) / 3.0),
        bbvi.Categorical(3, (5,)),
    ),
    "count": (lambda n: pm.Binomial(n, 6, 0.4), bbvi.Categorical(7)),
    "level": (lambda n: pm.DiscreteUniform(n, 0, 4), bbvi.Categorical(5)),
}


def test_every_support_has_its_family_and_the_density_is_pymcs():
    with pm.Model() as model:
        variables = {name: prior(name) for name, (prior, _) in SUPPORTS.items()}
    log_joint, sites, x = from_pymc(model)
    assert sites == {name: site for name, (_, site) in SUPPORTS.items()}
    assert x == {}
    z = draw(sites)
    values = {name: np.asarray(leaf) for name, leaf in z.items()}
    values["factor"] = values["factor"][np.tril_indices(3)]
    priors = [pm.logp(variables[name], values[name]).sum() for name in SUPPORTS]
    wanted = pt.add(*priors).eval(mode="FAST_COMPILE")
    assert np.isfinite(wanted)
    np.testing.assert_allclose(log_joint(x, z), wanted, rtol=1e-4)


def bound_by_a_latent():
    pm.Uniform("z", 0.0, pm.HalfNormal("a"))


def minibatch():
    batch = pm.Minibatch(np.arange(8.0), batch_size=4)
    pm.Normal("obs", pm.Normal("z"), 1.0, observed=batch, total_size=8)


def python_only():
    pm.Potential("z", pt.sum(pt.as_tensor(pm.Normal("a")).clip(0, 1) + numpy_only(pm.Normal("b"))))


def numpy_only(value):
    from pytensor.compile.ops import wrap_py

    return wrap_py(itypes=[pt.dscalar], otypes=[pt.dscalar])(lambda x: x)(value)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (lambda: pm.Poisson("z", 3.0), r"'z' \(Poisson\): .*sum it out"),
        (lambda: pm.DiscreteUniform("z", 1, 3), "'z' .* begin at 1; draw from 0 on"),
        (lambda: pm.ZeroSumNormal("z", shape=3), "'z' .*'zerosum'.* minus its mean"),
        (lambda: pm.LKJCorr("z", n=3, eta=1.0), "'z' .*from LKJCholeskyCov"),
        (lambda: pm.Uniform("z", 0.0, np.array([1.0, 2.0])), "'z' .* differ from entry"),
        (lambda: pm.Uniform("z", 0.0, pm.Data("d", 2.0)), "'z' .*or on data"),
        (bound_by_a_latent, "'z' .*bounds depend on other latents"),
        (minibatch, r"pm.Minibatch .* fit\(\.\.\., batch_size"),
        (python_only, "cannot write this density in JAX: No JAX conversion"),
        (lambda: None, "no free variables"),
    ],
)
def test_what_cannot_be_translated_is_named(variables, message):
    with pm.Model() as model:
        variables()
    with pytest.raises(ValueError, match=message):
        from_pymc(model)


def test_a_guide_without_one_of_the_latents_is_refused():
    log_joint, sites, x = from_pymc(schools_model())
    del sites["tau"]
    with pytest.raises(ValueError, match="'tau', which"):
        bbvi.fit(log_joint, bbvi.MeanField(sites), x, progress=False)


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"takes a pymc.Model, got function"):
        from_pymc(schools_model)


def test_pymc_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'bbvi\[pymc\]'"):
        from_pymc(None)
