"""What estimators on logits share: components, draws, densities, the log joint at them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.discrete import (
    DiscreteEstimator,
    DiscreteModel,
    LogitGradient,
    as_floats,
    check_discrete,
    draw_indices,
    log_probs,
    scores,
)
from tests.estimators.oracles import cells

# A tuple of a matrix of Bernoullis, categories and one-hot vectors, a row or entry for each datum.
GUIDE = bbvi.MeanField(
    (
        bbvi.Bernoulli((3, 2)),
        {"c": bbvi.Categorical(4, (3,)), "hot": bbvi.OneHotCategorical(3, (3,))},
    )
)
B, C, HOT = (site.name for site in GUIDE.sites())
X, THETA = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.7, -0.4, 0.3])


def log_joint(x, z, theta):
    """Coupled within each datum, nothing shared between them."""
    b, rest = z
    by_category = jnp.cos(rest["c"] * x)
    by_vector = rest["hot"] @ theta
    return jnp.sum(x * b[:, 0] * b[:, 1] + by_category * (1 + b[:, 1]) + by_vector**2 * b[:, 0])


def discrete_model(function=log_joint, guide=GUIDE, x=X, args=(THETA,), is_relaxed=False):
    problem = bbvi.Problem(function, guide)
    shapes = problem.draw_shapes(problem.init(jax.random.key(0), x), x)
    return DiscreteModel(function, guide.sites(), shapes, x, args, is_relaxed)


def logits_at(guide=GUIDE, seed=1):
    params = guide.init(jax.random.key(seed), X)
    return params, jax.tree.map(lambda leaf: 4 * leaf, guide.logits(params, X))


def some_indices(num_samples=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        site.name: jnp.asarray(rng.integers(site.num_values, size=(num_samples, *site.block_shape)))
        for site in GUIDE.sites()
    }


# Components.


def test_log_joint_by_component():
    model = discrete_model()
    values = model.values(some_indices())
    found = model.log_p(values, model.args)
    assert model.components.num_components == 3
    for n in range(3):
        alone = jax.vmap(
            lambda z, n=n: log_joint(
                X[n : n + 1], jax.tree.map(lambda leaf: leaf[n : n + 1], z), THETA
            )
        )(model.latents(values))
        np.testing.assert_allclose(found[:, n], alone, rtol=1e-5)


def test_one_component_is_the_whole():
    """A term that reads all latents leaves one column, the log joint itself."""

    def coupled(x, z, theta):
        return log_joint(x, z, theta) - 0.1 * z[0].sum() ** 2

    model = discrete_model(coupled)
    values = model.values(some_indices())
    assert model.components is None
    wanted = jax.vmap(lambda z: coupled(X, z, THETA))(model.latents(values))
    np.testing.assert_allclose(model.log_p(values, model.args), wanted[:, None], rtol=1e-5)


@pytest.mark.parametrize("is_relaxed", [False, True])
def test_programs_that_divide_differently_are_one_component(is_relaxed):
    """Here real latents share a term that integers do not: only relaxations mind."""

    def two_programs(x, z):
        b = z["b"]
        if jnp.issubdtype(b.dtype, jnp.floating):
            return jnp.sum(b) ** 2
        return jnp.sum(b * x)

    guide = bbvi.MeanField({"b": bbvi.Bernoulli((3,))})
    model = discrete_model(two_programs, guide, args=(), is_relaxed=is_relaxed)
    assert (model.components is None) == is_relaxed
    log_p = model.log_p({"b": jnp.ones((2, 3), jnp.int32)}, ())
    assert log_p.shape == ((2, 1) if is_relaxed else (2, 3))
    np.testing.assert_allclose(log_p.sum(axis=1), 1.5, rtol=1e-6)


@pytest.mark.parametrize("is_relaxed", [False, True])
def test_programs_that_divide_alike_are_divided(is_relaxed):
    assert discrete_model(is_relaxed=is_relaxed).components.num_components == 3


@pytest.mark.parametrize("is_whole", [False, True])
def test_spread_is_the_adjoint_of_total(x64, is_whole):
    """<total(v), w> = <v, spread(w)> for all v and w; and totals are sums over components."""

    def coupled(x, z, theta):
        return log_joint(x, z, theta) + z[0].sum() * z[1]["c"].sum() * z[1]["hot"].sum()

    model = discrete_model(coupled if is_whole else log_joint)
    rng = np.random.default_rng(0)
    by_block = {s.name: jnp.asarray(rng.normal(size=(5, *s.block_shape))) for s in model.sites}
    by_component = jnp.asarray(rng.normal(size=(5, 1 if is_whole else 3)))
    total, spread = model.total(by_block), model.spread(by_component)
    assert total.shape == by_component.shape
    assert {n: v.shape for n, v in spread.items()} == {n: v.shape for n, v in by_block.items()}
    across = sum(jnp.sum(by_block[name] * spread[name]) for name in spread)
    np.testing.assert_allclose(jnp.sum(total * by_component), across, rtol=1e-12)
    wanted = by_block[B].sum(axis=2) + by_block[C] + by_block[HOT]
    wanted = wanted.sum(axis=1, keepdims=True) if is_whole else wanted
    np.testing.assert_allclose(total, wanted, rtol=1e-12)


# Draws.


def test_values_are_what_log_joint_gets():
    """Numbers, except for one-hot vectors; in the structure and the dtypes of a draw."""
    model, indices = discrete_model(), some_indices()
    values = model.values(indices)
    b, rest = model.latents(values)
    np.testing.assert_array_equal(b, indices[B])
    np.testing.assert_array_equal(rest["c"], indices[C])
    np.testing.assert_array_equal(rest["hot"].argmax(axis=-1), indices[HOT])
    np.testing.assert_array_equal(rest["hot"].sum(axis=-1), 1)
    for found, wanted in zip(
        jax.tree.leaves((b, rest)), jax.tree.leaves(model.shapes), strict=True
    ):
        assert found.shape[1:] == wanted.shape
        assert found.dtype == wanted.dtype


def test_values_in_double_precision(x64):
    values = discrete_model().values(some_indices())
    assert {name: leaf.dtype for name, leaf in values.items()} == {
        B: jnp.int32,
        C: jnp.int32,
        HOT: jnp.float64,
    }


def test_frequencies_of_draws(x64):
    """Lengths of the pieces of [0, 1] on which a draw is constant are the probabilities."""
    _, logits = logits_at()
    for site in GUIDE.sites():
        eta = np.asarray(logits[site.name], np.float64)
        for block in np.ndindex(site.block_shape):
            mine = jnp.asarray(eta[block])
            probs = jax.nn.softmax(mine) if mine.ndim else None
            wanted = [jax.nn.sigmoid(-mine), jax.nn.sigmoid(mine)] if probs is None else probs
            # A Bernoulli is 1 below its probability, a category starts where the last one ends.
            thresholds = [wanted[1]] if probs is None else np.cumsum(probs)[:-1]
            middles, lengths = cells(*thresholds)
            drawn = draw_indices({"z": mine}, {"z": jnp.asarray(middles)})["z"]
            found = np.bincount(drawn, weights=lengths, minlength=site.num_values)
            np.testing.assert_allclose(found, wanted, atol=1e-15)


def test_draws_have_the_shape_of_the_blocks_and_the_guides_values():
    """The same uniforms give the guide's own draws."""
    params, _ = logits_at()
    model, logits = discrete_model(), GUIDE.logits(params, X)
    noise = GUIDE.base_noise(jax.random.key(3))
    uniforms = dict(zip((B, C, HOT), jax.tree.leaves(noise[1]), strict=True))
    indices = draw_indices(logits, {name: u[None] for name, u in uniforms.items()})
    drawn = model.latents(model.values(indices))
    for mine, theirs in zip(
        jax.tree.leaves(drawn), jax.tree.leaves(GUIDE.sample(noise, params, X)), strict=True
    ):
        np.testing.assert_array_equal(mine[0], theirs)


