"""Runs on eight devices against runs on one; test_placement.py calls pytest on it with them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from jax.sharding import PartitionSpec

import bbvi
from bbvi._optimizers import Optimizer, default_optimizer
from bbvi.infer.chunk import run_chunk, start
from bbvi.infer.placement import place
from bbvi.infer.step import Algorithm
from bbvi.infer.streams import source_of
from models import breast_cancer, eight_schools

N, S = 48, 8
RNG = np.random.default_rng(0)
X = {"y": RNG.normal(size=N) + np.repeat([-2.0, 2.0], N // 2), "f": RNG.normal(size=(N, 3))}
CANCER = jax.tree.map(lambda leaf: leaf[:568], breast_cancer.data())  # 569 is prime
SHARED = bbvi.MeanField({"w": bbvi.Normal((3,))})
NETWORK = bbvi.networks.MLP((4,), leaf="f")


def effects(x, z):
    """A regression with an effect of each row."""
    prior = norm.logpdf(z["w"]).sum() + norm.logpdf(z["u"]).sum()
    return prior + norm.logpdf(x["y"], x["f"] @ z["w"] + jnp.sin(z["u"]), 0.5).sum()


def mixture(x, z):
    """Three components with unknown means and an assignment of each row."""
    return norm.logpdf(z["w"], 0.0, 3.0).sum() + norm.logpdf(x["y"], z["w"][z["c"]], 1.0).sum()


LOCAL = bbvi.Product(SHARED, bbvi.Local({"u": bbvi.Normal((N,))}))
AMORTIZED = bbvi.Product(SHARED, bbvi.Amortized({"u": bbvi.Normal((N,))}, NETWORK))
MIXTURE = bbvi.Product(SHARED, bbvi.Local({"c": bbvi.Categorical(3, (N,))}))
EXPECTATION = {"w": bbvi.Reparameterization(S), "c": bbvi.LocalExpectation(S)}
SCHOOLS = (eight_schools.log_joint_noncentered, eight_schools.mean_field_noncentered())
# Model, guide and data; the mesh; whatever else the call names.
CASES = {
    "schools": ((*SCHOOLS, eight_schools.data()), {"samples": 8}, {}),
    "cancer": ((breast_cancer.log_joint, breast_cancer.mean_field(), CANCER), {"data": 8}, {}),
    "local": ((effects, LOCAL, X), {"data": 4, "samples": 2}, {}),
    "local, batches": ((effects, LOCAL, X), {"data": 4, "samples": 2}, {"batch_size": 8}),
    "amortized": ((effects, AMORTIZED, X), {"data": 8}, {}),
    "amortized, batches": ((effects, AMORTIZED, X), {"data": 8}, {"batch_size": 8}),
    "score function": ((mixture, MIXTURE, X), {"data": 8}, {"estimator": bbvi.ScoreFunction(S)}),
    "expectation": ((mixture, MIXTURE, X), {"data": 2, "samples": 4}, {"estimator": EXPECTATION}),
    "restarts": ((effects, LOCAL, X), {"data": 8}, {"num_restarts": 2}),
}


def mesh_of(axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes))


def fit(*problem, num_steps=20, **options):
    return bbvi.fit(*problem, num_steps=num_steps, progress=False, **options)


def assert_same(here, there):
    leaves = zip(*map(jax.tree.leaves, (here, there)), strict=True)
    for one, other in leaves:
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_one_device(name):
    problem, axes, options = CASES[name]
    one, many = fit(*problem, **options), fit(*problem, mesh=mesh_of(axes), **options)
    assert len(jax.tree.leaves(many.params)[0].devices()) == 8
    assert_same(one.history.loss, many.history.loss)
    assert_same(one.params, many.params)
    assert_same(*[result.sample(jax.random.key(1), 8) for result in (one, many)])
    assert_same(*[result.elbo(jax.random.key(1), 100) for result in (one, many)])
    if one.restarts:
        assert_same(one.restarts[:3], many.restarts[:3])


def test_verdict_and_rows():
    problem, axes, options = CASES["local, batches"]
    result = fit(*problem, mesh=mesh_of(axes), **options)
    assert "ELBO" in str(result)
    assert result.x["f"].sharding.spec == PartitionSpec("data")
    rows = [result.params.guide[1]["u"], result.state.opt_state[1]]
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(rows)} == {PartitionSpec("data")}
    shared = [result.params.guide[0], result.state.opt_state[0]]
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(shared)} == {PartitionSpec()}


def test_second_call_compiles_nothing():
    problem, axes, options = CASES["local, batches"]

    def call(seed, **more):
        return fit(*problem, key=jax.random.key(seed), mesh=mesh_of(axes), **options, **more)

    state, compiled = call(0).state, []
    call(1, init_state=state)

    def listen(event, duration, **_):
        if event.endswith(("backend_compile_duration", "jaxpr_to_mlir_module_duration")):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call(2, init_state=call(3).state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_goes_on_elsewhere(tmp_path):
    (problem, _, options), places = CASES["local, batches"], ({"data": 8}, {"samples": 4})
    options = options | {"optimizer": optax.adam(0.05)}  # the default's rate goes by num_steps
    whole = fit(*problem, **options)
    states = [fit(*problem, num_steps=10, mesh=mesh_of(axes), **options).state for axes in places]
    for state, axes in zip(states, reversed(places), strict=True):
        rest = fit(*problem, num_steps=10, mesh=mesh_of(axes), init_state=state, **options)
        assert_same(whole.history.loss[10:], rest.history.loss)
    for axes, num_steps in zip(places, (10, 20), strict=True):
        options |= {"checkpoint": tmp_path, "mesh": mesh_of(axes), "num_steps": num_steps}
        saved = fit(*problem, **options)
    assert_same(whole.history.loss, saved.history.loss)


COLLECTIVE = r"= (\(.*?\)|\S+) (all-\w+|collective-\w+|reduce-scatter)\("


@pytest.mark.parametrize("name", ["cancer", "local"])
def test_a_step_of_all_data_communicates_sums_only(name):
    problem = CASES[name][0]
    placement, x = place(mesh_of({"data": 8}), bbvi.Problem(*problem[:2]), problem[2], None)
    whole, source = source_of(bbvi.Problem(*problem[:2]), x, None, jax.random.key(0))
    optimizer, estimator = Optimizer.of(default_optimizer()), bbvi.Reparameterization(S)
    algorithm = Algorithm(whole, estimator, optimizer, placement=placement)
    x, _ = source.feed(0, 1)
    params = whole.init(jax.random.key(0), x)
    state = start(algorithm, jax.random.key(1), x, params, is_batched=False)
    program = run_chunk.lower(algorithm, state, x, 1, is_batched=False, is_guarded=False).compile()
    found = re.findall(COLLECTIVE, program.as_text())
    assert {kind for _, kind in found} == {"all-reduce"}
    # No array with rows, of which there are 568 and 48, passes from device to device.
    assert not any(re.search(rf"\b(568|71|{N}|{N // 8})\b", shapes) for shapes, _ in found)


@pytest.mark.parametrize(
    ("problem", "axes", "options", "message"),
    [
        ((effects, LOCAL, X), {"rows": 8}, {}, "mesh has axes .*rows.*expected 'data'"),
        (CASES["cancer"][0], {"data": 3}, {}, "568 rows of x .* 3 devices.*leave out 1, or add 2"),
        ((effects, LOCAL, X), {"data": 8}, {"batch_size": 12}, "batch_size=12 .*batch_size=8"),
        (
            (*SCHOOLS, eight_schools.data()),
            {"samples": 8},
            {"estimator": bbvi.Reparameterization(12)},
            "num_samples=12 .* 8 devices.*num_samples=8",
        ),
        ((lambda x, z: -0.5 * z**2, bbvi.MeanField(bbvi.Normal())), {"data": 8}, {}, "has none"),
        ((effects, LOCAL, jax.tree.map(lambda a: a[:8], X)), {"data": 8}, {}, "'u' has shape"),
    ],
)
def test_what_does_not_divide_is_an_error(problem, axes, options, message):
    with pytest.raises(ValueError, match=message):
        fit(*problem, mesh=mesh_of(axes), **options)
