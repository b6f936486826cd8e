"""Variational EM in phases: who moves when, and that it ends where exact EM does."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from scipy import special

import bbvi
from bbvi.sampling import Sampling
from models import gaussian_em, gaussian_mixture_em

X = jnp.array([1.8, 2.2, 2.0, 2.4])
GUIDE = bbvi.MeanField(bbvi.Normal((4,)))


def log_joint(x, z, theta):
    """x_n ~ N(z_n, 1), z_n ~ N(theta, 1): the maximum likelihood of theta is the mean of x."""
    return norm.logpdf(z, theta).sum() + norm.logpdf(x, z).sum()


def fit(num_guide_steps=7, num_model_steps=3, **options):
    settings = {
        "num_steps": 24,
        "progress": False,
        "model_params": jnp.array(0.0),
        "optimizer": bbvi.alternating(
            optax.adam(0.05),
            optax.adam(0.02),
            num_guide_steps=num_guide_steps,
            num_model_steps=num_model_steps,
        ),
    }
    return bbvi.fit(log_joint, GUIDE, X, **(settings | options))


# Who moves when.


@pytest.mark.parametrize(("num_guide_steps", "num_model_steps"), [(1, 1), (3, 2), (1, 4)])
def test_each_part_moves_as_if_its_steps_were_the_only_ones(num_guide_steps, num_model_steps):
    guide_optimizer = optax.chain(
        optax.adam(optax.exponential_decay(0.1, 2, 0.5)),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=2),  # reads an extra argument
    )
    model_optimizer = optax.sgd(0.1, momentum=0.9)
    optimizer = bbvi.alternating(
        guide_optimizer,
        model_optimizer,
        num_guide_steps=num_guide_steps,
        num_model_steps=num_model_steps,
    )
    params = bbvi.Params({"loc": jnp.arange(3.0)}, jnp.array([1.0, -1.0]))
    alone = {
        "guide": (guide_optimizer, guide_optimizer.init(params.guide)),
        "model": (
            optax.with_extra_args_support(model_optimizer),
            model_optimizer.init(params.model),
        ),
    }
    expected, state, update = params, optimizer.init(params), jax.jit(optimizer.update)
    rng = np.random.default_rng(0)
    for step in range(14):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        is_guide = step % (num_guide_steps + num_model_steps) < num_guide_steps
        part = "guide" if is_guide else "model"
        transformation, part_state = alone[part]
        before = getattr(expected, part)
        updates, part_state = jax.jit(transformation.update)(
            getattr(grads, part), part_state, before, value=1.0
        )
        alone[part] = transformation, part_state
        expected = expected._replace(**{part: optax.apply_updates(before, updates)})

        updates, state = update(grads, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal(params, expected)
        for name, (_, part_state) in alone.items():
            leaves = jax.tree.leaves(state.inner_states[name].inner_state.inner_state)
            chex.assert_trees_all_equal(leaves, jax.tree.leaves(part_state))


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_the_part_at_rest_is_bit_identical_in_fit(num_restarts):
    trace = fit(
        num_restarts=num_restarts,
        trace_fn=lambda info: (info.params.guide.normal, info.params.model),
    ).history.trace
    guide_moved, model_moved = (
        np.any(np.diff(leaf.reshape(24, -1), axis=0) != 0.0, axis=1) for leaf in trace
    )
    in_guide_phase = np.arange(23) % 10 < 7
    np.testing.assert_array_equal(guide_moved, in_guide_phase)
    np.testing.assert_array_equal(model_moved, ~in_guide_phase)


@pytest.mark.parametrize("stop", [4, 9])
def test_a_run_goes_on_in_the_middle_of_a_phase(stop):
    whole, first = fit(), fit(num_steps=stop)
    rest = fit(num_steps=24 - stop, init_state=first.state)
    states = [(run.params, run.state.opt_state) for run in (rest, whole)]
    chex.assert_trees_all_equal(*states)


def test_the_rate_of_the_run_multiplies_the_updates_of_either_phase():
    optimizer = bbvi.alternating(
        optax.sgd(0.1), optax.sgd(0.1), num_guide_steps=1, num_model_steps=1
    )
    init, step = bbvi.make_step(log_joint, GUIDE, optimizer=optimizer)
    state = init(jax.random.key(0), X, model_params=jnp.array(0.0))
    for part in ("guide", "model"):
        before = getattr(state.params, part)
        moved = [
            jax.tree.map(jnp.subtract, getattr(step(start, X)[0].params, part), before)
            for start in (state, state._replace(rate=jnp.array(0.25)))
        ]
        assert max(jnp.abs(leaf).max(initial=0.0) for leaf in jax.tree.leaves(moved[1])) > 1e-3
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf: 0.25 * leaf, moved[0]), moved[1], rtol=1e-5
        )
        state, _ = step(state, X)


def test_the_step_of_the_run_decides_for_states_that_have_missed_some():
    """A row of a minibatch has a state of its own, which counts only the steps it was in."""
    optimizer = bbvi.alternating(
        optax.sgd(1.0), optax.sgd(1.0), num_guide_steps=2, num_model_steps=3
    )
    rows = bbvi.Params(jnp.ones((4, 2)), ())
    state = jax.vmap(optimizer.init)(rows)

    def moved(fit_step):
        def of_row(grads, state):
            return optimizer.update(grads, state, grads, fit_step=fit_step)[0].guide

        return bool(jnp.all(jax.vmap(of_row)(rows, state) != 0.0))

    assert [moved(jnp.int32(step)) for step in range(7)] == [True, True, *3 * [False], True, True]


def test_equal_optimizers_compile_once():
    traces = []

    def counted(x, z, theta):
        traces.append(None)
        return log_joint(x, z, theta)

    def call(num_guide_steps):
        optimizer = bbvi.alternating(
            optax.adam(0.05),
            optax.sgd(0.1),
            num_guide_steps=num_guide_steps,
            num_model_steps=2,
        )
        bbvi.fit(
            counted,
            GUIDE,
            X,
            model_params=jnp.array(0.0),
            optimizer=optimizer,
            num_steps=20,
            progress=False,
        )
        return len(traces)

    first = call(3)
    assert first > 0
    assert call(3) == first
    assert call(4) > first


# What is wrong.


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, None])
@pytest.mark.parametrize("name", ["num_guide_steps", "num_model_steps"])
def test_numbers_of_steps_must_be_positive_integers(name, wrong):
    steps = {"num_guide_steps": 1, "num_model_steps": 1} | {name: wrong}
    with pytest.raises(ValueError, match=rf"{name} must be an int >= 1, got {wrong}"):
        bbvi.alternating(optax.sgd(1.0), optax.sgd(1.0), **steps)


@pytest.mark.parametrize("wrong", [0, 1])
def test_both_optimizers_must_be_of_optax(wrong):
    optimizers = [optax.sgd(1.0), optax.sgd(1.0)]
    optimizers[wrong] = 0.1
    with pytest.raises(TypeError, match=r"must be an optax.GradientTransformation.*got 0.1"):
        bbvi.alternating(*optimizers, num_guide_steps=1, num_model_steps=1)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match=r"there are no model parameters: give model_params"):
        bbvi.fit(
            lambda x, z: log_joint(x, z, 0.0),
            GUIDE,
            X,
            optimizer=bbvi.alternating(
                optax.sgd(0.1), optax.sgd(0.1), num_guide_steps=1, num_model_steps=1
            ),
            progress=False,
        )


def test_other_parameters_are_refused():
    optimizer = bbvi.alternating(
        optax.sgd(0.1), optax.sgd(0.1), num_guide_steps=1, num_model_steps=1
    )
    with pytest.raises(TypeError, match=r"moves bbvi.Params\(guide, model\), got dict"):
        optimizer.init({"guide": jnp.ones(2), "model": jnp.ones(2)})


# Where it ends: a Gaussian mixture of 178 wines, whose gradients are exact.


def adam(rate, num_steps):
    """A short memory, since nothing is noisy, and a rate that falls by 10^4 in so many steps."""
    return optax.adam(optax.exponential_decay(rate, num_steps, 1e-4), b2=0.9)


def fit_mixture(optimizer, num_steps, **options):
    return bbvi.fit(
        gaussian_mixture_em.log_joint,
        gaussian_mixture_em.mean_field(),
        gaussian_mixture_em.data(),
        estimator=bbvi.Enumeration(),
        model_params=gaussian_mixture_em.model_params(),
        optimizer=optimizer,
        num_steps=num_steps,
        progress=False,
        **options,
    )


def normalised(theta):
    """Logits are learned up to a constant."""
    theta = jax.tree.map(np.asarray, theta)
    return theta | {"logits": special.log_softmax(theta["logits"])}


def responsibilities(result):
    logits = gaussian_mixture_em.mean_field().logits(result.params.guide, None)
    return special.softmax(np.asarray(logits["assignments"]), axis=-1)


@pytest.fixture(scope="module")
def e_phase():
    """A fit that ends with its first E-phase."""
    optimizer = bbvi.alternating(
        adam(0.3, 800), optax.adam(0.1), num_guide_steps=800, num_model_steps=1
    )
    with jax.enable_x64(True):
        return fit_mixture(optimizer, 800)


@pytest.mark.usefixtures("x64")
def test_a_long_e_phase_is_the_exact_e_step(e_phase):
    """It ends at the responsibilities, where the ELBO is the log evidence; theta stays."""
    start = gaussian_mixture_em.model_params()
    exact, log_evidence = gaussian_mixture_em.e_step(jax.tree.map(np.asarray, start))
    chex.assert_trees_all_equal(e_phase.params.model, start)
    np.testing.assert_allclose(responsibilities(e_phase), exact, rtol=0.0, atol=1e-5)
    assert -e_phase.history.loss[-1] == pytest.approx(log_evidence, abs=1e-4)


@pytest.mark.usefixtures("x64")
def test_long_phases_are_iterations_of_exact_em():
    """Schedules that begin anew with each phase can do so, as they count its part's own steps."""

    def anew(rate, num_steps):
        return optax.adam(lambda count: rate * 1e-4 ** ((count % num_steps) / num_steps), b2=0.9)

    optimizer = bbvi.alternating(
        anew(0.3, 800), anew(0.1, 400), num_guide_steps=800, num_model_steps=400
    )
    found = fit_mixture(optimizer, 3601, trace_fn=lambda info: info.params.model).history.trace
    exact = normalised(gaussian_mixture_em.model_params())
    for cycle in (1, 2, 3):
        previous, exact = exact, gaussian_mixture_em.m_step(gaussian_mixture_em.e_step(exact)[0])
        theta = normalised(jax.tree.map(lambda leaf, end=1200 * cycle: leaf[end], found))
        chex.assert_trees_all_close(theta, exact, rtol=0.0, atol=1e-5)
        assert np.abs(exact["means"] - previous["means"]).max() > 0.03


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("way", ["alternating", "joint"])
def test_training_ends_where_exact_em_does(e_phase, way):
    """From theta as exact EM has it, and a guide that has seen one E-phase, as EM has too."""
    phases = bbvi.alternating(
        adam(0.2, 4800), adam(0.1, 1200), num_guide_steps=40, num_model_steps=10
    )
    optimizer = adam(0.1, 6000) if way == "joint" else phases
    result = fit_mixture(optimizer, 6000, init_params=e_phase.params.guide)
    reference, theta = gaussian_mixture_em.reference(), normalised(result.params.model)
    log_evidence = gaussian_mixture_em.e_step(theta)[1]
    assert log_evidence == pytest.approx(reference.log_evidence, abs=1e-8)
    assert -result.history.loss[-1] == pytest.approx(reference.log_evidence, abs=1e-5)
    chex.assert_trees_all_close(theta, reference.model_params, rtol=0.0, atol=1e-5)
    exact = reference.probs["assignments"]
    np.testing.assert_allclose(responsibilities(result), exact, rtol=0.0, atol=1e-4)


