import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import bbvi
from bbvi.testing import exact_bernoulli_gradient
from models import digits_vae


def random_theta(rng, num_latents, num_pixels):
    shapes = {"prior": num_latents, "weights": (num_latents, num_pixels), "bias": num_pixels}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def looped(x, z, theta):
    """Log joint of one image by SciPy, one unit at a time."""
    prior, weights, bias = (np.asarray(theta[name]) for name in ("prior", "weights", "bias"))
    total = sum(stats.bernoulli.logpmf(b, special.expit(p)) for b, p in zip(z, prior, strict=True))
    for d, pixel in enumerate(x):
        on = special.expit(bias[d] + sum(z[i] * weights[i, d] for i in range(len(z))))
        total += stats.bernoulli.logpmf(int(pixel), on)
    return total


@pytest.fixture
def small():
    """Four images of five pixels under three latents, with every log joint by hand (4, 8)."""
    rng = np.random.default_rng(0)
    theta, x = random_theta(rng, 3, 5), rng.integers(2, size=(4, 5)).astype(float)
    values = list(itertools.product([0, 1], repeat=3))
    by_hand = np.array([[looped(image, value, theta) for value in values] for image in x])
    return jnp.asarray(x), theta, by_hand


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop(small):
    x, theta, by_hand = small
    z = np.random.default_rng(1).integers(2, size=(4, 3))
    expected = by_hand[np.arange(4), z @ [4, 2, 1]].sum()
    actual = digits_vae.log_joint(x, {"z": jnp.asarray(z)}, theta)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_enumeration_equals_brute_force(small):
    x, theta, by_hand = small
    np.testing.assert_allclose(digits_vae.log_joints(x, theta), by_hand, rtol=1e-12)
    np.testing.assert_allclose(
        digits_vae.log_evidences(x, theta), special.logsumexp(by_hand, axis=1), rtol=1e-12
    )
    logits = np.random.default_rng(2).normal(size=(4, 3))
    elbos = np.zeros(4)
    for n, (i, value) in itertools.product(
        range(4), enumerate(itertools.product([0, 1], repeat=3))
    ):
        log_q = stats.bernoulli.logpmf(value, special.expit(logits[n])).sum()
        elbos[n] += np.exp(log_q) * (by_hand[n, i] - log_q)
    np.testing.assert_allclose(digits_vae.elbos(x, jnp.asarray(logits), theta), elbos, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_evidence_sums_to_one_over_all_images():
    theta = random_theta(np.random.default_rng(0), 3, 4)
    every = jnp.asarray(digits_vae.all_values(4), float)
    total = jnp.exp(digits_vae.log_evidences(every, theta)).sum()
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_the_problem_by_enumeration():
    x, theta = digits_vae.data(1), digits_vae.model_params()
    problem = bbvi.Problem(digits_vae.log_joint, digits_vae.mean_field(1))
    params = problem.init(jax.random.key(0), x, theta)
    params = jax.tree.map(
        lambda leaf: leaf + 0.5 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    exact = exact_bernoulli_gradient(problem, params, x)

    def loss(params):
        return -digits_vae.elbos(x, problem.guide.logits(params.guide, x)["z"], params.model).sum()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        jax.grad(loss)(params),
        exact,
    )
    assert float(jnp.abs(exact.guide.families["z"]["logits"]).max()) > 0.01


def test_start_of_the_reference_run():
    """Close to a published table's run, whose start is at -25.66 and -25.46."""
    x, theta = digits_vae.data(), digits_vae.model_params()
    start = bbvi.Params(digits_vae.amortized().init(jax.random.key(7), x), theta)
    np.testing.assert_allclose(digits_vae.mean_elbo(start, x), -25.631, atol=2e-3)
    np.testing.assert_allclose(digits_vae.log_evidences(x, theta).mean(), -25.428, atol=2e-3)


@pytest.mark.slow
def test_reference_run_climbs_as_recorded():
    x, run = digits_vae.data(), digits_vae.reference_run()
    recorded = {0: (-25.631, -25.428), 50: (-23.110, -22.862), 1000: (-18.202, -18.036)}
    for step, (elbo, evidence) in recorded.items():
        # Rounding of another machine grows over a thousand steps.
        np.testing.assert_allclose(digits_vae.mean_elbo(run[step], x), elbo, atol=0.02)
        found = digits_vae.log_evidences(x, run[step].model).mean()
        np.testing.assert_allclose(found, evidence, atol=0.02)
