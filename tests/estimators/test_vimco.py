"""VIMCO, by enumeration of all outcomes and by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
from bbvi.estimators import default_estimator
from bbvi.estimators.base import Cost
from bbvi.estimators.vimco import learning_signals
from tests.estimators.multi_sample import (
    ENUMERABLE,
    check_components_are_separate,
    check_steps,
    coupled,
    normal_moments,
)
from tests.estimators.oracles import estimate, gaussian_problem

MEANS = ["geometric", "arithmetic"]
OBJECTIVES = [
    bbvi.Iwae(2),
    bbvi.Iwae(3),
    bbvi.Renyi(0.5, 3),
    bbvi.Renyi(2.0, 2),
    bbvi.Renyi(-0.4, 3),
    bbvi.Chi(2.0, 3),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("problem", ENUMERABLE)
def test_unbiased_exactly(problem, objective, mean):
    case = ENUMERABLE[problem]()
    num_samples = objective.group_size
    gradient, _ = case.moments(bbvi.Vimco(num_samples, mean), objective)
    exact = case.exact_gradient(objective, num_samples)
    assert np.abs(exact).max() > 0.05
    np.testing.assert_allclose(gradient, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_groups_are_averaged():
    """Two groups of two draws: the same mean, half the variance."""
    case, objective = coupled(), bbvi.Iwae(2)
    mean, variance = case.moments(bbvi.Vimco(2), objective)
    grouped_mean, grouped_variance = case.moments(bbvi.Vimco(4), objective)
    np.testing.assert_allclose(grouped_mean, mean, rtol=1e-9)
    np.testing.assert_allclose(grouped_variance, variance / 2, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mean", MEANS)
def test_variance_of_a_normal(mean):
    """Location, two draws, where both means are the other draw's weight."""
    gradient, variance = normal_moments(bbvi.Vimco(2, mean), bbvi.Iwae(2))
    np.testing.assert_allclose(gradient[0], 0.156402, atol=1e-6)
    np.testing.assert_allclose(variance[0], 0.50991, atol=1e-5)
    pathwise, _ = normal_moments(bbvi.Reparameterization(2), bbvi.Iwae(2))
    np.testing.assert_allclose(gradient, pathwise, rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_signals_by_hand():
    weights = np.array([0.5, 2.0, 4.0])
    loss = -np.log(weights.mean())
    for mean, stand_in in (
        ("arithmetic", [3.0, 2.25, 1.25]),
        ("geometric", np.sqrt([8.0, 2.0, 1.0])),
    ):
        others = weights.sum() - weights
        exact = loss + np.log((others + stand_in) / 3)
        signals = learning_signals(bbvi.Iwae(3), jnp.log(jnp.asarray(weights))[:, None], mean)
        np.testing.assert_allclose(signals[:, 0], exact, rtol=1e-12)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("gap", [60.0, 5000.0])
def test_signals_where_one_weight_dominates(gap, mean):
    """The dominant draw's signal is the gap to the others; without it they are as good as equal."""
    log_weights = jnp.array([0.0, 0.0, gap])[:, None] + 300.0
    signals = learning_signals(bbvi.Iwae(3), log_weights, mean)[:, 0]
    np.testing.assert_allclose(signals[2], -(gap - np.log(3)), rtol=1e-5)
    # Replaced by half of the dominant weight, or by its square root, which is nothing beside it.
    np.testing.assert_allclose(signals[:2], np.log(1.5) if mean == "arithmetic" else 0, atol=1e-3)


@pytest.mark.parametrize("mean", MEANS)
def test_signals_with_an_impossible_draw(mean):
    log_weights = jnp.log(jnp.array([0.0, 1.0, 3.0]))[:, None]
    signals = learning_signals(bbvi.Iwae(3), log_weights, mean)[:, 0]
    stand_ins = {"arithmetic": [2.0, 1.5, 0.5], "geometric": [np.sqrt(3), 0.0, 0.0]}[mean]
    exact = -np.log(4 / 3) + np.log((np.array([4.0, 3.0, 1.0]) + stand_ins) / 3)
    np.testing.assert_allclose(signals, exact, atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("objective", [bbvi.Iwae(4), bbvi.Renyi(0.5, 2), bbvi.Chi(2.0, 4)])
def test_components_are_separate(objective):
    check_components_are_separate(bbvi.Vimco(4), objective)


def test_steps():
    case = coupled()
    check_steps(bbvi.Vimco(4), case.make(bbvi.Iwae(2)), case.params)


def test_one_dominant_component_leaves_the_others_signals_alone():
    """Signals of a component do not depend on the weights of another."""
    log_weights = jnp.array([[0.3, 0.0], [-0.2, 0.5]])
    moved = log_weights.at[:, 1].multiply(100.0)
    before, after = (learning_signals(bbvi.Iwae(2), w, "geometric") for w in (log_weights, moved))
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert float(jnp.abs(before[:, 1] - after[:, 1]).min()) > 0.1


def test_cost():
    assert bbvi.Vimco(6).cost == Cost(values=6)
    assert not bbvi.Vimco(6).is_biased


@pytest.mark.parametrize(("group_size", "num_samples"), [(3, 33), (8, 32), (40, 40)])
def test_default_for_discrete_latents(group_size, num_samples):
    case = coupled()
    problem = case.make(bbvi.Iwae(group_size))
    estimator = default_estimator(problem, case.params, None)
    assert estimator == bbvi.Vimco(num_samples)
    estimator.validate(problem, case.params, None)


def test_default_for_a_log_joint_without_a_derivative():
    def log_joint(x, z):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(
            lambda z: np.float32(-((np.asarray(z) - 1) ** 2)),
            shape,
            z["z"],
            vmap_method="sequential",
        )

    guide = bbvi.MeanField({"z": bbvi.Normal()})
    problem = bbvi.Problem(log_joint, guide, bbvi.Iwae(2))
    params = problem.init(jax.random.key(0), None)
    estimator = default_estimator(problem, params, None)
    assert estimator == bbvi.Vimco(32)
    same = bbvi.Problem(lambda x, z: -((z["z"] - 1) ** 2), guide, bbvi.Iwae(2))
    noise = problem.base_noise(jax.random.key(1), 32)
    wanted = estimate(estimator, same, params, noise)
    got = estimate(estimator, problem, params, noise)
    np.testing.assert_allclose(got.grads.guide.normal, wanted.grads.guide.normal, rtol=1e-4)


# Errors.


@pytest.mark.parametrize("objective", [bbvi.Elbo(), bbvi.Iwae(1)], ids=repr)
def test_objectives_of_one_draw_are_refused(objective):
    problem, params = gaussian_problem(objective=objective)
    with pytest.raises(ValueError, match=r"two draws or more, .* got .*; use bbvi.Elbo\(\) with"):
        bbvi.Vimco(4).validate(problem, params, None)


def test_forward_kl_is_refused():
    problem, params = gaussian_problem(objective=bbvi.ForwardKl(4))
    with pytest.raises(ValueError, match=r"Vimco would follow .* use ReweightedWakeSleep"):
        bbvi.Vimco(4).validate(problem, params, None)


def test_groups_are_checked():
    problem, params = gaussian_problem(objective=bbvi.Iwae(3))
    with pytest.raises(ValueError, match=r"groups of 3, but Vimco draws num_samples=4"):
        bbvi.Vimco(4).validate(problem, params, None)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="Vimco needs num_samples >= 2, got 1"):
        bbvi.Vimco(1)
    with pytest.raises(ValueError, match=r"mean must be one of \('geometric', 'arithmetic'\)"):
        bbvi.Vimco(2, "harmonic")
