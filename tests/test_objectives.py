import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi.infer.step import make_step
from tests.estimators.oracles import gauss_hermite

LOG_WEIGHTS = jnp.array([-1.3, 0.4, 2.0, -3.0, 0.1, 0.7])


def test_elbo_is_minimised():
    """The loss is MINUS the mean log weight: better fits have a smaller one."""
    assert bbvi.Elbo()(LOG_WEIGHTS) == pytest.approx(-float(LOG_WEIGHTS.mean()))
    assert bbvi.Elbo()(LOG_WEIGHTS + 1.0) < bbvi.Elbo()(LOG_WEIGHTS)


def test_iwae_of_one_is_the_elbo():
    loss, grad = jax.value_and_grad(bbvi.Iwae(1))(LOG_WEIGHTS)
    wanted_loss, wanted_grad = jax.value_and_grad(bbvi.Elbo())(LOG_WEIGHTS)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-6)


@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
def test_iwae_is_the_mean_over_groups(group_size):
    groups = np.asarray(LOG_WEIGHTS, np.float64).reshape(-1, group_size)
    wanted = -np.log(np.exp(groups).mean(axis=1)).mean()
    assert bbvi.Iwae(group_size)(LOG_WEIGHTS) == pytest.approx(wanted, rel=1e-5)


def test_larger_groups_are_tighter():
    """Jensen: for any weights, the loss of nested groups falls with their size."""
    losses = [float(bbvi.Iwae(group_size)(LOG_WEIGHTS)) for group_size in (1, 2, 6)]
    assert all(tight < loose for loose, tight in itertools.pairwise(losses))


def test_iwae_gradient_is_the_normalised_weights():
    grad = jax.grad(bbvi.Iwae(3))(LOG_WEIGHTS)
    np.testing.assert_allclose(
        grad, -jax.nn.softmax(LOG_WEIGHTS.reshape(2, 3), axis=1).ravel() / 2, rtol=1e-5
    )


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_iwae_does_not_overflow(shift):
    loss = bbvi.Iwae(6)(LOG_WEIGHTS + shift)
    assert loss == pytest.approx(float(bbvi.Iwae(6)(LOG_WEIGHTS)) - shift, abs=0.01)


def test_iwae_ignores_an_impossible_draw():
    """One weight of zero leaves the bound finite; the ELBO has none then."""
    log_weights = jnp.array([0.0, -jnp.inf])
    loss, grad = jax.value_and_grad(bbvi.Iwae(2))(log_weights)
    assert loss == pytest.approx(math.log(2.0))
    np.testing.assert_allclose(grad, [-1.0, 0.0])
    assert bbvi.Elbo()(log_weights) == jnp.inf


@pytest.mark.parametrize("group_size", [0, -2, 2.0])
def test_group_size_is_checked(group_size):
    with pytest.raises(ValueError, match="Iwae group_size must be an int >= 1, got"):
        bbvi.Iwae(group_size)


def test_group_size_must_divide_the_draws():
    with pytest.raises(
        ValueError, match=r"Iwae\(group_size=4\) needs a multiple of 4 draws, got 6"
    ):
        bbvi.Iwae(4)(LOG_WEIGHTS)


@pytest.mark.parametrize(
    "objective",
    [
        bbvi.Elbo(),
        bbvi.Iwae(3),
        bbvi.Renyi(0.5, 2),
        bbvi.Renyi(3.0, 3),
        bbvi.Chi(2.0, 3),
        bbvi.ForwardKl(2),
    ],
    ids=repr,
)
def test_losses_of_components_are_summed(objective):
    by_component = jnp.stack([LOG_WEIGHTS, 0.5 - LOG_WEIGHTS**2, 2.0 * LOG_WEIGHTS[::-1]], axis=1)
    wanted = sum(float(objective(by_component[:, c])) for c in range(3))
    assert objective(by_component) == pytest.approx(wanted, rel=1e-5)


def test_weights_by_component_are_tighter():
    """The mean over all ways to combine draws of the components, instead of over some."""
    by_component = jnp.array([[0.0, 2.0], [3.0, -1.0]])
    combined = np.add.outer(*np.asarray(by_component.T, np.float64)).ravel()
    exact = -np.log(np.exp(combined).mean())
    assert bbvi.Iwae(2)(by_component) == pytest.approx(exact, rel=1e-6)


# Power means.


