"""A member of every family, and the same distributions in SciPy and NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import bbvi
from bbvi import supports

FAMILIES = {
    "normal": bbvi.Normal((3,)),
    "log_normal": bbvi.LogNormal((2,)),
    "laplace": bbvi.Laplace((3,)),
    "student_t": bbvi.StudentT((2,), df=6.0),
    "gamma": bbvi.Gamma((2,)),
    "beta": bbvi.Beta((2,)),
    "dirichlet": bbvi.Dirichlet((2, 3)),
    "von_mises": bbvi.VonMises((2,)),
    "bernoulli": bbvi.Bernoulli((2, 2)),
    "categorical": bbvi.Categorical(3, (2,)),
    "one_hot_categorical": bbvi.OneHotCategorical(3, (2,)),
}
SUPPORTED = {
    "greater_than": (supports.greater_than(1.5), (2,), [2.0, 3.0]),
    "less_than": (supports.less_than(-1.0), (2,), [-2.0, -1.5]),
    "interval": (supports.interval(-1.0, 3.0), (2,), [-0.5, 2.5]),
    "unit_interval": (supports.unit_interval, (2,), [0.2, 0.7]),
    "simplex": (supports.simplex, (3,), [0.2, 0.5, 0.3]),
    "ordered": (supports.ordered, (3,), [-1.0, 0.0, 2.0]),
    "positive_definite": (supports.positive_definite, (2, 2), [[2.0, 0.5], [0.5, 1.0]]),
    "cholesky_factor": (supports.cholesky_factor, (2, 2), [[1.0, 0.0], [0.5, 2.0]]),
    "correlation_cholesky": (supports.correlation_cholesky, (2, 2), [[1.0, 0.0], [0.6, 0.8]]),
}


def exact(name, p):
    """The same distribution in SciPy or NumPyro, from the family's parameters."""
    p = {key: np.asarray(value, np.float64) for key, value in p.items()}
    return {
        "normal": lambda: stats.norm(p["loc"], np.exp(p["log_scale"])),
        "log_normal": lambda: stats.lognorm(np.exp(p["log_scale"]), scale=np.exp(p["loc"])),
        "laplace": lambda: stats.laplace(p["loc"], np.exp(p["log_scale"])),
        "student_t": lambda: stats.t(6.0, p["loc"], np.exp(p["log_scale"])),
        "gamma": lambda: stats.gamma(np.exp(p["log_concentration"]), scale=np.exp(-p["log_rate"])),
        "beta": lambda: stats.beta(np.exp(p["log_alpha"]), np.exp(p["log_beta"])),
        "von_mises": lambda: stats.vonmises(np.exp(p["log_concentration"]), p["loc"]),
    }[name]()


def at(family, key=0):
    """Parameters some way off the initial ones, and one draw."""
    params = family.init(jax.random.key(key))

    def moved(leaf):
        return leaf + 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)

    params = jax.tree.map(moved, params)
    return params, family.sample(family.base_noise(jax.random.key(key + 1)), params)


def check_with_scipy(name):
    """Compares log density and entropy of a family with those that SciPy has."""
    family = FAMILIES[name]
    params, z = at(family)
    reference = exact(name, params)
    wanted = reference.logpdf(np.asarray(z, np.float64)).sum()
    np.testing.assert_allclose(family.log_prob(params, z), wanted, rtol=1e-4, atol=1e-4)
    if name != "log_normal":  # there the entropy is unbiased, not exact; see check_guide
        entropy = np.sum(reference.entropy())
        np.testing.assert_allclose(family.entropy(params, z), entropy, rtol=1e-4, atol=1e-4)


def check_with_numpyro(name, reference):
    """The same with NumPyro's, for a function from parameters to its distribution."""
    family = FAMILIES[name]
    params, z = at(family)
    with jax.numpy_rank_promotion("allow"):
        log_prob, entropy = reference(params).log_prob(z).sum(), reference(params).entropy().sum()
    np.testing.assert_allclose(family.log_prob(params, z), log_prob, rtol=1e-5)
    np.testing.assert_allclose(family.entropy(params, z), entropy, rtol=1e-5)
