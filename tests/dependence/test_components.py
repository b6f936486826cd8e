"""Components against those of the graphs of interactions, and what is computed with them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

import bbvi
import models
from bbvi.dependence.blankets import entry_sites, factor_graph
from bbvi.dependence.components import component_sums, find_components, of_graph
from tests.dependence.oracles import abstract
from tests.dependence.programs import DATA, SPEC, random_program
from tests.dependence.test_blankets import found_pairs
from tests.models.test_interactions import as_matrix

TARGETS = [name for name in models.names() if models.get(name).interactions is not None]


def labels_of(components):
    """One label per latent block, in the order of ``jax.tree``."""
    return np.concatenate(
        [
            np.broadcast_to(part.labels, part.shape).ravel()
            for _, part in sorted(components.sites.items())
        ]
    )


@pytest.mark.parametrize("name", TARGETS)
def test_components_are_those_of_the_interactions_derived_by_hand(name):
    target = models.get(name)
    x, guide = target.data(), next(iter(target.guides.values()))()
    params = guide.init(jax.random.key(0), x)
    z = guide.sample(guide.base_noise(jax.random.key(1)), params, x)
    sites = entry_sites(z)
    found = find_components(target.log_joint, sites, x, z)
    exact = connected_components(as_matrix(target.interactions(x), z), directed=False)[1]
    got = labels_of(found)
    # The same partition: pairs of labels are a bijection.
    assert len(set(zip(got, exact, strict=True))) == len(set(got)) == len(set(exact))
    total = component_sums(target.log_joint, sites, x, z)
    np.testing.assert_allclose(total.sum(), target.log_joint(x, z), rtol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_components_of_random_programs_never_divide_what_meets(seed):
    def log_joint(x, z):
        outputs = random_program(seed)(x, z).values()
        return sum((jnp.sum(out.astype(float)) for out in outputs), jnp.zeros(()))

    z = abstract(SPEC)
    graph, _ = factor_graph(log_joint, DATA, z)
    got = labels_of(of_graph(graph))
    first, second = np.nonzero(found_pairs(graph))
    assert (got[first] == got[second]).all()


def batch(x, z, theta):
    """Two coupled latents per datum, a prior, and a constant that reads no latent."""
    b = z["b"].astype(theta.dtype)
    fit = -0.5 * jnp.sum((x - b @ theta - jnp.prod(b, axis=1)) ** 2)
    return fit + jnp.sum(b @ jnp.array([0.3, -0.2])) + jnp.sum(theta**2)


def batch_problem():
    problem = bbvi.Problem(batch, bbvi.MeanField({"b": bbvi.Bernoulli((5, 2))}))
    x = jnp.linspace(-1.0, 2.0, 5)
    return problem, problem.init(jax.random.key(0), x, jnp.array([0.5, 1.5])), x


@pytest.mark.usefixtures("x64")
def test_by_component_is_the_log_joint_of_each_datum():
    problem, params, x = batch_problem()
    z = problem.sample(problem.base_noise(jax.random.key(1), 3), params, x)
    log_p, log_q = problem.by_component(params, x, z)
    assert log_p.shape == log_q.shape == (3, 5)

    def of_datum(n):
        at = lambda draw: batch(x[n : n + 1], {"b": draw[n : n + 1]}, params.model)  # noqa: E731
        constant = jnp.sum(params.model**2)  # shared out evenly
        return jax.vmap(at)(z["b"]) - 0.8 * constant

    np.testing.assert_allclose(log_p, jnp.stack([of_datum(n) for n in range(5)], 1), rtol=1e-12)
    np.testing.assert_allclose(log_q.sum(1), problem.log_q(params, x, z), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradients_flow_through_components():
    problem, params, x = batch_problem()
    z = problem.sample(problem.base_noise(jax.random.key(1), 3), params, x)
    by_component = jax.grad(lambda p: jnp.sum(problem.by_component(p, x, z)[0]))(params)
    whole = jax.grad(lambda p: jnp.sum(problem.log_p(p, x, z)))(params)
    np.testing.assert_allclose(by_component.model, whole.model, rtol=1e-12)


def test_total_and_spread_are_adjoint():
    problem, params, x = batch_problem()
    components = problem.components(params, x)
    rng = np.random.default_rng(0)
    by_block = {"b": jnp.asarray(rng.normal(size=(5, 2)))}
    by_component = jnp.asarray(rng.normal(size=5))
    left = jnp.vdot(components.total(by_block), by_component)
    right = jnp.vdot(by_block["b"], components.spread(by_component)["b"])
    np.testing.assert_allclose(left, right, rtol=1e-5)


def chain(x, z):
    return jnp.sum(x * jnp.sin(z[:-1] * z[1:]))


def interleaved(x, z):
    """Even entries form one chain and odd ones another."""
    return jnp.sum(jnp.sin(z[:-2] * z[2:]))


def through_indices(x, z):
    return jnp.sum(jnp.cos(z[x[:, 0]] - z[x[:, 1]]))


EDGES = np.array([[0, 3], [3, 4], [1, 5]])


@pytest.mark.parametrize(
    ("log_joint", "x", "size", "expected"),
    [
        (chain, jnp.ones(5), 6, [0] * 6),
        (interleaved, None, 6, [0, 1, 0, 1, 0, 1]),
        # Known indices are followed; an entry that nothing reads is a component of its own.
        (lambda x, z: through_indices(EDGES, z), None, 6, [0, 1, 2, 0, 0, 1]),
        # Traced ones may be anything.
        (through_indices, jnp.asarray(EDGES), 6, [0] * 6),
        (lambda x, z: jnp.sum(z**2), None, 4, [0, 1, 2, 3]),
    ],
)
def test_partition(log_joint, x, size, expected):
    z = jax.ShapeDtypeStruct((size,), jnp.zeros(()).dtype)
    sites = entry_sites(z)
    assert labels_of(find_components(log_joint, sites, x, z)).tolist() == expected


def contractions(function, *args):
    text = str(jax.make_jaxpr(function)(*args))
    return text.count("dot_general")


def test_sums_cost_no_more_than_the_log_joint():
    """The fit is taken as it is, not multiplied out into terms of each latent."""
    b, theta, x = jnp.ones((5, 2)), jnp.ones((2, 7)), jnp.ones((5, 7))
    sites = bbvi.MeanField({"b": bbvi.Bernoulli((5, 2))}).sites()

    def log_joint(x, z, theta):
        logits = z["b"] @ theta
        return jnp.sum(x * logits - jax.nn.softplus(logits)) + jnp.sum(z["b"])

    def sums(b, theta):
        return component_sums(log_joint, sites, x, {"b": b}, theta)

    assert contractions(sums, b, theta) == contractions(
        lambda b, theta: log_joint(x, {"b": b}, theta), b, theta
    )
    np.testing.assert_allclose(
        sums(b, theta),
        [log_joint(x[n : n + 1], {"b": b[n : n + 1]}, theta) for n in range(5)],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "total",
    [
        lambda f: jnp.sum(jnp.cumsum(f)),
        lambda f: jnp.sum(f[1:] + f[:-1]),
        lambda f: jnp.sum(jnp.tril(jnp.ones((4, 4))) @ f),
    ],
)
def test_sums_are_taken_apart_where_an_array_would_join_components(total):
    def log_joint(x, z):
        return total(x * jnp.sin(z))

    x, z = jnp.array([0.5, -1.0, 2.0, 0.3]), jnp.array([0.2, 0.9, -0.4, 1.5])
    found = component_sums(log_joint, entry_sites(z), x, z)
    zero = log_joint(x, jnp.zeros(4))
    alone = [log_joint(x, jnp.where(jnp.arange(4) == n, z, 0.0)) - zero for n in range(4)]
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_zeros_that_log_joint_closes_over_divide_it():
    weights = np.zeros((6, 6))
    for i, j in itertools.pairwise([0, 2, 5]):
        weights[i, j] = 1.0

    def log_joint(x, z):
        return jnp.sum(weights * jnp.sin(z[:, None] * z[None, :])) - jnp.sum(z**2)

    z = jax.ShapeDtypeStruct((6,), jnp.zeros(()).dtype)
    sites = entry_sites(z)
    assert labels_of(find_components(log_joint, sites, None, z)).tolist() == [0, 1, 0, 2, 3, 0]


def test_a_joint_site_is_one_block():
    guide = bbvi.FullRank({"z": bbvi.Normal((4,))})
    problem = bbvi.Problem(lambda x, z: -jnp.sum(z["z"] ** 2), guide)
    params = problem.init(jax.random.key(0), None)
    assert problem.components(params, None).num_components == 1


def test_rows_of_an_event_are_one_block():
    guide = bbvi.MeanField({"p": bbvi.Dirichlet((4, 3)), "c": bbvi.OneHotCategorical(3, (4,))})
    problem = bbvi.Problem(lambda x, z: jnp.sum(z["c"] * jnp.log(z["p"])), guide)
    components = problem.components(problem.init(jax.random.key(0), None), None)
    assert components.num_components == 4
    assert components.sites["c"].labels.ravel().tolist() == [0, 1, 2, 3]
