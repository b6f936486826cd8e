"""Reference posteriors: densities, gradients, guides and the stored draws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

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
@pytest.mark.parametrize("name", posteriors.NAMES + posteriors.MORE)
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


def values_and_scores(target):
    """Log joint (1000,) at the stored draws, and the gradient of the density on the reals there."""
    layout, x = target.guides["full_rank"]().layout, target.data()

    def log_density(u):
        z, log_det = layout.constrain(u)
        log_joint = target.log_joint(x, z)
        return log_joint + log_det, log_joint

    def of_draw(z):
        scores, log_joint = jax.grad(log_density, has_aux=True)(layout.unconstrain(z))
        return log_joint, scores

    return jax.jit(jax.vmap(of_draw))(reference_draws(target.name, 1000))


@functools.cache
def of_more(name):
    return values_and_scores(models.get(name))


def p_value_of_scores(target, scores):
    """Tests that the gradient has mean zero, as it has on average over the posterior of a density.

    Most of a gradient is that of a Gaussian, which is linear in the latents. What is predicted so
    is taken at their means over all 10,000 draws: that finds a posterior that is 0.05 deviations
    off, where the mean over 1,000 draws would find 0.16.
    """
    reference, draws = target.reference(), posteriors.draws(target.name)
    off = [
        ((rows - reference.mean[latent]) / reference.sd[latent]).reshape(1000, -1)
        for latent, rows in draws.items()
    ]
    predictors = np.concatenate([np.ones((1000, 1)), *off], axis=1)
    coefficients = np.linalg.lstsq(predictors, scores)[0]
    predicted, mean = predictors @ coefficients, coefficients[0]
    covariance = np.cov(scores - predicted, rowvar=False) / 1000
    covariance += np.cov(predicted, rowvar=False) / 10_000
    return stats.chi2.sf(mean @ np.linalg.solve(covariance, mean), mean.size)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", sorted(set(posteriors.MORE) - {"eight_schools_centered"}))
def test_log_joint_of_more_equals_check_values(name):
    expected = load(f"posteriors/{name}")["check_log_joint"]
    # That of one_comp_mm_elim_abs is of a solver with small steps.
    rtol = 1e-5 if name == "one_comp_mm_elim_abs" else ROUNDING
    np.testing.assert_allclose(of_more(name)[0][:5], expected, rtol=rtol)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", posteriors.MORE)
def test_draws_are_of_the_density(name):
    assert p_value_of_scores(models.get(name), of_more(name)[1]) > 1e-3


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        # Without the prior of sigma.
        ("kidscore_momiq", posteriors.regressions.flat_priors),
        # Without the Jacobian of sigma.
        (
            "kilpisjarvi",
            lambda x, z: posteriors.regressions.kilpisjarvi(x, z) - jnp.log(z["sigma"]),
        ),
    ],
)
def test_draws_are_not_of_a_density_that_lacks_a_term(name, wrong):
    target = dataclasses.replace(models.get(name), log_joint=wrong)
    assert p_value_of_scores(target, values_and_scores(target)[1]) < 1e-8


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


@pytest.mark.usefixtures("x64")
def test_concentration_where_elimination_balances_uptake():
    """Where v is large and K_m small, dC/dt is zero beside both rates r, and C = K_m r / (v - r).

    An explicit method with these steps has amplification factors of thousands there.
    """
    k_a, k_m, v, dose, times = 0.5, 1e-4, 30.0, 15.0, jnp.arange(1.0, 21.0) / 2.0
    uptake = dose * k_a * jnp.exp(-k_a * times)
    theta = jnp.array([k_a, k_m, v])
    actual = posteriors.pharmacokinetics.log_concentrations(theta, dose, times)
    np.testing.assert_allclose(actual, jnp.log(k_m * uptake / (v - uptake)), atol=1e-4)