def test_saturated_draws():
    """Certain, whatever the uniform."""
    logits = {"b": jnp.array([1e4, -1e4]), "c": jnp.array([[-1e4, 0.0, -1e4]])}
    for u in (0.0, 0.5, 1 - 2.0**-24):
        uniforms = {"b": jnp.full((1, 2), u), "c": jnp.full((1, 1), u)}
        indices = draw_indices(logits, uniforms)
        assert indices["b"].tolist() == [[1, 0]]
        assert indices["c"].tolist() == [[1]]


# Densities.


def test_log_probs_are_the_guides():
    params, _ = logits_at()
    model, indices = discrete_model(), some_indices()
    z = model.latents(model.values(indices))
    wanted = jax.vmap(lambda draw: GUIDE.site_log_probs(params, X, draw))(z)
    found = log_probs(GUIDE.logits(params, X), indices)
    for name in (B, C, HOT):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_scores_are_derivatives_of_log_probs(x64):
    _, logits = logits_at()
    indices = some_indices()
    found = scores(logits, indices)
    for s in range(5):
        draw = {name: index[s : s + 1] for name, index in indices.items()}
        wanted = jax.grad(
            lambda logits, draw=draw: sum(jnp.sum(v) for v in log_probs(logits, draw).values())
        )(logits)
        for name in (B, C, HOT):
            np.testing.assert_allclose(found[name][s], wanted[name], atol=1e-6)