def test_renyi_of_order_zero_is_iwae():
    loss, grad = jax.value_and_grad(bbvi.Renyi(0.0, 3))(LOG_WEIGHTS)
    wanted_loss, wanted_grad = jax.value_and_grad(bbvi.Iwae(3))(LOG_WEIGHTS)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_renyi_tends_to_the_elbo_and_to_the_worst_draw():
    log_weights = jnp.asarray(np.asarray(LOG_WEIGHTS, np.float64))
    for alpha, exact in (
        (1 - 1e-6, -log_weights.mean()),
        (1 + 1e-6, -log_weights.mean()),
        (1e6, -log_weights.min()),
        (-1e6, -log_weights.max()),
    ):
        assert bbvi.Renyi(alpha, 6)(log_weights) == pytest.approx(float(exact), abs=1e-5)


def test_renyi_rises_with_the_order():
    losses = [float(bbvi.Renyi(alpha, 6)(LOG_WEIGHTS)) for alpha in (-1.0, 0.0, 0.5, 2.0, 9.0)]
    assert all(low < high for low, high in itertools.pairwise(losses))


def test_chi_is_minus_the_renyi_of_order_one_minus_n():
    for order in (1.5, 2.0, 4.0):
        chi, renyi = bbvi.Chi(order, 6)(LOG_WEIGHTS), bbvi.Renyi(1 - order, 6)(LOG_WEIGHTS)
        assert chi == pytest.approx(-float(renyi), rel=1e-6)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
@pytest.mark.parametrize("objective", [bbvi.Renyi(0.5, 6), bbvi.Chi(2.0, 6)], ids=repr)
def test_power_means_do_not_overflow(objective, shift):
    moved = float(objective(LOG_WEIGHTS + shift)) - objective.sign * shift
    assert moved == pytest.approx(float(objective(LOG_WEIGHTS)), abs=0.01)


# Their limits for many draws, from two normals: q = N(0.3, 1.1^2) and exp(0.7) N(0, 1.2^2).

LOC, SCALE, WIDTH, LOG_EVIDENCE = 0.3, 1.1, 1.2, 0.7


def many_log_weights():
    """Log weights of draws at the middles of a million equal shares of q."""
    count = 1_000_000
    z = LOC + SCALE * jax.scipy.special.ndtri((jnp.arange(count) + 0.5) / count)
    log_p = LOG_EVIDENCE + jax.scipy.stats.norm.logpdf(z, 0.0, WIDTH)
    return log_p - jax.scipy.stats.norm.logpdf(z, LOC, SCALE)


def renyi_divergence(alpha, m0, s0, m1, s1):
    """D_alpha(N(m0, s0^2) || N(m1, s1^2))."""
    mixed = alpha * s1**2 + (1 - alpha) * s0**2
    quadratic = alpha * (m0 - m1) ** 2 / (2 * mixed)
    return math.log(s1 / s0) + math.log(s1**2 / mixed) / (2 * (alpha - 1)) + quadratic


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("alpha", [-0.5, 0.3, 0.9, 2.0])
def test_renyi_tends_to_the_divergence(alpha):
    exact = renyi_divergence(alpha, LOC, SCALE, 0.0, WIDTH) - LOG_EVIDENCE
    log_weights = many_log_weights()
    loss = float(bbvi.Renyi(alpha, len(log_weights))(log_weights))
    assert loss == pytest.approx(exact, abs=2e-4)
    # For a negative order minus the loss is above log p(x).
    assert (-loss > LOG_EVIDENCE) == (alpha < 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", [1.5, 2.0, 2.5])
def test_chi_tends_to_the_upper_bound(order):
    log_weights = many_log_weights()
    exact = LOG_EVIDENCE - renyi_divergence(1 - order, LOC, SCALE, 0.0, WIDTH)
    loss = float(bbvi.Chi(order, len(log_weights))(log_weights))
    assert loss == pytest.approx(exact, abs=2e-4)
    assert loss > LOG_EVIDENCE


@pytest.mark.usefixtures("x64")
def test_forward_kl_tends_to_the_divergence():
    log_weights = many_log_weights()
    exact = math.log(SCALE / WIDTH) + (WIDTH**2 + LOC**2) / (2 * SCALE**2) - 0.5
    loss = bbvi.ForwardKl(len(log_weights))(log_weights)
    assert loss == pytest.approx(exact, abs=1e-3)


# Where the posterior is a local minimum.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "objective",
    [
        bbvi.Elbo(),
        bbvi.Iwae(2),
        bbvi.Renyi(2.0, 2),
        bbvi.Renyi(-0.5, 2),
        bbvi.Renyi(-2.0, 2),
        bbvi.Chi(3.0, 2),
        bbvi.Chi(2.0, 3),
    ],
    ids=repr,
)
def test_curvature_at_the_posterior(objective):
    """The loss is sign (r (K - 1) / K - 1) / 2 times the variance of log w, to second order.

    Moving the location by d makes that variance d^2 / t^2; it is expected over K draws by a
    product of Gauss-Hermite rules.
    """
    size = objective.group_size
    nodes, weights = gauss_hermite(30)
    grid = jnp.asarray(np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), -1).reshape(-1, size))
    products = jnp.asarray(np.prod(np.meshgrid(*[weights] * size, indexing="ij"), axis=0).ravel())

    def expected_loss(d):
        log_weights = -0.5 * (grid + d / WIDTH) ** 2 + 0.5 * grid**2
        return products @ jax.vmap(objective)(log_weights)

    slope, curvature = jax.grad(expected_loss)(0.0), jax.grad(jax.grad(expected_loss))(0.0)
    power, sign = getattr(objective, "power", 0.0), getattr(objective, "sign", -1)
    exact = sign * (power * (size - 1) / size - 1) / WIDTH**2
    np.testing.assert_allclose(slope, 0, atol=1e-10)
    np.testing.assert_allclose(curvature, exact, rtol=1e-6, atol=1e-9)
    assert (exact > 0) == (objective != bbvi.Renyi(-2.0, 2))


