import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from scipy import special, stats
from sklearn.mixture import GaussianMixture

from models import gaussian_mixture_em


def as_arrays(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop(draw):
    x, z = gaussian_mixture_em.data(), draw("gaussian_mixture_em")
    rng = np.random.default_rng(0)
    theta = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), gaussian_mixture_em.model_params()
    )
    actual = jax.jit(gaussian_mixture_em.log_joint)(x, z, theta)
    x, z, theta = as_arrays((x, z, theta))
    weights, expected = special.softmax(theta["logits"]), 0.0
    for y, c in zip(x["measurements"], z["assignments"], strict=True):
        scales = np.exp(theta["log_scales"][c])
        expected += np.log(weights[c]) + stats.norm.logpdf(y, theta["means"][c], scales).sum()
    assert actual == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_evidence_and_responsibilities_are_those_of_each_wine():
    theta = as_arrays(gaussian_mixture_em.model_params())
    y = np.asarray(gaussian_mixture_em.data()["measurements"])
    normals = [stats.multivariate_normal(mean, np.eye(13)).logpdf(y) for mean in theta["means"]]
    log_probs = np.stack(normals, axis=1) - np.log(3.0)
    responsibilities, log_evidence = gaussian_mixture_em.e_step(theta)
    assert log_evidence == pytest.approx(special.logsumexp(log_probs, axis=1).sum(), rel=1e-12)
    np.testing.assert_allclose(responsibilities, special.softmax(log_probs, axis=1), atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_reference_equals_scikit_learn_from_the_same_start():
    start = as_arrays(gaussian_mixture_em.model_params())
    mixture = GaussianMixture(
        3,
        covariance_type="diag",
        reg_covar=0.0,
        tol=1e-15,
        max_iter=200,
        weights_init=special.softmax(start["logits"]),
        means_init=start["means"],
        precisions_init=np.exp(-2.0 * start["log_scales"]),
    )
    y = np.asarray(gaussian_mixture_em.data()["measurements"])
    mixture.fit(y)
    reference = gaussian_mixture_em.reference()
    theta = reference.model_params
    assert reference.log_evidence == pytest.approx(178 * mixture.score(y), rel=1e-12)
    np.testing.assert_allclose(special.softmax(theta["logits"]), mixture.weights_, rtol=1e-5)
    np.testing.assert_allclose(theta["means"], mixture.means_, atol=1e-5)
    np.testing.assert_allclose(np.exp(2.0 * theta["log_scales"]), mixture.covariances_, rtol=1e-5)
    np.testing.assert_allclose(
        reference.probs["assignments"], mixture.predict_proba(y), rtol=0.0, atol=1e-5
    )


@pytest.mark.usefixtures("x64")
def test_reference_is_a_strict_local_maximum_of_the_likelihood():
    x, reference = gaussian_mixture_em.data(), gaussian_mixture_em.reference()

    def log_evidence(theta):
        means, scales = theta["means"][None], jnp.exp(theta["log_scales"])[None]
        log_normal = norm.logpdf(x["measurements"][:, None], means, scales).sum(axis=2)
        return logsumexp(jax.nn.log_softmax(theta["logits"])[None] + log_normal, axis=1).sum()

    theta = jax.tree.map(jnp.asarray, reference.model_params)
    value, slope = jax.jit(jax.value_and_grad(log_evidence))(theta)
    assert reference.log_evidence == pytest.approx(float(value), rel=1e-12)
    for leaf in jax.tree.leaves(slope):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-9)
    flat, unravel = ravel_pytree(theta)
    hessian = jax.jit(jax.hessian(lambda flat: log_evidence(unravel(flat))))
    curvature = np.linalg.eigvalsh(hessian(flat))
    # One direction is flat: a constant added to all logits.
    assert curvature[-1] == pytest.approx(0.0, abs=1e-9)
    assert curvature[-2] < -1.0