def test_scores_of_saturated_logits_are_exact_zeros():
    logits = {"b": jnp.array([1e4, -1e4]), "c": jnp.array([[1e4, 0.0]])}
    indices = {"b": jnp.array([[1, 0]]), "c": jnp.array([[0]])}
    for leaf in (*scores(logits, indices).values(), *log_probs(logits, indices).values()):
        np.testing.assert_array_equal(leaf, 0)


# The log joint at draws.


def test_evaluation(x64):
    """Values, slopes and learned parameters against automatic derivatives of the log joint."""

    def function(x, z, theta):  # differentiable in c too
        return log_joint(x, z, theta) + 0.3 * jnp.sum(z[1]["c"] ** 2)

    model = discrete_model(function, is_relaxed=True, args=(jnp.asarray(np.asarray(THETA)),))
    values = model.values(some_indices())
    evaluation = model.evaluate(values, with_slopes=True)
    z = model.latents(as_floats(values))
    log_p = jax.vmap(lambda draw: function(X, draw, THETA))(z)
    np.testing.assert_allclose(evaluation.log_p.sum(axis=1), log_p, rtol=1e-6)
    slopes = jax.vmap(jax.grad(lambda draw: function(X, draw, THETA)))(z)
    found = jax.tree.leaves(model.latents(evaluation.slopes))
    for mine, theirs in zip(found, jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    wanted = jax.grad(lambda theta: -jnp.mean(jax.vmap(lambda draw: function(X, draw, theta))(z)))(
        THETA
    )
    np.testing.assert_allclose(evaluation.model_grads, wanted, atol=1e-6)
    plain = model.evaluate(values)
    np.testing.assert_allclose(plain.log_p, evaluation.log_p, rtol=1e-6)
    assert plain.slopes == plain.blankets == {}


def test_blankets_hold_what_a_block_changes():
    """Moving one entry moves its blanket as much as the whole."""
    model, indices = discrete_model(), some_indices()
    before = model.evaluate(model.values(indices), with_blankets=True)
    for name in (B, C, HOT):
        first = (slice(None), *(0 for _ in indices[name].shape[1:]))
        changed = {**indices, name: indices[name].at[first].set(1 - indices[name][first] % 2)}
        after = model.evaluate(model.values(changed), with_blankets=True)
        by_blanket = (after.blankets[name] - before.blankets[name])[first]
        whole = (after.log_p - before.log_p).sum(axis=1)
        assert jnp.abs(whole).max() > 0.1
        np.testing.assert_allclose(by_blanket, whole, atol=1e-5)


def test_no_learned_parameters():
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((3,))})
    model = discrete_model(lambda x, z: x @ z["b"], guide, args=())
    evaluation = model.evaluate({"b": jnp.ones((2, 3), jnp.int32)})
    assert evaluation.model_grads is None
    np.testing.assert_allclose(evaluation.log_p, jnp.stack([X, X]))


def test_floats():
    tree = {"a": jnp.arange(3), "b": jnp.ones(2, jnp.float16), "c": jax.ShapeDtypeStruct((4,), int)}
    found = as_floats(tree)
    default = jnp.zeros(()).dtype
    assert [leaf.dtype for leaf in found.values()] == [default, jnp.float16, default]
    assert found["c"].shape == (4,)
    np.testing.assert_array_equal(found["a"], [0.0, 1.0, 2.0])


# An estimator in ten lines, and what it is spared.