# Where it ends: probabilistic principal components of the irises.


@dataclasses.dataclass(frozen=True)
class Cubature(Sampling):
    """Four draws with the moments of the normal: exact for a log joint quadratic in pairs."""

    def draw(self, key, guide, num_samples):
        signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        return jax.tree.map(lambda e: jnp.tile(signs, (1, e.size // 2)), guide.base_noise(key))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("way", ["alternating", "joint"])
def test_training_ends_at_the_closed_form_of_principal_components(way):
    def decaying(num_steps):
        return optax.adam(optax.exponential_decay(0.1, num_steps, 1e-4))

    phases = bbvi.alternating(decaying(3000), decaying(3000), num_guide_steps=5, num_model_steps=5)
    result = bbvi.fit(
        gaussian_em.log_joint,
        gaussian_em.mean_field(),
        gaussian_em.data(),
        estimator=bbvi.Reparameterization(4, sampling=Cubature()),
        model_params=gaussian_em.model_params(),
        optimizer=decaying(6000) if way == "joint" else phases,
        num_steps=6000,
        progress=False,
    )
    reference, theta = gaussian_em.reference(), jax.tree.map(np.asarray, result.params.model)
    exact = reference.model_params
    assert -result.history.loss[-1] == pytest.approx(reference.log_evidence, abs=1e-8)
    np.testing.assert_allclose(theta["mean"], exact["mean"], atol=1e-5)
    np.testing.assert_allclose(theta["log_noise"], exact["log_noise"], atol=1e-6)
    covariances = [w @ w.T for w in (theta["loadings"], exact["loadings"])]  # free of rotations
    np.testing.assert_allclose(*covariances, atol=1e-6)
