"""Natural gradients: against the inverse Fisher information, and free of units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi._optimizers import Optimizer
from bbvi._types import Params

D = 3
SITES = {"w": bbvi.Normal((D,))}
GUIDES = {"mean_field": bbvi.MeanField(SITES), "full_rank": bbvi.FullRank(SITES)}


def some_params(guide, seed=0):
    """Parameters away from any symmetry."""
    params = guide.init(jax.random.key(seed), None)
    flat, unravel = ravel_pytree(params)
    flat = flat + 0.7 * jax.random.normal(jax.random.key(seed + 1), flat.shape)
    return keep_form(guide, unravel(flat))


def keep_form(guide, params):
    """The upper triangle of FullRank's factor is no parameter: it stays zero."""
    if isinstance(guide, bbvi.FullRank):
        return params | {"lower": jnp.tril(params["lower"], -1)}
    return params


def moments(guide, params):
    if isinstance(guide, bbvi.FullRank):
        factor = guide.scale_tril(params)
        return params["loc"], factor @ factor.T
    return params.normal[0], jnp.diag(jnp.exp(2 * params.normal[1]))


def divergence(guide, params, mean, covariance):
    """KL(q || N(mean, covariance)) in closed form."""
    loc, own = moments(guide, params)
    precision = jnp.linalg.inv(covariance)
    distance = (mean - loc) @ precision @ (mean - loc)
    logs = jnp.linalg.slogdet(covariance)[1] - jnp.linalg.slogdet(own)[1]
    return 0.5 * (jnp.trace(precision @ own) + distance - len(loc) + logs)


def updates_of(guide, grads, params, **settings):
    optimizer = bbvi.natural_gradient(guide, **settings)
    params = Params(params)
    return optimizer.update(Params(grads), optimizer.init(params), params)[0].guide


@pytest.mark.parametrize("name", GUIDES)
def test_a_small_step_is_the_gradient_times_the_inverse_information(name):
    guide = GUIDES[name]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), some_params(guide))
        flat, unravel = ravel_pytree(params)
        own = moments(guide, params)

        # The Fisher information is the curvature of the divergence from q itself.
        def from_self(flat):
            return divergence(guide, keep_form(guide, unravel(flat)), *own)

        information = np.asarray(jax.jit(jax.hessian(from_self))(flat))
        mean, factor = jnp.array([1.0, -2.0, 0.5]), jnp.array([[1.0, 0, 0], [2, 1, 0], [-1, 3, 2]])
        gradient = jax.grad(
            lambda p: divergence(guide, keep_form(guide, p), mean, factor @ factor.T)
        )
        grads = gradient(params)
        step_size = 1e-6
        got = ravel_pytree(updates_of(guide, grads, params, step_size=step_size))[0] / step_size
        wanted = -np.linalg.pinv(information) @ np.asarray(ravel_pytree(grads)[0])
        assert np.abs(wanted).max() > 0.5
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_step_of_a_full_rank_guide_does_not_depend_on_linear_maps():
    guide = GUIDES["full_rank"]
    params = some_params(guide)
    factor = guide.scale_tril(params)
    change = jnp.array([[300.0, 0, 0], [-2.0, 0.05, 0], [40.0, 0.7, 9.0]])
    mapped_factor = change @ factor
    diagonal = jnp.diag(mapped_factor)
    mapped = {
        "loc": change @ params["loc"],
        "log_diagonal": jnp.log(diagonal),
        "lower": jnp.tril(mapped_factor / diagonal[:, None], -1),
    }
    noise = jax.random.normal(jax.random.key(3), (4, D))

    def loss(params, back):
        draws = jax.vmap(lambda n: guide.location(n, params))(noise)
        return jnp.mean(
            jnp.sum(jnp.log(jnp.cosh(draws @ back.T - 2.0)), axis=1)
        ) - guide.vector_entropy(params)

    def moved(params, back):
        grads = jax.grad(loss)(params, back)
        updates = updates_of(guide, grads, params, step_size=0.3)
        new = optax.apply_updates(params, updates)
        return new["loc"], guide.scale_tril(new)

    loc, scale = moved(params, jnp.eye(D))
    mapped_loc, mapped_scale = moved(mapped, jnp.linalg.inv(change))
    back = jnp.linalg.inv(change)
    np.testing.assert_allclose(back @ mapped_loc, loc, atol=2e-4)
    np.testing.assert_allclose(back @ mapped_scale, scale, atol=2e-4)
    assert float(jnp.abs(loc - params["loc"]).max()) > 0.01


@pytest.mark.parametrize("name", GUIDES)
def test_a_whole_step_finds_the_mean_of_a_gaussian(name):
    guide = GUIDES[name]
    mean, scale = jnp.array([500.0, -0.002, 3.0]), jnp.array([10.0, 1e-4, 2.0])
    params = guide.from_mean_field(mean + 0.3 * scale, jnp.log(scale))
    grads = jax.grad(lambda p: divergence(guide, p, mean, jnp.diag(scale**2)))(params)
    new = optax.apply_updates(params, updates_of(guide, grads, params, step_size=1.0, max_norm=9.0))
    np.testing.assert_allclose((moments(guide, new)[0] - mean) / scale, 0, atol=1e-4)


@pytest.mark.parametrize("name", GUIDES)
def test_steps_are_no_longer_than_allowed(name):
    guide = GUIDES[name]
    params = some_params(guide)
    grads = keep_form(guide, jax.tree.map(lambda leaf: 1e8 * jnp.ones_like(leaf), params))
    loc, covariance = moments(guide, params)
    new = optax.apply_updates(params, updates_of(guide, grads, params, max_norm=0.5))
    factor = jnp.linalg.cholesky(covariance)
    moved = jnp.linalg.solve(factor, moments(guide, new)[0] - loc)
    length = jnp.abs(moved).max() if name == "mean_field" else jnp.linalg.norm(moved)
    assert 0.01 < float(length) <= 0.5 + 1e-4