@dataclasses.dataclass(frozen=True)
class Plain(DiscreteEstimator):
    """The score-function gradient by component, no baseline."""

    is_binary = False

    def logit_gradient(self, noise, model, logits, state):
        indices = draw_indices(logits, noise)
        evaluation = model.evaluate(model.values(indices))
        log_weights = evaluation.log_p - model.total(log_probs(logits, indices))
        signal, ascent = model.spread(log_weights), {}
        for name, score in scores(logits, indices).items():
            a = signal[name].reshape(signal[name].shape + (1,) * (score.ndim - signal[name].ndim))
            ascent[name] = jnp.mean(a * score, axis=0)
        return LogitGradient(ascent, log_weights, evaluation.model_grads), state


def test_gradient_in_the_guides_parameters(x64, key):
    """By component: each score times the log weight of its own datum; the rest whole."""
    problem, estimator = bbvi.Problem(log_joint, GUIDE), Plain(3)
    params = problem.init(jax.random.key(0), X, THETA)
    noise = estimator.draw(key, problem)
    assert {name: u.shape for name, u in noise.items()} == {B: (3, 3, 2), C: (3, 3), HOT: (3, 3)}
    step = jax.jit(lambda noise: estimator.estimate(noise, problem, params, X, ()))
    found, state = step(noise)
    assert state == ()

    indices = draw_indices(GUIDE.logits(params.guide, X), noise)
    model = discrete_model()
    z = model.latents(model.values(indices))
    log_p, log_q = problem.by_component(params, X, z)
    np.testing.assert_allclose(found.log_weights, (log_p - log_q).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.loss, -found.log_weights.mean(), rtol=1e-6)

    def surrogate(params):
        log_p, log_q = problem.by_component(params, X, z)
        weights = jax.lax.stop_gradient(log_p - log_q)
        return -jnp.mean(jnp.sum(weights * log_q + log_p, axis=1))

    wanted = jax.jit(jax.grad(surrogate))(params)
    np.testing.assert_allclose(ravel_pytree(found.grads)[0], ravel_pytree(wanted)[0], atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Binary(Plain):
    is_binary = True


@dataclasses.dataclass(frozen=True)
class Between(Plain):
    is_relaxed = True


def refusal(estimator, function, family):
    problem = bbvi.Problem(function, bbvi.MeanField({"z": family}))
    params = problem.init(jax.random.key(0), None)
    check_discrete(estimator, problem, params, None, problem.guide.sites())


@pytest.mark.parametrize(
    ("estimator", "function", "family", "message"),
    [
        (Plain(), lambda x, z: z["z"], bbvi.Normal(), r"Plain is for discrete .* 'z' \(Normal\)"),
        (Binary(), lambda x, z: 1.0 * z["z"], bbvi.Categorical(3), "has 3 logits per entry"),
        (Binary(), lambda x, z: z["z"][0], bbvi.OneHotCategorical(2), "has 2 logits per entry"),
        (Between(), lambda x, z: 1.0 * z["z"], bbvi.Categorical(3), "use bbvi.OneHotCategorical"),
        (Between(), lambda x, z: 1.0 * (z["z"] == 1), bbvi.Bernoulli(), "differentiable in latent"),
        (
            Between(),
            lambda x, z: X[z["z"]],
            bbvi.Bernoulli(),
            r"fails at real values",
        ),
        (
            Between(),
            lambda x, z: X[jnp.argmax(z["z"])],
            bbvi.OneHotCategorical(3),
            "its derivative is zero",
        ),
    ],
)
def test_refused(estimator, function, family, message):
    with pytest.raises(ValueError, match=message):
        refusal(estimator, function, family)


@pytest.mark.parametrize(
    ("estimator", "function", "family"),
    [
        (Plain(), lambda x, z: X[z["z"]], bbvi.Categorical(3)),
        (Binary(), lambda x, z: X[z["z"]], bbvi.Bernoulli()),
        (Between(), lambda x, z: 0.3 * z["z"] ** 2, bbvi.Bernoulli()),
        (Between(), lambda x, z: X @ z["z"], bbvi.OneHotCategorical(3)),
    ],
)
def test_accepted(estimator, function, family):
    refusal(estimator, function, family)


def test_objectives_other_than_the_elbo_are_refused():
    problem = bbvi.Problem(log_joint, GUIDE, bbvi.Iwae(2))
    params = problem.init(jax.random.key(0), X, THETA)
    with pytest.raises(ValueError, match="Elbo"):
        Plain(2).validate(problem, params, X)
