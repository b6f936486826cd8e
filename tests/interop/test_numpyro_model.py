"""Models of NumPyro: the same density, supports of every kind, and what cannot be translated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi import supports
from bbvi.interop import from_numpyro
from models import eight_schools, radon

numpyro = pytest.importorskip("numpyro")
dist = numpyro.distributions
constraints = dist.constraints


@pytest.fixture(autouse=True)
def _numpyro_breaks_the_rules():
    # It broadcasts over missing axes, and uses keys more than once.
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        yield


def density(model, x, z):
    return numpyro.infer.util.log_density(model, (), x, z)[0]


def draw(sites, seed=0):
    """One draw of the latents from a wide guide."""
    guide = bbvi.MeanField(sites)

    @jax.jit
    def one(init_key, noise_key):
        params = guide.init(init_key, None)
        params = params._replace(normal=params.normal.at[1].set(-0.3))
        return guide.sample(guide.base_noise(noise_key), params, None)

    return one(jax.random.key(seed), jax.random.key(seed + 1))


def schools_model(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def radon_model(county, log_uppm, floor, log_radon, num_counties):
    mu_alpha = numpyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    sigma_alpha = numpyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    sigma_y = numpyro.sample("sigma_y", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with numpyro.plate("counties", num_counties):
        alpha_raw = numpyro.sample("alpha_raw", dist.Normal(0.0, 1.0))
    fitted = (mu_alpha + sigma_alpha * alpha_raw)[county] + beta[0] * log_uppm + beta[1] * floor
    with numpyro.plate("houses", len(log_radon)):
        numpyro.sample("y", dist.Normal(fitted, sigma_y), obs=log_radon)


def mixture_model(y, num_components):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(num_components)))
    with numpyro.plate("components", num_components):
        loc = numpyro.sample("loc", dist.Normal(0.0, 5.0))
    with numpyro.plate("data", len(y)):
        c = numpyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(loc[c], 1.0), obs=y)


def markov_model(y):
    stay = numpyro.sample("stay", dist.Beta(8.0, 2.0))

    def transition(previous, y):
        probs = jnp.where(jnp.arange(2) == previous, stay, 1.0 - stay)
        state = numpyro.sample("state", dist.Categorical(probs))
        numpyro.sample("y", dist.Normal(2.0 * state, 1.0), obs=y)
        return state, None

    numpyro.contrib.control_flow.scan(transition, 0, y)


def test_the_density_is_that_of_the_same_model_by_hand():
    x = eight_schools.data()
    log_joint, sites, data = from_numpyro(schools_model, x["y"], sigma=x["sigma"])
    z = draw(sites)
    wanted = eight_schools.log_joint_noncentered(x, z)
    np.testing.assert_allclose(log_joint(data, z), wanted, rtol=1e-5)
    assert bbvi.FullRank(sites).sites()[0].leaves == ("mu", "tau", "theta_trans")

    x = radon.data()
    log_joint, sites, data = from_numpyro(radon_model, **x, num_counties=85)
    assert sites == radon._sites()
    np.testing.assert_allclose(log_joint(data, draw(sites)), radon.log_joint(x, draw(sites)), 1e-5)


@pytest.mark.parametrize(
    ("model", "constants"), [(mixture_model, {"num_components": 3}), (markov_model, {})]
)
def test_the_density_with_discrete_latents_is_numpyros(model, constants):
    import numpyro.contrib.control_flow  # noqa: F401 - used by the model

    y = jnp.array([0.3, 2.1, -0.4, 1.9, 2.2, 0.1])
    log_joint, sites, x = from_numpyro(model, y, **constants)
    for seed in range(3):
        z = draw(sites, seed)
        np.testing.assert_allclose(log_joint(x, z), density(model, {"y": y} | constants, z), 1e-6)
    # Data are arguments: other values of another length, without another import.
    other = y[:4] + 1.0
    z = {n: leaf[:4] if n in ("c", "state") else leaf for n, leaf in z.items()}
    wanted = density(model, {"y": other} | constants, z)
    np.testing.assert_allclose(log_joint(x | {"y": other}, z), wanted, 1e-6)


def test_hidden_states_are_fitted():
    # Two states that are far apart, and a prior that hardly matters: the posterior is known.
    y = jnp.array([0.1, 6.2, -0.3, 5.9])

    def model(y):
        with numpyro.plate("data", len(y)):
            c = numpyro.sample("c", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(6.0 * c, 3.0), obs=y)

    log_joint, sites, x = from_numpyro(model, y)
    result = bbvi.fit(log_joint, bbvi.MeanField(sites), x, progress=False)
    odds = 0.3 / 0.7 * np.exp(norm.logpdf(y, 6.0, 3.0) - norm.logpdf(y, 0.0, 3.0))
    evidence = np.log(0.3 * np.exp(norm.logpdf(y, 6.0, 3.0)) + 0.7 * np.exp(norm.logpdf(y, 0.0, 3)))
    probs = jax.nn.sigmoid(result.params.guide.families["c"]["logits"])
    np.testing.assert_allclose(probs, odds / (1 + odds), atol=0.02)
    assert result.elbo(jax.random.key(0)).value == pytest.approx(evidence.sum(), abs=0.01)


SUPPORTS = {
    "real": (dist.StudentT(3.0, 0.0, 1.0), bbvi.Normal()),
    "vector": (dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), bbvi.Normal((2,))),
    "walk": (dist.GaussianRandomWalk(1.0, 4), bbvi.Normal((4,))),
    "expanded": (dist.Normal().expand([3, 2]).to_event(1), bbvi.Normal((3, 2))),
    "positive": (dist.Gamma(2.0, 3.0), bbvi.LogNormal()),
    "half": (dist.HalfNormal(jnp.ones(3)), bbvi.LogNormal((3,))),
    "above": (dist.Pareto(2.0, 3.0), bbvi.Normal(support=supports.greater_than(2.0))),
    "below": (dist.TruncatedNormal(high=3.0), bbvi.Normal(support=supports.less_than(3.0))),
    "unit": (dist.Beta(2.0, 3.0), bbvi.Normal(support=supports.unit_interval)),
    "interval": (
        dist.Uniform(jnp.full(2, -1.0), 2.5),
        bbvi.Normal((2,), support=supports.interval(-1.0, 2.5)),
    ),
    "simplex": (dist.Dirichlet(jnp.ones(3)), bbvi.Normal((3,), support=supports.simplex)),
    "ordered": (
        dist.ImproperUniform(constraints.ordered_vector, (), (3,)),
        bbvi.Normal((3,), support=supports.ordered),
    ),
    "matrix": (
        dist.Wishart(5.0, jnp.eye(2)),
        bbvi.Normal((2, 2), support=supports.positive_definite),
    ),
    "factor": (
        dist.ImproperUniform(constraints.lower_cholesky, (), (2, 2)),
        bbvi.Normal((2, 2), support=supports.cholesky_factor),
    ),
    "correlation": (
        dist.LKJCholesky(3, 2.0),
        bbvi.Normal((3, 3), support=supports.correlation_cholesky),
    ),
    "circle": (dist.VonMises(0.0, 1.0), bbvi.VonMises()),
    "bits": (dist.Bernoulli(0.3 * jnp.ones(4)), bbvi.Bernoulli((4,))),
    "category": (dist.Categorical(jnp.ones((5, 3)) / 3), bbvi.Categorical(3, (5,))),
    "count": (dist.Binomial(6, 0.4), bbvi.Categorical(7)),
    "level": (dist.DiscreteUniform(0, 4), bbvi.Categorical(5)),
}


def test_every_support_has_its_family_and_the_density_its_measure():
    def model():
        for name, (prior, _) in SUPPORTS.items():
            numpyro.sample(name, prior)

    log_joint, sites, x = from_numpyro(model)
    assert sites == {name: site for name, (_, site) in SUPPORTS.items()}
    z = draw(sites)

    @jax.jit
    def both(z):
        by_prior = (jnp.sum(prior.log_prob(z[name])) for name, (prior, _) in SUPPORTS.items())
        return log_joint(x, z), sum(by_prior)

    found, wanted = both(z)
    assert np.isfinite(wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_equal_calls_are_equal_and_data_may_be_batches(optimized):
    traces = []

    def model(y, prior_scale, unused=None):
        traces.append(1)
        mu = numpyro.sample("mu", dist.Normal(0.0, prior_scale))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = np.linspace(-1.0, 3.0, 40, dtype=np.float32)
    first, again = from_numpyro(model, y, 2.0), from_numpyro(model, y + 1, 2.0)
    assert first.log_joint == again.log_joint
    assert hash(first.log_joint) == hash(again.log_joint)
    assert from_numpyro(model, y, 3.0).log_joint != first.log_joint
    options = {"num_steps": 400, "batch_size": 10, "optimizer": optax.adam(0.05)}
    guide = bbvi.MeanField(first.sites)
    result = bbvi.fit(first.log_joint, guide, first.x, progress=False, **options)
    before = len(traces)
    shifted = bbvi.fit(again.log_joint, guide, again.x, progress=False, **options)
    assert len(traces) == before
    # The posterior of 40 data of mean 1: N(40 / 40.25, 1 / 40.25).
    for fitted, mean in ((result, 40 / 40.25), (shifted, 80 / 40.25)):
        assert fitted.summary()["mu"]["mean"] == pytest.approx(mean, abs=0.1)


def test_handlers_and_partials():
    x = eight_schools.data()
    centered = functools.partial(schools_model, x["y"])
    conditioned = numpyro.handlers.condition(centered, {"tau": 2.0})
    log_joint, sites, data = from_numpyro(conditioned, sigma=x["sigma"])
    assert list(sites) == ["mu", "theta_trans"]
    z = draw(sites)
    wanted = eight_schools.log_joint_noncentered(x, z | {"tau": jnp.array(2.0)})
    np.testing.assert_allclose(log_joint(data, z), wanted, rtol=1e-5)


def test_a_guide_without_one_of_the_latents_is_refused():
    x = eight_schools.data()
    log_joint, sites, data = from_numpyro(schools_model, x["y"], x["sigma"])
    del sites["tau"]
    with pytest.raises(ValueError, match="looks up 'tau', which there is not"):
        bbvi.fit(log_joint, bbvi.MeanField(sites), data, progress=False)


def one(prior):
    return lambda: numpyro.sample("z", prior)


def bound_by_a_latent():
    numpyro.sample("z", dist.Uniform(0.0, numpyro.sample("a", dist.HalfNormal())))


def bound_by_a_flat_latent():
    flat = numpyro.sample("a", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("z", dist.Uniform(0.0, flat))


def learned():
    numpyro.param("z", 1.0)


def subsampled(y):
    with numpyro.plate("z", len(y), subsample_size=2):
        numpyro.sample("a", dist.Normal())


def counted(y):
    numpyro.sample("z", dist.Normal().expand([len(np.unique(y))]))


Y = jnp.arange(4.0)


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (one(dist.Poisson(3.0)), (), ValueError, r"'z' \(Poisson, .*sum it out"),
        (one(dist.DiscreteUniform(1, 3)), (), ValueError, "'z' .* begin at 1; draw from 0 on"),
        (one(dist.ProjectedNormal(jnp.ones(3))), (), ValueError, r"'z' .*Sphere\): bbvi has no"),
        (one(dist.LKJ(3)), (), ValueError, "'z' .* from LKJCholesky"),
        (one(dist.Uniform(0.0, jnp.array([1.0, 2.0]))), (), ValueError, "differ from entry"),
        (bound_by_a_latent, (), ValueError, "'z' has bounds that depend on other latents"),
        (bound_by_a_flat_latent, (), ValueError, "'z' has bounds that depend on other latents"),
        (lambda y: one(dist.Uniform(0.0, y.max()))(), (Y,), ValueError, "or on data"),
        (learned, (), TypeError, "learned parameter 'z'"),
        (subsampled, (Y,), TypeError, "plate 'z' takes a random 2 of 4"),
        (counted, (Y,), ValueError, r"from_numpyro\(functools.partial\(model, array\), \.\.\.\)"),
        (lambda y: None, (Y,), ValueError, "no latent sites"),
        (lambda y: None, ({1, 2},), TypeError, "argument 'y' of the model is a set"),
        (lambda y: None, (), TypeError, "missing a required argument: 'y'"),
    ],
)
def test_what_cannot_be_translated_is_named(model, arguments, error, message):
    with pytest.raises(error, match=message):
        from_numpyro(model, *arguments)


def test_numpyro_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'bbvi\[interop\]'"):
        from_numpyro(schools_model, Y, Y)
