"""The pure pair, and chunks that give the same numbers however steps fall into them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi._optimizers import Optimizer
from bbvi.infer.chunk import run_chunk
from bbvi.infer.step import Algorithm
from bbvi.problem import Problem

X = jnp.array([0.3, 1.2, 0.9])
GUIDE = bbvi.MeanField({"mu": bbvi.Normal(), "b": bbvi.Bernoulli()})


@pytest.fixture(autouse=True)
def _states_are_run_from_twice():
    """On purpose here; every step folds its own number into the key."""
    with jax.debug_key_reuse(False):
        yield


def log_joint(x, z):
    shift = 0.5 * z["b"]
    return norm.logpdf(z["mu"]) + norm.logpdf(x, z["mu"] + shift).sum() + jnp.log(0.5)


def sqrt_joint(x, z):
    """NaN from sqrt at half of the draws of a wide guide."""
    return norm.logpdf(z["mu"]) + 0.1 * jnp.sqrt(z["mu"] - x)


def pair(**options):
    return bbvi.make_step(log_joint, GUIDE, optimizer=optax.adam(1e-2), **options)


def algorithm(joint=log_joint, guide=GUIDE, nonfinite="raise"):
    problem = Problem(joint, guide)
    return Algorithm(problem, None, Optimizer.of(optax.adam(1e-2)), nonfinite)


def chunks(algorithm, state, lengths, x=X, *, is_guarded=False):
    losses = []
    for length in lengths:
        state, _, outputs = run_chunk(
            algorithm, state, x, length, is_batched=False, is_guarded=is_guarded
        )
        losses.append(outputs[0][:length])
    return state, np.concatenate(losses)


def test_scan_of_the_pair_gives_the_numbers_of_fit():
    init, step = pair()
    state = init(jax.random.key(3), X)
    end, infos = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, X), s, length=200))(state)
    result = bbvi.fit(
        log_joint,
        GUIDE,
        X,
        init_state=state,
        optimizer=optax.adam(1e-2),
        num_steps=200,
        progress=False,
    )
    np.testing.assert_allclose(infos.loss, result.history.loss, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(end.params, result.state.params, rtol=1e-3, atol=1e-5)
    assert int(end.step) == int(result.state.step) == 200
    assert bool(infos.finite.all())


def test_jit_equals_eager():
    init, step = pair()
    state = init(jax.random.key(0), X)
    eager, compiled = step(state, X), jax.jit(step)(state, X)
    chex.assert_trees_all_close(eager[0].params, compiled[0].params, rtol=1e-5)
    np.testing.assert_allclose(eager[1].loss, compiled[1].loss, rtol=1e-5)


def test_vmap_over_keys_equals_a_loop():
    init, step = pair()
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: init(key, X))(keys)
    batched, _ = jax.jit(jax.vmap(lambda state: step(state, X)))(states)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        alone, _ = step(one, X)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], batched.params), alone.params, rtol=1e-5
        )
    assert len(set(np.asarray(batched.params.guide.normal[:, 0, 0]).tolist())) == 3


def test_vmap_over_data_sets():
    init, step = pair()
    xs = jnp.stack([X, X + 1.0])
    states = jax.vmap(lambda key, x: init(key, x))(jax.random.split(jax.random.key(0), 2), xs)
    _, infos = jax.vmap(step)(states, xs)
    assert infos.loss.shape == (2,)


def test_init_takes_given_parameters():
    init, _ = pair()
    phi = GUIDE.params_at({"mu": 2.0, "b": 1})
    state = init(jax.random.key(0), X, phi)
    chex.assert_trees_all_equal(state.params.guide, phi)


def test_model_parameters_are_stepped():
    init, step = bbvi.make_step(
        lambda x, z, theta: norm.logpdf(z["b"] * 1.0, theta),
        bbvi.MeanField({"b": bbvi.Bernoulli()}),
    )
    state = init(jax.random.key(0), None, model_params=jnp.array(3.0))
    after, info = step(state)
    assert after.params.model < 3.0
    assert info.grads.model > 0


def test_a_step_that_is_not_finite_leaves_the_state_alone():
    guide = bbvi.MeanField({"mu": bbvi.Normal()})
    init, step = bbvi.make_step(sqrt_joint, guide)
    state = init(jax.random.key(0), jnp.array(5.0), guide.params_at({"mu": 0.0}))
    after, info = step(state, jnp.array(5.0))
    assert not info.finite
    chex.assert_trees_all_equal(after.params, state.params)
    chex.assert_trees_all_equal(after.opt_state, state.opt_state)
    assert (int(after.step), int(after.skipped)) == (1, 1)


def test_chunking_changes_nothing():
    run = algorithm()
    init, _ = pair()
    state = init(jax.random.key(1), X)
    whole, losses = chunks(run, state, [300])
    for lengths in ([100] * 3, [1] * 300, [137, 163]):
        parts, again = chunks(run, state, lengths)
        chex.assert_trees_all_equal(parts, whole)
        np.testing.assert_array_equal(again, losses)


def test_guarded_and_unguarded_chunks_agree():
    init, _ = pair()
    state = init(jax.random.key(1), X)
    plain, losses = chunks(algorithm(), state, [250])
    guarded, again = chunks(algorithm(), state, [250], is_guarded=True)
    # The same steps with the same randomness; two programs may round differently.
    keys, plain_keys = (jax.random.key_data(s.key) for s in (guarded, plain))
    np.testing.assert_array_equal(keys, plain_keys)
    chex.assert_trees_all_close(
        guarded._replace(key=0), plain._replace(key=0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(again, losses, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("optimized")
def test_a_guarded_chunk_halts_where_it_fails():
    guide = bbvi.MeanField({"mu": bbvi.Normal()})
    x = jnp.array(0.75)
    init, _ = bbvi.make_step(sqrt_joint, guide)
    state = init(jax.random.key(0), x, guide.params_at({"mu": 1.2}, 0.05))
    run = algorithm(sqrt_joint, guide)
    end, losses = chunks(run, state, [200], x, is_guarded=True)
    halted = int(end.step)
    assert 0 < halted < 200
    assert np.isfinite(losses[:halted]).all()
    before, _ = chunks(run, state, [halted], x)
    chex.assert_trees_all_equal(end, before)


def test_double_precision():
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X, np.float64))
        init, step = pair()
        state, info = step(init(jax.random.key(0), x), x)
        assert info.loss.dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float64")}
        result = bbvi.fit(log_joint, GUIDE, x, num_steps=50, progress=False)
        assert result.history.loss.dtype == np.float64


def test_init_checks_what_it_is_given():
    init, _ = bbvi.make_step(lambda x, z: z["mu"] + z["nu"], bbvi.MeanField({"mu": bbvi.Normal()}))
    with pytest.raises(ValueError, match="looks up 'nu'"):
        init(jax.random.key(0), None)
    with pytest.raises(TypeError, match=r"guide must be a bbvi\.Guide"):
        bbvi.make_step(log_joint, "mean_field")[0](jax.random.key(0), X)


def test_init_wants_one_typed_key():
    init, _ = bbvi.make_step(lambda x, z: -0.5 * z**2, bbvi.MeanField(bbvi.Normal()))
    with pytest.raises(TypeError, match=r"key must be one typed key, got uint32\[2\] array"):
        init(jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match="key must be one typed key"):
        init(jax.random.split(jax.random.key(0), 3))