@pytest.mark.usefixtures("x64")
def test_a_lower_rate_is_a_shorter_step_not_a_part_of_one():
    guide = GUIDES["full_rank"]
    # Latents that are nearly one: the last is a thousand times narrower given the others.
    params = guide.from_mean_field(jnp.zeros(D), jnp.array([0.0, -4.0, -7.0]))
    params["lower"] = jnp.array([[0.0, 0, 0], [50, 0, 0], [900, 15, 0]])
    grads = keep_form(guide, jax.tree.map(lambda leaf: 0.3 + leaf, params))

    def moved(rate, step_size):
        optimizer = bbvi.natural_gradient(guide, step_size, max_norm=1e9)
        state = optimizer.init(Params(params))
        updates, _ = optimizer.update(Params(grads), state, Params(params), fit_rate=rate)
        return jax.tree.map(lambda a, b: a + rate * b, params, updates.guide)

    shorter, part = moved(0.25, 0.004), moved(1.0, 0.004)
    jax.tree.map(np.testing.assert_allclose, shorter, moved(1.0, 0.001))
    quarter = params["lower"] + 0.25 * (part["lower"] - params["lower"])
    assert np.abs(quarter - shorter["lower"]).max() > 1e-3  # what this test can tell


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_steps_that_go_to_and_fro_become_shorter(rate):
    """A curvature of eight times the information, along which steps of 0.3 overshoot."""
    guide = bbvi.MeanField({"w": bbvi.Normal((10,))})
    optimizer = bbvi.natural_gradient(guide)
    curvature = (1 - rate) * jnp.eye(10) + rate * jnp.full((10, 10), 10.0)

    def loss(params):
        loc, log_scale = params.guide.normal
        spread = jnp.sum(jnp.exp(2 * log_scale) * jnp.diag(curvature))
        return 0.5 * (loc @ curvature @ loc + spread) - log_scale.sum()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), loss(params)

    params = Params(guide.params_at({"w": jnp.ones(10)}, 1.0), ())
    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=600))
    (params, state), losses = run(params)
    best = 5.0 + 0.5 * float(jnp.log(jnp.diag(curvature)).sum())
    np.testing.assert_allclose(losses[-1], best, atol=1e-3)
    assert float(state.factor) == 1.0 if rate == 0.0 else float(state.factor) < 0.7


def test_low_rank_steps_are_in_marginal_deviations():
    guide = bbvi.LowRank(SITES, rank=2)
    params = guide.from_mean_field(jnp.zeros(D), jnp.log(jnp.array([1e3, 1.0, 1e-3])))
    grads = jax.tree.map(jnp.zeros_like, params) | {"loc": jnp.array([1e-3, 1.0, 1e3])}
    updates = updates_of(guide, grads, params, step_size=0.1, max_norm=100.0)
    marginal = jnp.sqrt(jnp.exp(2 * params["log_scale"]) + jnp.sum(params["factor"] ** 2, axis=1))
    scaled = updates["loc"] / marginal
    np.testing.assert_allclose(scaled, -0.1 * marginal * grads["loc"], rtol=1e-5)


def test_everything_else_is_left_to_adam():
    guide = bbvi.MeanField({"w": bbvi.Normal(()), "c": bbvi.Categorical(3)})
    params = Params(guide.init(jax.random.key(0), None), jnp.array([1.0, 2.0]))
    grads = jax.tree.map(lambda leaf: jnp.cos(7.0 * leaf + 1.0), params)
    optimizer, adam = bbvi.natural_gradient(guide), optax.adam(0.05)
    state = optimizer.init(params)
    rest = Params(params.guide.families, params.model)
    adam_state = adam.init(rest)
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params)
        wanted, adam_state = adam.update(Params(grads.guide.families, grads.model), adam_state)
        np.testing.assert_allclose(updates.model, wanted.model, rtol=1e-6)
        got = updates.guide.families["c"]["logits"]
        np.testing.assert_allclose(got, wanted.guide["c"]["logits"], rtol=1e-6)


def test_equal_optimizers_are_equal():
    make = lambda *args: Optimizer.of(bbvi.natural_gradient(*args))  # noqa: E731
    assert make(bbvi.FullRank(SITES)) == make(bbvi.FullRank({"w": bbvi.Normal((D,))}))
    assert make(bbvi.FullRank(SITES)) != make(bbvi.FullRank({"w": bbvi.Normal((2,))}))
    assert make(bbvi.FullRank(SITES)) != make(bbvi.FullRank(SITES), 0.1)


@pytest.mark.parametrize(
    "guide", [bbvi.MeanField({"c": bbvi.Bernoulli(())}), optax.adam(0.1), None]
)
def test_a_guide_without_a_gaussian_part_is_refused(guide):
    with pytest.raises(TypeError, match="needs a MeanField guide with Normal sites"):
        bbvi.natural_gradient(guide)


def test_parameters_are_needed():
    optimizer, params = (
        bbvi.natural_gradient(GUIDES["full_rank"]),
        Params(some_params(GUIDES["full_rank"])),
    )
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(params, optimizer.init(params))


@pytest.mark.parametrize("settings", [{"step_size": 0.0}, {"max_norm": -1.0}])
def test_settings_must_be_positive(settings):
    with pytest.raises(ValueError, match="must be a positive number"):
        bbvi.natural_gradient(GUIDES["full_rank"], **settings)
