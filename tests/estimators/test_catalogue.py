"""Every estimator of the catalogue: the catalogue itself, and what they all must do."""

import inspect
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.estimators.catalogue import CATALOGUE, catalogue_table

BY_CLASS = {entry.estimator: entry for entry in CATALOGUE}
# Formulae and protocols, not estimators.
ABSTRACT = {
    bbvi.Estimator,
    bbvi.SurrogateEstimator,
    bbvi.BiasedEstimator,
    bbvi.estimators.DiscreteEstimator,
}
# With the smallest number of draws.
INSTANCES = {
    bbvi.Reparameterization: bbvi.Reparameterization(1),
    bbvi.DoublyReparameterized: bbvi.DoublyReparameterized(2),
    bbvi.Stratified: bbvi.Stratified(1),
    bbvi.TaylorControlVariate: bbvi.TaylorControlVariate(1),
    bbvi.MeasureValued: bbvi.MeasureValued(1),
    bbvi.ScoreFunction: bbvi.ScoreFunction(2),
    bbvi.VarGrad: bbvi.VarGrad(2),
    bbvi.CoordinateControlVariate: bbvi.CoordinateControlVariate(2),
    bbvi.Overdispersed: bbvi.Overdispersed(2),
    bbvi.Vimco: bbvi.Vimco(2),
    bbvi.Ovis: bbvi.Ovis(2),
    bbvi.ReweightedWakeSleep: bbvi.ReweightedWakeSleep(2),
    bbvi.Enumeration: bbvi.Enumeration(),
    bbvi.LocalExpectation: bbvi.LocalExpectation(1),
    bbvi.Arm: bbvi.Arm(2),
    bbvi.DisArm: bbvi.DisArm(2),
    bbvi.Arms: bbvi.Arms(2),
    bbvi.StickBreaking: bbvi.StickBreaking(2),
    bbvi.UnorderedSet: bbvi.UnorderedSet(2),
    bbvi.MuProp: bbvi.MuProp(1),
    bbvi.DoubleCv: bbvi.DoubleCv(2),
    bbvi.Rodeo: bbvi.Rodeo(2),
    bbvi.Rebar: bbvi.Rebar(1),
    bbvi.Relax: bbvi.Relax(1),
    bbvi.StraightThrough: bbvi.StraightThrough(1),
    bbvi.GumbelSoftmax: bbvi.GumbelSoftmax(1),
    bbvi.ReinMax: bbvi.ReinMax(1),
    bbvi.PerSite: bbvi.PerSite(
        {"a": bbvi.Reparameterization(2), "b": bbvi.ScoreFunction(2), "c.0": bbvi.ScoreFunction(2)}
    ),
    bbvi.Mixed: bbvi.Mixed(bbvi.Reparameterization(1), bbvi.Enumeration()),
}
OBJECTIVES = {
    bbvi.DoublyReparameterized: bbvi.Iwae(2),
    bbvi.Vimco: bbvi.Iwae(2),
    bbvi.Ovis: bbvi.Iwae(2),
    bbvi.ReweightedWakeSleep: bbvi.ForwardKl(2),
}
BOTH_KINDS = (bbvi.PerSite, bbvi.Mixed)
all_estimators = pytest.mark.parametrize("kind", INSTANCES, ids=lambda kind: kind.__name__)
X = np.linspace(-1.0, 1.0, 3)


def log_joint(x, z, theta):
    """Nested latents of three leaves, all coupled with each other and with theta; any values."""
    a, b, (c,) = (jax.tree.map(lambda leaf: 1.0 * leaf, z)[name] for name in "abc")
    mean = theta[0] * a + theta[1] * b[0] * b[1] + a * c
    prior = a**2 + jnp.sum(b**2) + c**2 + jnp.sum((theta - 1) ** 2)
    return -0.5 * jnp.sum((x - mean) ** 2) - 0.1 * prior


def families(kind):
    discrete = issubclass(kind, bbvi.estimators.DiscreteEstimator) or kind in (
        bbvi.LocalExpectation,
        *BOTH_KINDS,
    )
    family = bbvi.Bernoulli if discrete else bbvi.Normal
    first = bbvi.Normal if kind in BOTH_KINDS else family
    return {"a": first(()), "b": family((2,)), "c": (family(()),)}


def problem_for(kind):
    guide, objective = bbvi.MeanField(families(kind)), OBJECTIVES.get(kind, bbvi.Elbo())
    guide = bbvi.Mixture(guide, 2) if kind is bbvi.Stratified else guide
    problem = bbvi.Problem(log_joint, guide, objective)
    params = problem.init(jax.random.key(0), jnp.asarray(X), jnp.array([0.7, -0.4]))
    return problem, params, jnp.asarray(X)


def test_every_estimator_is_in_the_catalogue():
    public = {
        value
        for value in vars(bbvi).values()
        if inspect.isclass(value) and issubclass(value, bbvi.Estimator)
    }
    assert public - ABSTRACT == set(BY_CLASS) == set(INSTANCES)


@all_estimators
def test_catalogue_tells_the_bias_and_the_source(kind):
    entry, text = BY_CLASS[kind], inspect.getdoc(kind)
    assert entry.bias.startswith("none") or entry.bias.startswith("as the") or kind.is_biased
    assert not (entry.bias.startswith("none") and kind.is_biased is True)
    references = text[text.index("References:") :]
    for source in entry.source.split("; "):
        assert source.split()[0] in references
        assert re.search(r"\d{4}", source).group() in references


def test_readme_shows_the_catalogue():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert catalogue_table() in readme


