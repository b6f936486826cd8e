"""Hamiltonian Monte Carlo from a fit: the density, the start, and a run against a reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import gamma, norm

import bbvi
from bbvi.interop import to_blackjax
from models.eight_schools import (
    data,
    full_rank_noncentered,
    log_joint_noncentered,
    reference_noncentered,
)


def still(log_joint, guide, params, x=None):
    """A result whose guide has these parameters."""
    return bbvi.fit(
        log_joint,
        guide,
        x,
        init_params=params,
        optimizer=optax.sgd(0.0),
        num_steps=1,
        progress=False,
    )


def log_joint(x, z):
    half = norm.logpdf(z["a"]).sum() + gamma.logpdf(z["deep"]["b"], 3.0)
    return half + x * (jnp.log(z["p"]).sum() + jnp.log(z["c"]))


SITES = {
    "p": bbvi.Dirichlet((3,)),
    "a": bbvi.Normal((2,)),
    "deep": {"b": bbvi.Gamma()},
    "c": bbvi.Normal(support=bbvi.supports.unit_interval),
}


def test_the_density_is_that_of_the_unconstrained_vector(key):
    guide = bbvi.MeanField(SITES)
    result = still(log_joint, guide, guide.init(key, None), jnp.array(1.5))
    start = to_blackjax(result, jax.random.key(7), num_chains=3)
    assert start.positions.shape == (3, 6)
    assert start.inverse_mass_matrix.shape == (6,)
    z = jax.vmap(start.constrain)(start.positions)
    assert jax.tree.map(jnp.shape, z) == {"p": (3, 3), "a": (3, 2), "deep": {"b": (3,)}, "c": (3,)}
    for chain in range(3):
        u, one = start.positions[chain], jax.tree.map(lambda leaf: leaf[chain], z)  # noqa: B023
        # All but the last entry of the simplex are free: the log volume by automatic derivatives.
        free = jax.jacfwd(lambda u: _free(start.constrain(u)))(u)
        wanted = log_joint(1.5, one) + jnp.linalg.slogdet(free)[1]
        np.testing.assert_allclose(start.log_density(u), wanted, rtol=2e-4)
    # Its data are arguments, not constants of the program.
    assert 1.5 in [float(leaf) for leaf in jax.tree.leaves(start.log_density) if leaf.ndim == 0]


def _free(z):
    return jnp.concatenate([z["p"][:2], z["a"], z["deep"]["b"][None], z["c"][None]])


@pytest.mark.parametrize("kind", ["mean_field", "full_rank", "product"])
def test_the_matrix_is_the_covariance_of_the_guide(kind, key):
    sites = {"a": bbvi.Normal((2,)), "b": bbvi.LogNormal()}
    guide = {
        "mean_field": bbvi.MeanField(sites),
        "full_rank": bbvi.FullRank(sites),
        "product": bbvi.Product(
            bbvi.FullRank({"a": sites["a"]}), bbvi.MeanField({"b": sites["b"]})
        ),
    }[kind]
    params = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        guide.init(key, None),
    )
    covariance = np.zeros((3, 3))
    if kind == "mean_field":
        covariance = np.diag(np.exp(2 * params.normal[1]))
    elif kind == "full_rank":
        params["lower"] = jnp.tril(params["lower"], -1)
        factor = guide.scale_tril(params)
        covariance = factor @ factor.T
    else:
        params[0]["lower"] = jnp.tril(params[0]["lower"], -1)
        factor = guide.guides[0].scale_tril(params[0])
        covariance[:2, :2] = factor @ factor.T
        covariance[2, 2] = np.exp(2 * params[1].normal[1][0])

    def density(x, z):
        return -jnp.sum(z["a"] ** 2) - z["b"]

    found = to_blackjax(still(density, guide, params), jax.random.key(7)).inverse_mass_matrix
    wanted = np.diag(covariance) if kind == "mean_field" else covariance
    # Standard errors of 4000 draws are sqrt(2 / 4000) = 2.2 % of the variances.
    scale = np.sqrt(np.diag(covariance))
    unit = scale**2 if kind == "mean_field" else np.outer(scale, scale)
    np.testing.assert_allclose(found / unit, wanted / unit, atol=0.1)


@pytest.mark.slow
def test_nuts_from_a_fit_agrees_with_the_exact_posterior(optimized, key):
    blackjax = pytest.importorskip("blackjax")
    result = bbvi.fit(
        log_joint_noncentered, full_rank_noncentered(), data(), num_steps=2000, progress=False
    )
    start = to_blackjax(result, key)
    nuts = blackjax.nuts(start.log_density, 0.3, start.inverse_mass_matrix)

    def step(state, key):
        state, info = nuts.step(key, state)
        return state, (start.constrain(state.position), info.is_divergent)

    @jax.jit
    @jax.vmap
    def run(key, position):
        return jax.lax.scan(step, nuts.init(position), jax.random.split(key, 3000))[1]

    # BlackJAX broadcasts over missing axes.
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        z, is_divergent = run(jax.random.split(jax.random.key(1), 4), start.positions)
    assert float(is_divergent.mean()) < 0.01
    reference = reference_noncentered()
    for name, mean in reference.mean.items():
        draws, sd = np.asarray(z[name], np.float64), np.asarray(reference.sd[name])
        errors = draws.mean(axis=(0, 1)) - mean
        assert np.abs(errors / sd).max() < 0.08, name
        assert np.abs(np.log(draws.std(axis=(0, 1)) / sd)).max() < 0.1, name


class Lone(bbvi.Guide):
    reparameterized = True

    def init(self, key, x):
        return jnp.zeros(())

    def sample(self, noise, params, x):
        return params + jax.random.normal(noise)

    def log_prob(self, params, x, z):
        return norm.logpdf(z, params)


@pytest.mark.parametrize(
    ("guide", "error", "message"),
    [
        (bbvi.MeanField({"k": bbvi.Bernoulli()}), ValueError, r"latent 'k' is Bernoulli"),
        (bbvi.MeanField({"k": bbvi.VonMises()}), ValueError, r"latent 'k' is VonMises"),
        (Lone(), TypeError, "Lone does not say on which supports"),
    ],
)
def test_what_has_no_unconstrained_form_is_refused(guide, error, message, key):
    def density(x, z):
        return -0.5 * sum(jax.tree.leaves(z))

    with jax.debug_key_reuse(False):  # distrax uses keys of von Mises draws more than once
        result = still(density, guide, guide.init(key, None))
    with pytest.raises(error, match=message):
        to_blackjax(result, jax.random.key(7))
