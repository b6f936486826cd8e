"""Semi-amortized guides: refined as by hand, trained through the steps, on every path."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import bbvi
from bbvi._optimizers import Optimizer
from bbvi.infer.step import Algorithm
from bbvi.problem import Problem
from bbvi.refinement import free_point, free_problem

N = 6
X = jnp.asarray(np.random.default_rng(0).normal(size=N))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        out = nn.Dense(2, param_dtype=x.dtype)(jnp.sin(x)[:, None])
        return {"u": {"loc": out[:, 0], "log_scale": out[:, 1]}}


def log_joint(x, z, theta=0.5):
    shift = z["w"] if "w" in z else 0.0
    prior = norm.logpdf(z["u"]).sum() + norm.logpdf(shift)
    return prior + norm.logpdf(x, theta * z["u"] ** 2 + z["u"] + shift, 0.5).sum()


def semi(num_steps=3, step_size=0.3):
    return bbvi.SemiAmortized(
        {"u": bbvi.Normal((N,))},
        Encoder(),
        num_steps=num_steps,
        step_size=step_size,
        num_samples=6,
    )


BOTH = bbvi.Product(bbvi.MeanField({"w": bbvi.Normal()}), semi())


def refined_by_hand(phi, theta, x, num_steps=3, step_size=0.3):
    noise = semi().refinement_noise(jax.random.key(0), 6)[0]
    np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(noise.var(axis=0), 1.0, rtol=1e-12)

    def elbo(own):
        u = own["loc"][None] + jnp.exp(own["log_scale"])[None] * noise
        values = jax.vmap(lambda u: log_joint(x, {"u": u}, theta))(u)
        return values.mean() + own["log_scale"].sum()

    own = Encoder().apply(phi, x)["u"]
    for _ in range(num_steps):
        grads = jax.grad(elbo)(own)
        scale = jnp.exp(own["log_scale"])
        by_loc = jnp.clip(step_size * scale * grads["loc"], -1.0, 1.0)
        by_log_scale = jnp.clip(0.5 * step_size * grads["log_scale"], -1.0, 1.0)
        own = {"loc": own["loc"] + scale * by_loc, "log_scale": own["log_scale"] + by_log_scale}
    return own


@pytest.fixture
def start(x64):
    x = X.astype(jnp.float64)
    problem = Problem(log_joint, semi())
    return problem, problem.init(jax.random.key(5), x, jnp.array(0.5)), x


def test_refined_as_by_hand(start):
    problem, params, x = start
    found = free_point(problem, params, x)
    wanted = refined_by_hand(params.guide, params.model, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found.guide["u"], wanted
    )
    before = Encoder().apply(params.guide, x)["u"]
    assert float(jnp.abs(before["loc"] - wanted["loc"]).max()) > 0.05


@pytest.mark.parametrize(
    "estimator", [bbvi.Reparameterization(3), bbvi.ScoreFunction(3, signal="blanket")]
)
def test_gradient_goes_through_the_steps(start, estimator):
    """It is the estimator's at the refined point times the derivative of that point."""
    problem, params, x = start
    algorithm = Algorithm(problem, estimator, Optimizer.of(optax.sgd(0.1)))
    state = algorithm.init(jax.random.key(1), x, params)
    noise = estimator.draw(jax.random.key(2), free_problem(problem))
    estimate, _ = algorithm.estimate(state, x, noise)

    free = free_problem(problem)
    point = bbvi.Params({"u": refined_by_hand(params.guide, params.model, x)}, params.model)
    at_point, _ = estimator.estimate(noise, free, point, x, estimator.init(free, point, x))
    np.testing.assert_allclose(estimate.loss, at_point.loss, rtol=1e-10)

    def inner(phi, theta):
        own = refined_by_hand(phi, theta, x)
        fixed = jax.tree.map(lambda a, b: jnp.vdot(a, b), own, at_point.grads.guide["u"])
        return sum(jax.tree.leaves(fixed)) + theta * at_point.grads.model

    by_phi, by_theta = jax.grad(inner, argnums=(0, 1))(params.guide, params.model)
    np.testing.assert_allclose(
        ravel_pytree(estimate.grads.guide)[0], ravel_pytree(by_phi)[0], rtol=1e-8, atol=1e-10
    )
    np.testing.assert_allclose(estimate.grads.model, by_theta, rtol=1e-8)
    assert abs(by_theta - at_point.grads.model) > 0.01