@pytest.mark.parametrize("kind", [k for k in INSTANCES if k.is_biased is True])
def test_biased_ones_say_so_wherever_they_are_shown(kind):
    assert "[biased]" in repr(INSTANCES[kind])
    problem, params, x = problem_for(kind)
    result = bbvi.fit(
        log_joint,
        problem.guide,
        x,
        objective=problem.objective,
        estimator=INSTANCES[kind],
        model_params=params.model,
        num_steps=20,
        progress=False,
    )
    assert "bias " in repr(result)


@all_estimators
def test_compiled_as_eager_and_over_batches_as_one_by_one(kind):
    estimator, (problem, params, x) = INSTANCES[kind], problem_for(kind)
    estimator.validate(problem, params, x)
    state = estimator.init(problem, params, x)

    def first(key, params):
        estimate, after = estimator.estimate(
            estimator.draw(key, problem), problem, params, x, state
        )
        return ravel_pytree(estimate)[0], ravel_pytree(after)[0]

    keys = jax.random.split(jax.random.key(1), 2)
    with jax.debug_key_reuse(False):
        eager = first(keys[0], params)
        compiled = jax.jit(first)(keys[0], params)
        batched = jax.jit(jax.vmap(first, in_axes=(0, None)))(keys, params)
    for one, two, many in zip(eager, compiled, batched, strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(two, many[0], rtol=2e-4, atol=2e-5)


@all_estimators
def test_structure_loss_and_precision(kind, x64):
    estimator, (problem, params, x) = INSTANCES[kind], problem_for(kind)
    state = estimator.init(problem, params, x)

    @jax.jit
    def first(key):
        noise = estimator.draw(key, problem)
        return estimator.estimate(noise, problem, params, x, state)

    estimate, after = first(jax.random.key(1))
    assert jax.tree.structure(estimate.grads) == jax.tree.structure(params)
    for grad, leaf in zip(jax.tree.leaves(estimate.grads), jax.tree.leaves(params), strict=True):
        assert (grad.shape, grad.dtype) == (leaf.shape, jnp.float64)
    assert estimate.loss.dtype == estimate.log_weights.dtype == jnp.float64
    assert estimate.log_weights.ndim == (1 if problem.objective.is_mean else 2)
    np.testing.assert_allclose(estimate.loss, problem.objective(estimate.log_weights), rtol=1e-9)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert np.abs(estimate.grads.model).max() > 0


@all_estimators
def test_a_second_fit_traces_nothing_and_theta_moves(kind):
    traces = []

    def counted(x, z, theta):
        traces.append(1)
        return log_joint(x, z, theta)

    problem, params, x = problem_for(kind)

    def run():
        return bbvi.fit(
            counted,
            problem.guide,
            x,
            objective=problem.objective,
            estimator=INSTANCES[kind],
            model_params=params.model,
            num_steps=10,
            progress=False,
        )

    first = run()
    num_traces = len(traces)
    second = run()
    assert len(traces) == num_traces
    assert first.history.loss.tolist() == second.history.loss.tolist()
    assert np.abs(first.params.model - params.model).min() > 1e-3


class Encoder(nn.Module):
    """Parameters of the three sites of ``families``, from the data."""

    kind: type

    @nn.compact
    def __call__(self, x):
        def one(family):
            rows = ("loc", "log_scale") if isinstance(family, bbvi.Normal) else ("logits",)
            size = int(np.prod(family.shape))
            return {row: nn.Dense(size)(x).reshape(family.shape) for row in rows}

        is_family = lambda leaf: isinstance(leaf, bbvi.guides.Family)  # noqa: E731
        return jax.tree.map(one, families(self.kind), is_leaf=is_family)


@all_estimators
def test_amortized_guides(kind):
    problem, params, x = problem_for(kind)
    guide = bbvi.Amortized(families(kind), Encoder(kind))
    problem = bbvi.Problem(log_joint, guide, problem.objective)
    params = problem.init(jax.random.key(0), x, params.model)
    estimator = INSTANCES[kind]
    refuse = (bbvi.TaylorControlVariate, bbvi.MeasureValued, bbvi.Overdispersed, bbvi.Stratified)
    if kind in refuse:  # they need a guide of their own
        with pytest.raises(ValueError, match=kind.__name__):
            estimator.validate(problem, params, x)
        return
    estimator.validate(problem, params, x)

    @jax.jit
    @jax.vmap
    def first(key):
        state = estimator.init(problem, params, x)
        return estimator.estimate(estimator.draw(key, problem), problem, params, x, state)[0]

    # Antithetic draws that agree say nothing of an entry: some of the keys must reach it.
    grads = first(jax.random.split(jax.random.key(1), 8)).grads
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads.guide))


def test_invalid_pairs_are_refused_by_name():
    refused = 0
    for kind, estimator in INSTANCES.items():
        problem, params, x = problem_for(kind)
        for objective in (bbvi.Elbo(), bbvi.Iwae(2), bbvi.Renyi(0.5, 2), bbvi.Chi(3, 2),
                          bbvi.ForwardKl(2)):  # fmt: skip
            names = BY_CLASS[kind].objectives
            word = {bbvi.Elbo: "ELBO", bbvi.Iwae: "IWAE", bbvi.Renyi: "Rényi", bbvi.Chi: "chi",
                    bbvi.ForwardKl: "forward KL"}[type(objective)]  # fmt: skip
            is_valid = word in names if "all but" not in names else word not in names
            other = bbvi.Problem(problem.log_joint, problem.guide, objective)
            smallest = bbvi.Reparameterization(2) if kind is bbvi.Reparameterization else estimator
            if is_valid:
                smallest.validate(other, params, x)
                continue
            refused += 1
            with pytest.raises(ValueError, match=f"{kind.__name__}.*{type(objective).__name__}|"
                               f"{type(objective).__name__}.*{kind.__name__}"):  # fmt: skip
                smallest.validate(other, params, x)
    assert refused > 90
