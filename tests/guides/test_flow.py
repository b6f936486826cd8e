"""Normalizing flows: their densities, where they start, and what Gaussians cannot reach."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import bbvi
from bbvi import supports
from bbvi.infer.automatic import flow_optimizer
from bbvi.natural_gradient import in_local_coordinates
from bbvi.testing import check_guide

SMALL = {"num_layers": 2, "num_units": 4, "num_bins": 3}
LATENTS = {
    "one": bbvi.Normal(),
    "three": {"w": bbvi.Normal((2,)), "tau": bbvi.LogNormal(())},
    "nested": (bbvi.Normal((2,), support=supports.simplex), [bbvi.Normal((2,))]),
}


def bent(sites, scale=0.3, **options):
    """A flow with all parameters away from where they start."""
    guide = bbvi.NormalizingFlow(sites, **(SMALL | options))
    params = guide.init(jax.random.key(0), None)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), params
    )
    params["gaussian"]["lower"] = jnp.tril(params["gaussian"]["lower"], -1)
    return guide, params


@pytest.mark.parametrize("latents", LATENTS)
def test_parts_of_the_guide_agree(latents):
    check_guide(bbvi.NormalizingFlow(LATENTS[latents], **SMALL), num_samples=2000)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_density_is_that_of_the_map(size, x64):
    """By the Jacobian of the map from the noise, at the draw and by the inverse."""
    guide, params = bent(bbvi.Normal((size,)), num_layers=3)

    @jax.jit
    def densities(noise):
        z, forward = guide.sample_and_log_prob(noise, params, None)
        jacobian = jax.jacobian(guide.location)(noise, params)
        exact = norm.logpdf(noise).sum() - jnp.linalg.slogdet(jacobian)[1]
        return forward, guide.log_prob(params, None, z), exact

    # Within the splines' range and beyond it.
    noise = jnp.linspace(-5.0, 5.5, 7 * size).reshape(7, size)[:, ::-1]
    forward, inverse, exact = jax.vmap(densities)(noise)
    np.testing.assert_allclose(forward, exact, rtol=1e-9)
    np.testing.assert_allclose(inverse, exact, rtol=1e-7)


@pytest.mark.parametrize("num_layers", [2, 3, 6])
def test_two_couplings_move_every_entry(num_layers):
    for size in (2, 3, 7, 8):
        guide = bbvi.NormalizingFlow(bbvi.Normal((size,)), num_layers)
        orders, back = guide._orders()
        assert orders.shape == (num_layers, size)
        np.testing.assert_array_equal(
            np.take_along_axis(orders, back, 1), [range(size)] * len(back)
        )
        moved = {*orders[0][size // 2 :], *orders[1][size // 2 :]}
        assert moved == set(range(size))


@pytest.mark.parametrize("start", ["full rank", "low rank", "mean field"])
def test_starts_as_the_gaussian_it_is_made_from(start, x64):
    """Draw for draw: latents, log densities, and with them the ELBO."""
    sites = {"w": bbvi.Normal((3,)), "tau": bbvi.LogNormal()}
    flow, rng = bbvi.NormalizingFlow(sites), np.random.default_rng(3)
    gaussian = bbvi.FullRank(sites)
    params = gaussian.init(jax.random.key(0), None)
    params = jax.tree.map(lambda leaf: leaf + 0.5 * rng.normal(size=leaf.shape), params)
    params["lower"] = jnp.tril(params["lower"], -1)
    made = flow.from_full_rank(params)
    if start == "mean field":
        params["lower"] = jnp.zeros((4, 4))
        made = flow.from_mean_field(params["loc"], params["log_diagonal"])
    if start == "low rank":
        low = bbvi.LowRank(sites, 2)
        by_low = low.init(jax.random.key(0), None) | {
            "factor": jnp.asarray(rng.normal(size=(4, 2)))
        }
        params = low.full_rank(by_low)
        made = flow.from_full_rank(params)
        z = low.sample(low.base_noise(jax.random.key(1)), by_low, None)
        same = low.log_prob(by_low, None, z), gaussian.log_prob(params, None, z)
        np.testing.assert_allclose(*same, rtol=1e-9)
    for key in jax.random.split(jax.random.key(2), 5):
        noise = flow.base_noise(key)
        got = flow.sample_and_log_prob(noise, made, None)
        wanted = gaussian.sample_and_log_prob(noise, params, None)
        np.testing.assert_allclose(ravel_pytree(got)[0], ravel_pytree(wanted)[0], rtol=1e-9)


def test_gradient_of_the_elbo_against_quadrature(x64):
    """One dimension: pathwise, and sticking the landing, over a grid of the noise itself."""
    guide, params = bent({"z": bbvi.Normal()})
    params["gaussian"]["log_diagonal"] = jnp.zeros(1)

    def log_joint(x, z):
        return -0.5 * z["z"] ** 2 + jnp.sin(2 * z["z"])

    grid = jnp.linspace(-9.0, 9.0, 16_001)[:, None]
    mass = jnp.exp(norm.logpdf(grid[:, 0])) * (grid[1, 0] - grid[0, 0])

    def elbo(params, held):
        def one(noise):
            z, log_q = guide.sample_and_log_prob(noise, params, None)
            return log_joint(None, z) - (guide.log_prob(held, None, z) if held else log_q)

        return jnp.sum(mass * jax.vmap(one)(grid))

    full = ravel_pytree(jax.jit(jax.grad(lambda p: elbo(p, None)))(params))[0]
    path = ravel_pytree(jax.jit(jax.grad(lambda p: elbo(p, params)))(params))[0]
    flat, unravel = ravel_pytree(params)
    value = jax.jit(lambda flat: elbo(unravel(flat), None))
    # Of the one entry of the Gaussian's lower triangle, which is none in one dimension, no step.
    step = 1e-5 * np.diag(
        ravel_pytree(
            jax.tree.map(jnp.ones_like, params)
            | {
                "gaussian": {
                    "loc": jnp.ones(1),
                    "log_diagonal": jnp.ones(1),
                    "lower": jnp.zeros((1, 1)),
                }
            }
        )[0]
    )
    exact = np.array([(value(flat + e) - value(flat - e)) / 2e-5 for e in step])
    np.testing.assert_allclose(full, exact, atol=1e-6)
    # The density has kinks at the knots, between points of the grid.
    np.testing.assert_allclose(path, exact, atol=5e-4)


def test_steps_do_not_depend_on_units():
    """A run on 1000 times the latent is the same run, 1000 times as long."""
    guide = bbvi.NormalizingFlow({"w": bbvi.Normal((2,))}, **SMALL)
    optimizer = in_local_coordinates(guide, flow_optimizer())
    noise = jax.random.normal(jax.random.key(0), (8, 2))

    @jax.jit
    def run(unit):
        def loss(params):
            def one(noise):
                z, log_q = guide.sample_and_log_prob(noise, params.guide, None)
                w = z["w"] / unit
                return log_q - norm.logpdf(w[0]) - norm.logpdf(w[1], w[0] ** 2, 0.5)

            return jax.vmap(one)(noise).mean()

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        log_scale = jnp.log(unit * jnp.array([1.0, 0.5]))
        params = bbvi.Params(guide.from_mean_field(unit * jnp.ones(2), log_scale))
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=30)
        return params.guide["gaussian"]["loc"] / unit, losses + 2 * jnp.log(unit)

    (loc, losses), (scaled_loc, scaled_losses) = run(1.0), run(1024.0)
    np.testing.assert_allclose(loc, scaled_loc, rtol=1e-3)
    np.testing.assert_allclose(losses, scaled_losses, atol=1e-2)
    assert abs(loc - 1).max() > 0.05
    assert losses[-1] < losses[0] - 0.5


def banana(x, z):
    """Normalised: log Z is 0."""
    u = z["u"]
    return norm.logpdf(u[0], 0.0, 2.0) + norm.logpdf(u[1], 0.25 * u[0] ** 2, 0.5)


@pytest.mark.slow
def test_the_plain_call_reaches_the_evidence_of_a_banana(optimized):
    """Within 0.02 nats; a Gaussian stays half a nat below."""
    sites = {"u": bbvi.Normal((2,))}

    def elbo(guide):
        result = bbvi.fit(banana, guide, key=jax.random.key(0), progress=False)
        assert result.status == "converged"
        return result.elbo(jax.random.key(1), 50_000)

    flow, gaussian = elbo(bbvi.NormalizingFlow(sites)), elbo(bbvi.FullRank(sites))
    assert flow.standard_error < 0.003
    assert -0.02 < flow.value < 4.5 * flow.standard_error
    assert gaussian.value < -0.1 - 4.5 * gaussian.standard_error


def test_the_noise_can_be_quasi_random():
    guide = bbvi.NormalizingFlow(bbvi.Normal((3,)), **SMALL)
    noise = bbvi.Antithetic().draw(jax.random.key(0), guide, 4)
    np.testing.assert_allclose(noise[:2], -noise[2:], rtol=1e-6)


def test_flows_compare_by_value_and_print():
    sites = {"w": bbvi.Normal((2,))}
    assert bbvi.NormalizingFlow(sites) == bbvi.NormalizingFlow(dict(sites))
    assert bbvi.NormalizingFlow(sites) != bbvi.NormalizingFlow(sites, num_layers=2)
    assert hash(bbvi.NormalizingFlow(sites)) == hash(bbvi.NormalizingFlow(sites))
    assert repr(bbvi.NormalizingFlow(sites)) == (
        "NormalizingFlow({'w': Normal(shape=(2,), support=real)}, num_layers=6, num_units=32, "
        "num_bins=8)"
    )


@pytest.mark.parametrize("option", ["num_layers", "num_units", "num_bins"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_bad_numbers_are_refused(option, value):
    with pytest.raises(ValueError, match=f"NormalizingFlow {option} must be an int of at least 1"):
        bbvi.NormalizingFlow(bbvi.Normal(), **{option: value})


def test_sites_must_be_normal():
    with pytest.raises(TypeError, match=r"NormalizingFlow got Gamma.*'g'.*Normal"):
        bbvi.NormalizingFlow({"g": bbvi.Gamma()})
