"""What every target of the registry must do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import models
from models import posteriors

# Targets without a real-valued latent.
DISCRETE = {
    *("binary_vae_linear", "binary_vae_linear_2", "binary_vae_nonlinear", "digits_vae"),
    *("gaussian_mixture_em", "gaussian_mixture_small", "hidden_markov", "ising", "ising_matrix"),
    *("sigmoid_belief", "sigmoid_belief_learned"),
}


def distinct_names():
    """All names, but none of `posteriors.MORE` that differs from another target in data alone."""
    names = sorted(models.names(), key=lambda name: name in posteriors.MORE)
    log_joints = [models.get(name).log_joint for name in names]
    return [
        name
        for index, name in enumerate(names)
        if name not in posteriors.MORE or log_joints[index] not in log_joints[:index]
    ]


NAMES = distinct_names()

# The step of finite differences is long for these.
NARROW = {"accel_gp", "diamonds", "hmm_drive_0", "kilpisjarvi", "sblrc"}

# Single precision loses more where a matrix is nearly singular and where runs are extrapolated.
LESS_PRECISE = {"gp_pois_regr", "one_comp_mm_elim_abs"}

WITH_REFERENCE = [name for name in models.names() if models.get(name).reference is not None]


def bound_log_joint(target):
    """Returns log_joint as a compiled function of z alone, of data in the precision in force."""
    return compiled_log_joint(target.name, jax.config.jax_enable_x64)


@functools.cache
def compiled_log_joint(name, is_double):
    del is_double  # what data() returns depends on it
    target = models.get(name)
    x = target.data()
    extra = () if target.model_params is None else (target.model_params(),)
    return jax.jit(lambda z: target.log_joint(x, z, *extra))


@pytest.fixture(params=NAMES)
def target(request):
    return models.get(request.param)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no target named 'nonesuch'; there are .*ising.*radon"):
        models.get("nonesuch")


def test_name_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="'ising' is already registered"):
        models.register(models.get("ising"))


def test_log_joint_is_a_finite_scalar_of_default_precision(target, draw):
    value = bound_log_joint(target)(draw(target.name))
    assert value.shape == ()
    assert value.dtype == jnp.float32
    assert jnp.isfinite(value)


def test_float32_agrees_with_float64(target, draw):
    single = bound_log_joint(target)(draw(target.name))
    with jax.enable_x64(True):
        double = bound_log_joint(target)(draw(target.name))
        assert double.dtype == jnp.float64
    tolerance = 2e-4 if target.name in LESS_PRECISE else 2e-5
    np.testing.assert_allclose(single, double, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("x64")
def test_nested_vmap_equals_a_loop(target, draw):
    log_joint = bound_log_joint(target)
    draws = [draw(target.name, seed) for seed in range(6)]
    grid = jax.tree.map(lambda *leaves: np.reshape(leaves, (2, 3, *leaves[0].shape)), *draws)
    batched = jax.jit(jax.vmap(jax.vmap(log_joint)))(grid)
    looped = np.reshape([log_joint(z) for z in draws], (2, 3))
    assert np.ptp(looped) > 1e-3
    np.testing.assert_allclose(batched, looped, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", sorted(set(NAMES) - DISCRETE - NARROW - {"sir_influenza"}))
def test_gradient_is_that_of_finite_differences(name, draw):
    target, z = models.get(name), draw(name)
    real = {site: v for site, v in z.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    log_joint = bound_log_joint(target)
    check_grads(lambda r: log_joint(z | r), (real,), order=1, modes=["rev"], rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["gaussian_em", "gaussian_mixture_em"])
def test_gradient_in_model_params_is_that_of_finite_differences(name, draw):
    target = models.get(name)
    x, z, theta = target.data(), draw(target.name), target.model_params()
    log_joint = jax.jit(lambda theta: target.log_joint(x, z, theta))
    check_grads(log_joint, (theta,), order=1, modes=["rev"], rtol=1e-4)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_reference_has_the_shapes_of_the_latents(name, draw):
    reference, z = models.get(name).reference(), draw(name)
    known = {**(reference.mean or {}), **(reference.probs or {})}
    assert set(known) == set(z)
    assert reference.log_evidence is None or np.isfinite(reference.log_evidence)
    assert reference.how
    for site, mean in (reference.mean or {}).items():
        assert np.shape(mean) == np.shape(reference.sd[site]) == z[site].shape
        assert np.all(np.isfinite(mean))
        assert np.all(np.asarray(reference.sd[site]) > 0)
    for site, probs in (reference.probs or {}).items():
        assert probs.shape[:-1] == z[site].shape
        assert np.all(probs >= 0)
        np.testing.assert_allclose(probs.sum(axis=-1), 1.0, rtol=1e-12)


def test_every_target_says_where_it_comes_from(target):
    assert target.guides
    assert target.source.endswith(".")


def test_integers_of_the_data_are_int32_whatever_the_default(target):
    with jax.enable_x64(True):
        leaves = jax.tree.leaves(target.data())
    integers = {x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.integer)}
    assert integers <= {jnp.dtype(jnp.int32)}


def test_guides_draw_what_log_joint_reads(target, draw):
    log_joint, example, x = bound_log_joint(target), draw(target.name), target.data()
    for build in target.guides.values():
        guide = build()
        assert guide == build()
        params = guide.init(jax.random.key(0), x)
        z = guide.sample(guide.base_noise(jax.random.key(1)), params, x)
        assert jax.tree.map(jnp.shape, z) == jax.tree.map(jnp.shape, example)
        assert jnp.isfinite(log_joint(z))
