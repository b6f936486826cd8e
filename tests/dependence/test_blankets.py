"""Blankets of every target of the registry against those derived by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi
import models
from bbvi._types import Site
from bbvi.dependence.blankets import (
    blanket_sums,
    entry_sites,
    factor_graph,
    local_program,
)
from tests.dependence.oracles import pairs

TARGETS = [name for name in models.names() if models.get(name).interactions is not None]

# Pairs of latent entries found to share a term, over the pairs that do: where it is not 1, the
# analysis is coarser than the model.
LOOSE = {
    # The bonds of spin i are one term, s_i (J s)_i: second neighbours come in.
    "ising_matrix",
    # A count of zero leaves a sum of rates, which splits further.
    "deep_exponential",
    # One component's mean is selected by arithmetic: the others' are multiplied by zero.
    "wine_mixture_one_hot",
    "wine_mixture_vmap",
    "wine_mixture_gather",
    "wine_mixture_distrax",
    "wine_mixture_numpyro",
    "gaussian_mixture",
    "karate_club",
    "topics",
}


@functools.cache
def one_draw(name):
    target = models.get(name)
    x = target.data()
    guide = next(iter(target.guides.values()))()
    params = guide.init(jax.random.key(0), x)
    return target, x, guide.sample(guide.base_noise(jax.random.key(1)), params, x)


def found_pairs(graph):
    """Matrix over all latent entries: which two share a term."""
    leaf_shapes = list(graph.latents.values())
    size = sum(math.prod(shape) for shape in leaf_shapes)
    together = np.zeros((size, size), bool)
    for term in graph.terms:
        pointers = [p for reads in term.reads.values() for p in reads]
        reads = pairs(pointers, term.shape, leaf_shapes).astype(np.float32)
        together |= reads.T @ reads > 0
    return together


def true_pairs(graph, interactions):
    names = list(graph.latents)
    sizes = [math.prod(shape) for shape in graph.latents.values()]
    blocks = [[np.zeros((a, b), bool) for b in sizes] for a in sizes]
    for (a, b), block in interactions.items():
        i, j = names.index(a), names.index(b)
        blocks[i][j], blocks[j][i] = block, block.T
    return np.block(blocks)


@pytest.mark.parametrize("name", TARGETS)
def test_no_dependency_is_missed(name):
    target, x, z = one_draw(name)
    graph, _ = factor_graph(target.log_joint, x, z)
    found, true = found_pairs(graph), true_pairs(graph, target.interactions(x))
    np.fill_diagonal(found, val=True)
    np.fill_diagonal(true, val=True)
    missed = np.argwhere(true & ~found)
    assert not len(missed), f"missed pairs of entries: {missed[:5].tolist()}"
    is_loose = (found != true).any()
    assert is_loose == (name in LOOSE), f"{found.sum()} pairs found, {true.sum()} true"


@pytest.mark.parametrize("name", TARGETS)
def test_blanket_sums_change_as_the_log_joint_does(name):
    """With data traced, as in a fit."""
    target, x, z = one_draw(name)
    report = bbvi.check_blankets(target.log_joint, x, z, max_entries=60)
    assert all(report.checked.values())
    assert report.worst_error < 1e-6


@pytest.mark.parametrize("name", ["crowdsourcing", "matrix_factorization", "karate_club"])
def test_one_analysis_serves_all_data_of_a_shape(name):
    """Data are traced in the program: shuffled indices give the sums of shuffled data."""
    target, x, z = one_draw(name)
    rng = np.random.default_rng(0)
    shuffled = jax.tree.map(lambda leaf: jnp.asarray(rng.permutation(leaf)), x)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (x, shuffled)), strict=True))
    run = jax.jit(lambda x, z: blanket_sums(target.log_joint, entry_sites(z), x, z))
    for data in (x, shuffled):
        graph, program = factor_graph(target.log_joint, data, z)
        arrays = jax.jit(jax.extend.core.jaxpr_as_fun(program))(*jax.tree.leaves((data, z)))
        log_p, sums = run(data, z)
        np.testing.assert_allclose(log_p, jax.jit(target.log_joint)(data, z), rtol=1e-4)
        wanted = graph.blanket_sums(arrays)
        for site, found in sums.items():
            np.testing.assert_allclose(found, wanted[site], rtol=2e-3, atol=2e-3)
    assert run._cache_size() == 1


def counted(function):
    """The function, and a list that grows at each of its traces."""
    calls = []

    def wrapper(*args):
        calls.append(1)
        return function(*args)

    return wrapper, calls


def test_the_analysis_runs_once_per_shape():
    log_joint, calls = counted(lambda x, z: -jnp.sum((x - z["a"]) ** 2))
    sites, z = entry_sites({"a": jnp.ones(3)}), {"a": jnp.ones(3)}
    for _ in range(3):
        jax.jit(lambda x, z: blanket_sums(log_joint, sites, x, z))(jnp.zeros(3), z)
    assert len(calls) == 1
    blanket_sums(log_joint, sites, jnp.zeros(()), z)
    assert len(calls) == 2


def test_a_function_that_closes_over_a_tracer_is_not_kept():
    def outer(scale):
        def log_joint(x, z):
            return -scale * jnp.sum(z**2)

        return blanket_sums(log_joint, entry_sites(jnp.ones(2)), None, jnp.ones(2))[1]["latents"]

    for scale in (1.0, 2.0):
        np.testing.assert_allclose(jax.jit(outer)(scale), [-scale, -scale])


def test_blocks_are_summed_once():
    """A row drawn jointly reads a term once, however many of its entries the term reads."""
    z = {"rows": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones(())}

    def log_joint(x, z):
        return jnp.sum(z["rows"].sum(axis=1) ** 2) + jnp.sum(z["rows"]) * z["b"]

    joint = Site("all", ("b", "rows"), "joint", reparameterized=False)
    rows = [
        Site("rows", ("rows",), "rows", reparameterized=False, event_ndims=1),
        Site("b", ("b",), "b", reparameterized=False, event_ndims=0),
    ]
    squares, total = np.array([1.0, 25.0, 81.0]), 15.0
    _, sums = blanket_sums(log_joint, tuple(rows), None, z)
    np.testing.assert_allclose(sums["rows"], squares + np.array([1.0, 5.0, 9.0]))
    np.testing.assert_allclose(sums["b"], total)
    _, sums = blanket_sums(log_joint, (joint,), None, z)
    np.testing.assert_allclose(sums["all"], squares.sum() + total)


def test_factor_sums_transpose_blanket_sums(key):
    target, x, z = one_draw("radon")
    graph, program = factor_graph(target.log_joint, x, z)
    arrays = jax.jit(jax.extend.core.jaxpr_as_fun(program))(*jax.tree.leaves((x, z)))
    keys = iter(jax.random.split(key, 100))
    arrays = [jax.random.normal(next(keys), array.shape) for array in arrays]
    values = {n: jax.random.normal(next(keys), s) for n, s in graph.latents.items()}
    sums, totals = graph.blanket_sums(arrays), graph.factor_sums(values)
    left = sum(jnp.vdot(sums[name], values[name]) for name in values)
    right = sum(jnp.vdot(a, t) for a, t in zip(arrays, totals, strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-4)


def test_learned_parameters_are_never_structure():
    """A parameter that is zero now is not zero for ever."""

    def log_joint(x, z, theta):
        return jnp.sum(theta * z["a"] ** 2)

    z = {"a": jnp.ones(3)}
    graph, _ = factor_graph(log_joint, None, z, jnp.zeros(3))
    assert found_pairs(graph).sum() == 3
    run = jax.jit(lambda theta: blanket_sums(log_joint, entry_sites(z), None, z, theta))
    np.testing.assert_allclose(run(jnp.array([1.0, 0.0, 2.0]))[1]["a"], [1.0, 0.0, 2.0])


def test_the_pass_is_linear_in_the_sites(key):
    """Restricting the sites changes no sum."""
    target, x, z = one_draw("radon")
    sites = entry_sites(z)
    _, every = blanket_sums(target.log_joint, sites, x, z)
    _, some = blanket_sums(target.log_joint, sites[:2], x, z)
    for name, values in some.items():
        np.testing.assert_allclose(values, every[name], rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class CountTerms:
    def __call__(self, graph, evaluate, z):
        return jnp.asarray(len(graph.terms))


def test_any_program_can_be_built_on_the_graph():
    z = {"a": jnp.ones(3)}
    log_joint = lambda x, z: jnp.sum(z["a"] ** 2) - jnp.sum(jnp.exp(z["a"]))  # noqa: E731
    assert int(local_program(CountTerms(), log_joint, entry_sites(z), None, z, ())) == 2
