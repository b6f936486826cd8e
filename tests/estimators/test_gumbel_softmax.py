"""Gumbel-softmax: its biased moments by quadrature over the noise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import integrate
from scipy.special import expit, logit

import bbvi
from bbvi.estimators.base import Cost
from tests.estimators.coupled import batch_problem, check_precision, check_steps, nested_problem
from tests.estimators.first_order import (
    check_refused,
    curved_problem,
    exact_gradient,
    exact_loss,
    linear_problem,
    one_hot_problem,
    signal_at,
)
from tests.estimators.oracles import (
    LEVEL,
    THETA,
    bernoulli_signal_problem,
    pieces,
    signal_problem,
    tensor_moments,
)


def gradient_moments(estimator, problem, params, rules, unravel):
    def gradient(u):
        return estimator.estimate(unravel(u), problem, params, None, ())[0].grads

    return tensor_moments(gradient, rules)


def concrete_expectation(f, temperature):
    """E[f(y)] of a binary Concrete y at THETA, from its density in logit y."""
    eta = logit(THETA)

    def integrand(z):  # of the logit of y
        p = expit(temperature * z - eta)
        return f(expit(z)) * p * (1 - p) * temperature

    return integrate.quad(integrand, -80, 80, limit=500, points=[eta / temperature])[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("temperature", "mean", "variance"), [(1.0, -0.01043, 0.0042040), (0.5, -0.00769, 0.012052)]
)
def test_moments_of_a_parabola(temperature, mean, variance):
    """The slope of f(y) in the logit is f'(y) y (1 - y) / tau; true is 0.021."""
    problem, params = bernoulli_signal_problem()

    def slope(y):
        return 2 * (y - LEVEL) * y * (1 - y) / temperature

    exact = concrete_expectation(slope, temperature)
    spread = concrete_expectation(lambda y: slope(y) ** 2, temperature) - exact**2
    np.testing.assert_allclose([exact, spread], [mean, variance], rtol=5e-4)
    for num_samples in (1, 2):
        estimator = bbvi.GumbelSoftmax(num_samples, temperature)
        rules = [pieces(60, 1 - THETA)] * num_samples
        moments = gradient_moments(estimator, problem, params, rules, lambda u: {"b": u})
        np.testing.assert_allclose(moments[0], -exact, rtol=1e-8)
        np.testing.assert_allclose(moments[1], spread / num_samples, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_moments_with_slopes_at_the_hard_draws():
    problem, params = bernoulli_signal_problem()

    def slope(y):
        return 2 * ((y > 0.5) - LEVEL) * y * (1 - y) / 0.5

    exact = sum(
        concrete_expectation(lambda y, end=end: slope(y) * ((y > 0.5) == end), 0.5)
        for end in (False, True)
    )
    estimator = bbvi.GumbelSoftmax(1, 0.5, hard=True)
    rules = [pieces(60, 1 - THETA)]
    mean, _ = gradient_moments(estimator, problem, params, rules, lambda u: {"b": u})
    np.testing.assert_allclose(mean, -exact, rtol=1e-5)
    soft, _ = gradient_moments(bbvi.GumbelSoftmax(1), problem, params, rules, lambda u: {"b": u})
    assert abs(mean[0] - soft[0]) > 0.001


@pytest.mark.usefixtures("x64")
def test_two_categories_are_a_bernoulli():
    """The difference of two Gumbels is logistic."""
    guide = bbvi.MeanField({"c": bbvi.OneHotCategorical(2)})
    logits = jnp.array([0.0, logit(THETA)])
    start = guide.init(jax.random.key(0), None)._replace(families={"c": {"logits": logits}})
    problem, params = signal_problem(lambda z: (z["c"][1] - LEVEL) ** 2, guide, start)
    estimator = bbvi.GumbelSoftmax(1, 1.0)
    # At temperature 1, y is the share of one of two exponentials -log(u), scaled: substitute
    # u = t^(1 / s) of their sum s to have a smooth integrand.
    share, weights = pieces(60, 1 - THETA)
    total, total_weights = np.polynomial.laguerre.laggauss(2)
    grid = np.stack(np.meshgrid(share, total, indexing="ij"))
    u = jnp.asarray(np.exp(-np.stack([1 - grid[0], grid[0]], -1) * grid[1][..., None]))

    def gradient(u):
        grads = estimator.estimate({"c": u[None]}, problem, params, None, ())[0].grads
        return grads.guide.families["c"]["logits"]

    values = jax.vmap(jax.vmap(gradient))(u)
    # The sum of two exponentials is a Gamma(2), independent of the share, which is uniform.
    mean = np.einsum("ijk,i,j->k", values, weights, total_weights * total)
    exact = concrete_expectation(lambda y: 2 * (y - LEVEL) * y * (1 - y), 1.0)
    np.testing.assert_allclose(mean, [exact, -exact], rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", [curved_problem, one_hot_problem, linear_problem])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gradient_is_that_of_the_relaxed_signal(make, temperature):
    """Draw by draw, several latents at once: the derivative along the noise, written out."""
    problem, params = make()
    if params.model is None:
        params, log_joint = params._replace(model=0.0), problem.log_joint
        problem = bbvi.Problem(lambda x, z, theta: log_joint(x, z) + 0 * theta, problem.guide)
    estimator = bbvi.GumbelSoftmax(3, temperature)
    noise = estimator.draw(jax.random.key(3), problem)
    got = estimator.estimate(noise, problem, params, None, ())[0].grads.guide.families

    def relaxed(logits, u):
        if u.shape[1:] == logits.shape and logits.ndim == 2:
            return jax.nn.softmax((logits[None] - jnp.log(-jnp.log(u))) / temperature)
        return jax.nn.sigmoid((logits[None] + jnp.log(u / (1 - u))) / temperature)

    def mean_signal(families):
        z = {name: relaxed(leaf["logits"], noise[name]) for name, leaf in families.items()}
        return jnp.mean(jax.vmap(lambda draw: signal_at(problem, params)(draw)[0])(z))

    wanted = jax.grad(mean_signal)(params.guide.families)
    np.testing.assert_allclose(ravel_pytree(got)[0], -ravel_pytree(wanted)[0], rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("hard", [False, True])
def test_loss_and_learned_parameters_are_those_of_hard_draws(hard):
    """In the mean the bound itself and its gradient, not those of relaxed draws."""
    problem, params = curved_problem()
    estimator = bbvi.GumbelSoftmax(1, hard=hard)
    theta = np.asarray(jax.nn.sigmoid(params.guide.families["b"]["logits"]))
    rules = [pieces(2, 1 - t) for t in theta]

    def statistics(u):
        estimate, _ = estimator.estimate({"b": u[None]}, problem, params, None, ())
        return estimate.loss, estimate.grads.model

    mean, _ = tensor_moments(statistics, rules)
    np.testing.assert_allclose(mean[0], exact_loss(problem, params), rtol=1e-9)
    exact = exact_gradient(problem, params)[3:]
    np.testing.assert_allclose(mean[1:], exact, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_hard_draws_of_categories_are_those_of_the_guide():
    """Gumbel-max: E[b] over the noise is the softmax of the logits."""
    problem, params = one_hot_problem()
    estimator = bbvi.GumbelSoftmax(100_000)
    noise = estimator.draw(jax.random.key(1), problem)
    estimate, _ = jax.jit(lambda n: estimator.estimate(n, problem, params, None, ()))(noise)
    exact = -float(exact_loss(problem, params))
    error = estimate.log_weights.std() / np.sqrt(100_000)
    assert abs(estimate.log_weights.mean() - exact) < 4.9 * error
    assert error < 0.01


def test_steps():
    for problem in (batch_problem(), nested_problem(), one_hot_problem()):
        check_steps(bbvi.GumbelSoftmax(1), *problem)
    check_precision(bbvi.GumbelSoftmax(3), batch_problem)
    check_precision(bbvi.GumbelSoftmax(3, hard=True), lambda: (*one_hot_problem(), None))


def test_extreme_logits(key):
    """Noise at the end of its range, and certain values: no NaN."""
    problem, params = curved_problem(logits=(200.0, -200.0, 0.3))
    estimator = bbvi.GumbelSoftmax(2, 0.1)
    tiny, almost_one = np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg
    noise = {"b": jnp.array([[tiny] * 3, [almost_one] * 3])}
    estimate, _ = estimator.estimate(noise, problem, params, None, ())
    np.testing.assert_array_equal(estimate.grads.guide.families["b"]["logits"][:2], 0.0)
    assert bool(jnp.isfinite(estimate.grads.guide.families["b"]["logits"][2]))
    assert float(estimator.draw(key, problem)["b"].min()) > 0


def test_it_says_that_it_is_biased():
    estimator = bbvi.GumbelSoftmax(3, hard=True)
    assert estimator.is_biased
    assert repr(estimator) == "GumbelSoftmax(num_samples=3, temperature=0.5, hard=True) [biased]"


def test_cost():
    assert bbvi.GumbelSoftmax(3).cost == Cost(values=3, gradients=3)
    assert bbvi.GumbelSoftmax(3, hard=True).cost == Cost(values=0, gradients=3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_wrong_temperature(temperature):
    message = f"GumbelSoftmax temperature must be a positive number, got {temperature!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        bbvi.GumbelSoftmax(2, temperature)


def test_refused_problems():
    check_refused(bbvi.GumbelSoftmax(2))