@pytest.mark.parametrize("guide", [semi(8), BOTH], ids=["local", "global"])
def test_results_are_of_the_refined_guide(guide):
    """Draws, densities and weights agree with each other and with the point refined for x."""
    result = bbvi.fit(log_joint, guide, X, num_steps=30, optimizer=optax.adam(0.01), progress=False)
    problem = Problem(log_joint, guide)
    free, point = free_problem(problem), free_point(problem, result.params, X)
    z = result.sample(jax.random.key(0), 5)
    wanted = jax.vmap(lambda draw: free.guide.log_prob(point.guide, X, draw))(z)
    found = jnp.stack(
        [result.log_prob({name: leaf[i] for name, leaf in z.items()}) for i in range(5)]
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    weights = result.log_weights(jax.random.clone(jax.random.key(0)), 5)
    log_p = jax.vmap(lambda draw: log_joint(X, draw))(z)
    np.testing.assert_allclose(weights, log_p - wanted, rtol=1e-4, atol=1e-4)
    assert "k-hat" in str(result)


def test_batches_and_other_data():
    """Minibatches refine their own rows; held-out data are refined as they are met."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=24))
    guide = bbvi.Product(
        bbvi.MeanField({"w": bbvi.Normal()}),
        bbvi.SemiAmortized({"u": bbvi.Normal((24,))}, Encoder(), num_steps=5),
    )
    result = bbvi.fit(log_joint, guide, x, batch_size=8, num_steps=300, progress=False)
    free = bbvi.Product(guide.guides[0], bbvi.Local({"u": bbvi.Normal((24,))}))
    best = bbvi.fit(log_joint, free, x, num_steps=3000, progress=False)
    plain = bbvi.Product(guide.guides[0], bbvi.Amortized({"u": bbvi.Normal((24,))}, Encoder()))
    amortized = bbvi.fit(log_joint, plain, x, batch_size=8, num_steps=300, progress=False)
    key = jax.random.key(0)
    values = [r.at(x).elbo(jax.random.clone(key), 4000) for r in (amortized, result)]
    top = best.elbo(jax.random.clone(key), 4000)
    assert values[1].value > values[0].value + 5 * values[0].standard_error
    assert top.value - values[1].value < 0.3 * (top.value - values[0].value)
    assert result.at(x[:5]).sample(key, 3)["u"].shape == (3, 5)


def test_bad_guides_are_refused():
    with pytest.raises(ValueError, match=r"normal sites.*site 'b' is Bernoulli"):
        bbvi.SemiAmortized({"b": bbvi.Bernoulli((N,))}, Encoder())
    for options, message in (
        ({"num_steps": 0}, r"num_steps must be an int >= 1, got 0"),
        ({"num_samples": 5}, r"num_samples must be an even int >= 4, got 5"),
        ({"step_size": 1.5}, r"step_size must be in \(0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            bbvi.SemiAmortized({"u": bbvi.Normal((N,))}, Encoder(), **options)
    other = bbvi.SemiAmortized({"v": bbvi.Normal((N,))}, Encoder())
    with pytest.raises(ValueError, match=r"takes one guide that refines"):
        bbvi.Product(semi(), other)

    def rounded(x, z):
        return -jnp.sum((x - jnp.round(z["u"])) ** 2)

    with pytest.raises(ValueError, match=r"not differentiable in latent 'u'"):
        bbvi.fit(rounded, semi(), X, estimator=bbvi.ScoreFunction(4), progress=False)


def test_equal_guides_are_equal():
    assert semi() == semi()
    assert hash(semi()) == hash(semi())
    assert semi(4) != semi()
