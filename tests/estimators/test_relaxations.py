"""Relaxed draws: exact identities between z, its copy given the draw, and the draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi.estimators.relaxations import (
    harden,
    perturb,
    perturb_given,
    positive_uniforms,
    relax,
    relaxed_log_prob,
)

BINARY = bbvi.MeanField({"z": bbvi.Bernoulli((2, 3))}).sites()[0]
ONE_HOT = bbvi.MeanField({"z": bbvi.OneHotCategorical(3, (2,))}).sites()[0]
LOGITS = jnp.array([[0.4, -1.3, 2.0], [0.0, -0.2, 0.7]])
BOTH = pytest.mark.parametrize("site", [BINARY, ONE_HOT], ids=["binary", "one_hot"])


def uniforms(num_samples=50):
    return positive_uniforms(jax.random.key(1), (num_samples, 2, 3))


def conditional_uniforms(site, z, index, logits):
    """The uniforms at which the copy given the draw is z itself: its conditional CDF there."""
    if not site.event_ndims:
        u, threshold = jax.nn.sigmoid(z - logits[None]), jax.nn.sigmoid(-logits)[None]
        return jnp.where(index == 1, (u - threshold) / (1 - threshold), u / threshold)
    theta, top = jax.nn.softmax(logits)[None], z.max(axis=-1, keepdims=True)
    # Given the largest, the others are independent Gumbels at log theta, cut off there.
    cut_off = jnp.exp(-theta * (jnp.exp(-z) - jnp.exp(-top)))
    return jnp.where(z == top, jnp.exp(-jnp.exp(-top)), cut_off)


@BOTH
def test_a_copy_has_the_law_of_z_given_the_draw(x64, site):
    """The conditional CDF, written out, undoes it."""
    logits = jnp.asarray(np.asarray(LOGITS), float)
    z = perturb(site, uniforms(), logits)
    index = harden(site, z)
    v = conditional_uniforms(site, z, index, logits)
    assert ((v > 0) & (v < 1)).all()
    np.testing.assert_allclose(perturb_given(site, index, v, logits), z, atol=1e-9)
    fresh = perturb_given(site, index, uniforms(), logits)
    np.testing.assert_array_equal(harden(site, fresh), index)


@BOTH
def test_derivative_of_a_copy_at_fixed_noise_and_draw(x64, site):
    """1 less the share of z's own: (1 - theta) / u or theta / (1 - u); e^(z_i - max z)."""
    logits = jnp.asarray(np.asarray(LOGITS), float)
    z = perturb(site, uniforms(), logits)
    index = harden(site, z)
    v = conditional_uniforms(site, z, index, logits)
    u, theta = jax.nn.sigmoid(z - logits[None]), jax.nn.sigmoid(logits)[None]
    if site.event_ndims:
        share = jnp.exp(z - z.max(axis=-1, keepdims=True))
        tangent = jnp.cos(jnp.arange(6.0)).reshape(2, 3)
        own = tangent - jnp.sum(jax.nn.softmax(logits) * tangent, axis=-1, keepdims=True)
    else:
        share = jnp.where(index == 1, (1 - theta) / u, theta / (1 - u))
        tangent = own = jnp.ones((2, 3))
    _, moved = jax.jvp(lambda eta: perturb_given(site, index, v, eta), (logits,), (tangent,))
    np.testing.assert_allclose(moved, (1 - share) * own[None], atol=1e-8)


@BOTH
def test_frequencies_of_draws(site):
    draws = harden(site, perturb(site, uniforms(40_000), LOGITS))
    frequencies = draws.mean(axis=0)
    wanted = jax.nn.sigmoid(LOGITS)
    if site.event_ndims:
        frequencies = jax.nn.one_hot(draws, 3).mean(axis=0)
        wanted = jax.nn.softmax(LOGITS)
    np.testing.assert_allclose(frequencies, wanted, atol=5.5 * 0.5 / 200)


@BOTH
def test_relaxed_draws_approach_draws(site):
    z = perturb(site, uniforms(), LOGITS)
    hard = jnp.where(z > 0, 1.0, 0.0)
    if site.event_ndims:
        hard = jax.nn.one_hot(harden(site, z), 3)
        np.testing.assert_allclose(relax(site, z, 2.0).sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(relax(site, z, 1e-5), hard, atol=1e-4)


@BOTH
def test_log_density_at_draws_and_between(site):
    index = harden(site, perturb(site, uniforms(), LOGITS))
    guide = bbvi.MeanField(
        {"z": bbvi.OneHotCategorical(3, (2,)) if site.event_ndims else bbvi.Bernoulli((2, 3))}
    )
    params = guide.init(jax.random.key(0), None)._replace(families={"z": {"logits": LOGITS}})
    value = jax.nn.one_hot(index, 3) if site.event_ndims else 1.0 * index
    found = relaxed_log_prob(site, value, LOGITS)
    wanted = jax.vmap(lambda z: guide.site_log_probs(params, None, {"z": z})["z"])(value)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    first, second = value[:1], value[1:2]
    between = relaxed_log_prob(site, 0.3 * first + 0.7 * second, LOGITS)
    np.testing.assert_allclose(between, 0.3 * found[:1] + 0.7 * found[1:2], atol=1e-5)


@BOTH
def test_saturated_logits_and_extreme_uniforms(site):
    """Draws are certain; nothing overflows, in value or derivative."""
    logits = jnp.array([[120.0, -120.0, -90.0], [-100.0, 95.0, -120.0]])
    u = jnp.stack([jnp.full((2, 3), jnp.finfo(jnp.float32).tiny), jnp.full((2, 3), 1 - 2.0**-24)])
    index = harden(site, perturb(site, u, logits))
    wanted = jnp.argmax(logits, axis=-1) if site.event_ndims else (logits > 0).astype(int)
    np.testing.assert_array_equal(index, jnp.broadcast_to(wanted, index.shape))

    def copy(eta):
        return perturb_given(site, index, u, eta)

    z, moved = jax.jvp(copy, (logits,), (jnp.ones((2, 3)),))
    np.testing.assert_array_equal(harden(site, z), index)
    assert jnp.isfinite(z).all()
    assert (jnp.abs(moved) <= 1.001).all()
