"""Reference posteriors: densities, gradients, guides and the stored draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import posteriors
from models.data import load

# Those with data of their own; the other two are tested beside their models.
OWN = sorted(set(posteriors.NAMES) - {"eight_schools_noncentered", "radon"})

# Stored draws are rounded to single precision, and so are the sums of a simplex.
ROUNDING = 1e-7


@pytest.fixture(params=OWN)
def target(request):
    return models.get(request.param)


def reference_draws(name, num_draws):
    return {
        latent: jnp.asarray(rows[:num_draws]) for latent, rows in posteriors.draws(name).items()
    }


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_check_values(target):
    log_joint = jax.jit(jax.vmap(target.log_joint, in_axes=(None, 0)))
    actual = log_joint(target.data(), reference_draws(target.name, 5))
    expected = load(f"posteriors/{target.name}")["check_log_joint"]
    np.testing.assert_allclose(actual, expected, rtol=ROUNDING)


@pytest.mark.usefixtures("x64")
def test_gradient_is_finite_on_the_posterior_and_far_from_it(target):
    layout, x = target.guides["full_rank"]().layout, target.data()

    def log_density(u):
        z, log_det = layout.constrain(u)
        return target.log_joint(x, z) + log_det

    typical = jax.vmap(layout.unconstrain)(reference_draws(target.name, 50))
    random = jax.random.normal(jax.random.key(0), (50, layout.size))
    gradients = jax.jit(jax.vmap(jax.grad(log_density)))(jnp.concatenate([typical, random]))
    assert np.isfinite(gradients).all(axis=1).sum() == 100
    # The random points are far: what the gradient is there shows what a fit must come from.
    norms = np.linalg.norm(gradients, axis=1)
    assert np.median(norms[50:]) > np.median(norms[:50])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", posteriors.NAMES)
def test_draws_have_the_moments_of_the_reference(name):
    """The errors of 1,000 draws are within five of their standard errors, if independent."""
    reference, draws = models.get(name).reference(), posteriors.draws(name)
    assert set(draws) == set(reference.mean) == set(reference.sd)
    for latent, rows in draws.items():
        sd = reference.sd[latent]
        error = (rows.mean(axis=0) - reference.mean[latent]) / sd
        np.testing.assert_array_less(np.abs(error), 5.0 / np.sqrt(1000))
        fourth = (((rows - rows.mean(axis=0)) / sd) ** 4).mean(axis=0)
        ratio = (rows.std(axis=0) / sd) ** 2
        np.testing.assert_array_less(np.abs(ratio - 1.0), 5.0 * np.sqrt(fourth / 1000))


@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
@pytest.mark.parametrize("name", posteriors.NAMES)
def test_guides_draw_inside_the_supports(name, family):
    target = models.get(name)
    guide = target.guides[family]()
    params = guide.init(jax.random.key(0), None)
    keys = jax.random.split(jax.random.key(1), 100)
    sample = jax.jit(jax.vmap(lambda key: guide.sample(guide.base_noise(key), params, None)))
    draws = sample(keys)
    stored = posteriors.draws(name)
    shapes = {latent: rows.shape[1:] for latent, rows in draws.items()}
    assert shapes == {latent: rows.shape[1:] for latent, rows in stored.items()}
    for latent, site in guide.named_families.items():
        assert bool(site.support.contains(draws[latent]))
        assert bool(site.support.contains(jnp.asarray(stored[latent], jnp.float32)))


@pytest.mark.usefixtures("x64")
def test_populations_follow_the_conserved_quantity():
    """Along a solution of Lotka and Volterra's equations d u - g log u + b v - a log v is fixed."""
    a, b, g, d = theta = jnp.array([0.55, 0.028, 0.8, 0.024])
    start = jnp.log(jnp.array([34.0, 6.0]))
    path = posteriors.time_series.log_populations(theta, start, 20)

    def conserved(state):
        prey, predators = state
        return d * jnp.exp(prey) - g * prey + b * jnp.exp(predators) - a * predators

    values = jax.vmap(conserved)(path)
    assert np.ptp(path[:, 0]) > 1.0
    np.testing.assert_allclose(values, conserved(start), rtol=1e-5)