# The forward divergence.


def test_forward_kl_by_hand():
    weights = np.array([0.5, 2.0, 1.5, 3.0])
    exact = 0.0
    for group in weights.reshape(2, 2):
        shares = group / group.sum()
        exact += (shares @ np.log(group) - np.log(group.mean())) / 2
    assert bbvi.ForwardKl(2)(jnp.log(jnp.asarray(weights))) == pytest.approx(exact, rel=1e-5)


def test_forward_kl_lies_between_zero_and_log_k():
    assert bbvi.ForwardKl(6)(jnp.full(6, -3.7)) == pytest.approx(0, abs=1e-6)
    assert bbvi.ForwardKl(6)(1e4 * LOG_WEIGHTS) == pytest.approx(math.log(6), rel=1e-6)
    one_possible = jnp.log(jnp.array([0.0, 1.0, 0.0]))
    assert bbvi.ForwardKl(3)(one_possible) == pytest.approx(math.log(3), rel=1e-6)


# Errors.


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"order alpha=1 is the ELBO: use Elbo\(\)"):
        bbvi.Renyi(1.0)
    with pytest.raises(ValueError, match="Renyi alpha must be a finite number, got inf"):
        bbvi.Renyi(math.inf)
    with pytest.raises(ValueError, match=r"Renyi group_size must be .* >= 2, got 1; .* Elbo\(\)"):
        bbvi.Renyi(0.5, 1)
    with pytest.raises(ValueError, match="Chi order must be a number above 1, got 1"):
        bbvi.Chi(1)
    with pytest.raises(ValueError, match="ForwardKl group_size must be an int >= 2, got 1"):
        bbvi.ForwardKl(1)


@pytest.mark.parametrize(("order", "fewest"), [(1.25, 6), (1.5, 4), (2, 3), (3, 2), (10, 2)])
def test_chi_needs_enough_draws(order, fewest):
    assert bbvi.Chi(order, fewest).group_size == fewest
    with pytest.raises(ValueError, match=f"group_size must be an int >= {fewest}, .* no minimum"):
        bbvi.Chi(order, fewest - 1)


@pytest.mark.parametrize(
    "objective", [bbvi.Renyi(0.5, 4), bbvi.Chi(2.0, 4), bbvi.ForwardKl(4)], ids=repr
)
def test_groups_must_divide_the_draws(objective):
    with pytest.raises(ValueError, match=r"needs a multiple of 4 draws, got 6: set the"):
        objective(LOG_WEIGHTS)


def test_a_step_reports_the_loss():
    """At q = p every draw's log weight is the log evidence, 0.7, and the loss minus that."""

    def log_joint(x, z):
        return 0.7 + jax.scipy.stats.norm.logpdf(z["z"], 1.0, 2.0)

    guide = bbvi.MeanField({"z": bbvi.Normal()})
    for objective in (bbvi.Elbo(), bbvi.Iwae(2)):
        init, step = make_step(
            log_joint,
            guide,
            estimator=bbvi.Reparameterization(4, "monte_carlo"),
            objective=objective,
        )
        state = init(jax.random.key(0), params=guide.params_at({"z": jnp.asarray(1.0)}, 2.0))
        assert step(state)[1].loss == pytest.approx(-0.7, abs=1e-5)
