import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbvi.dependence import analysis
from bbvi.dependence.analysis import Analysis, Value, constant, rule
from bbvi.dependence.pointers import Pointer
from tests.dependence.oracles import Integers, abstract, analyse, check, observed, relation
from tests.dependence.programs import DATA, OPERATIONS, SPEC, random_program

NUM_PROGRAMS = 200


@pytest.mark.parametrize(
    "chunk", [*range(5), *(pytest.param(k, marks=pytest.mark.slow) for k in range(5, 10))]
)
def test_random_programs(chunk):
    """Nothing is missed; what is found stays near what is observed, far from everything."""
    num_found, num_seen, num_dense = 0, 0, 0
    for seed in range(chunk, NUM_PROGRAMS, 10):
        program = random_program(seed)
        seen = observed(program, DATA, SPEC)
        known, unknown = relation(program, DATA, SPEC)
        traced, _ = relation(program, DATA, SPEC, traced=True)
        assert not unknown
        for name in seen:
            assert not (seen[name] & ~known[name]).any(), f"program {seed}, known data: {name}"
            assert not (known[name] & ~traced[name]).any(), f"program {seed}, traced data: {name}"
        num_found += sum(matrix.sum() for matrix in known.values())
        num_seen += sum(matrix.sum() for matrix in seen.values())
        num_dense += sum(matrix.size for matrix in known.values() if matrix.any())
    assert num_found < 1.25 * num_seen
    assert num_dense > 3 * num_seen


def test_random_programs_use_all_operations():
    used = set()
    for seed in range(NUM_PROGRAMS):
        outputs = jax.eval_shape(random_program(seed), DATA, abstract(SPEC))
        used |= {name.split(" ", 1)[1] for name in outputs}
    assert used == set(OPERATIONS)


@pytest.mark.parametrize("seed", range(5))
def test_dependence_is_the_same_in_either_precision(seed):
    def found(*, x64):
        with jax.enable_x64(x64):
            return relation(random_program(seed), DATA, SPEC)[0]

    single, double = found(x64=False), found(x64=True)
    jax.tree.map(np.testing.assert_array_equal, single, double)


@pytest.mark.parametrize("x64", [False, True])
def test_either_precision_misses_nothing(x64):
    def program(x, z):
        a, k = z["a"], z["k"]
        index = x["i"] + 0
        assert a.dtype == (jnp.float64 if x64 else jnp.float32)
        return {
            "index": a[index],
            "latent index": a[k],
            "scale": x["scale"] * a + x["count"],
            "bits": jax.lax.bitcast_convert_type(a, jnp.int64 if x64 else jnp.int32) & 7,
            "one-hot": jax.nn.one_hot(x["i"], 4) @ a,
            "round": jnp.round(a / 1e-3),
        }

    x = {"i": np.array([3, 0, -1]), "scale": 0.5, "count": 3}
    spec = {"a": (4,), "k": Integers((2,), 4)}
    with jax.enable_x64(x64):
        check(program, spec, x, traced={"one-hot": 10})


def test_outputs_that_read_nothing():
    def program(x, z):
        return {
            "literal": 3.0,
            "data": x * 2,
            "constant": jnp.arange(3),
            "closed over": np.arange(3.0) + x,
            "shape of a latent": jnp.zeros_like(z["a"]),
            "latent": z["a"],
        }

    found = check(program, {"a": (3,), "unused": (2, 2)}, np.arange(3.0))
    assert not found["literal"].any()
    assert not found["latent"][:, 3:].any()


def test_unknown_primitives_read_everything_and_are_counted():
    def program(x, z):
        def call(v):
            shape = jax.ShapeDtypeStruct(v.shape, v.dtype)
            return jax.pure_callback(np.sin, shape, v, vmap_method="expand_dims")

        return {
            "callback": call(z["a"]),
            "vmap": jax.vmap(call)(z["a"]),
            "scan": jax.lax.scan(lambda c, u: (c, call(u)), 0.0, z["a"])[1],
            "in a call": jax.jit(call)(z["a"]),
            "of data": call(x) * z["a"],
        }

    loose = dict.fromkeys(["callback", "vmap", "scan", "in a call"], 6)
    check(program, {"a": (3,)}, np.ones(3), loose=loose, unknown=["pure_callback"])
    _, unknown = relation(program, np.ones(3), {"a": (3,)})
    assert unknown["pure_callback"] >= 4


def test_a_callback_that_cannot_be_batched_in_a_scan():
    def program(x, z):
        def call(v):
            return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), v.dtype), v)

        return {"scan": jax.lax.scan(lambda c, u: (c, call(u)), 0.0, z["a"])[1]}

    check(program, {"a": (3,)}, loose={"scan": 6}, unknown=["scan"])


@pytest.mark.parametrize("error", [KeyError, AttributeError, NotImplementedError])
def test_a_rule_for_another_version_of_jax_reads_everything(monkeypatch, error):
    def outdated(analysis, equation, operands):
        raise error("dimensions")

    monkeypatch.setitem(analysis.RULES, "rev", outdated)
    spec = {"a": (3,), "b": (2,)}
    outputs, context = analyse(lambda x, z: (z["a"][::-1], 2 * z["b"]), None, spec)
    assert context.unknown == {"rev": 1}
    assert [p.is_everything() for p in outputs[0].reads] == [True]
    assert outputs[0].reads[0].leaf == 0
    assert not outputs[1].reads[0].is_everything()


def test_other_errors_of_a_rule_are_raised(monkeypatch):
    def broken(analysis, equation, operands):
        raise ZeroDivisionError

    monkeypatch.setitem(analysis.RULES, "rev", broken)
    with pytest.raises(ZeroDivisionError):
        analyse(lambda x, z: z["a"][::-1], None, {"a": (3,)})


def test_arrays_changed_in_place_read_everything():
    def program(x, z):
        def last(a):
            ref = jax.new_ref(jnp.zeros(3))
            ref[0] = a[1]
            return ref[...] + a[2]

        return {"call": jax.jit(last)(z["a"]), "none": x + 1.0}

    # Only the first entry reads the stored one.
    check(program, {"a": (3,)}, np.ones(3), loose={"call": 5, "none": 9}, unknown=["new_ref"])


def test_two_rules_of_one_primitive_are_refused():
    with pytest.raises(ValueError, match="'add' has two rules"):
        rule("add")(lambda analysis, equation, operands: [])


def test_values_are_computed_when_asked_for():
    calls = []
    value = Value((2,), (), lambda: calls.append(1) or np.ones(2), is_concrete=True)
    assert value.is_known
    assert value.is_constant
    assert not calls
    np.testing.assert_array_equal(value.value(), [1, 1])
    np.testing.assert_array_equal(value.value(), [1, 1])
    assert len(calls) == 1
    assert not Value((2,)).is_known
    assert not Value((2,), [Pointer(0, (None,))], np.ones(2), is_concrete=True).is_known


def test_values_of_traced_data_are_known_but_not_constant():
    def inside(x):
        value = constant(x)
        assert value.is_known
        assert not value.is_constant
        assert constant(np.ones(3)).is_constant
        return x

    jax.jit(inside)(jnp.ones(3))


def test_constants_are_computed_at_once_under_a_trace():
    """Index data a program closes over stay known where its other data are traced."""
    index = jnp.array([2, 0])

    def program(x, z):
        return {"gather": z["a"][(index + 1) % 3] * x, "mask": jnp.where(index > 0, z["a"][:2], x)}

    check(program, {"a": (3,)}, np.ones(2))


def test_free_slices_are_those_no_mask_reaches():
    masked = Pointer(0, (np.arange(2).reshape(1, 2, 1),), np.array([[[True]], [[False]]]))
    value = Value((2, 2), [masked], np.zeros((2, 2)), is_concrete=True)
    assert value.free_slices(0).tolist() == [False, True]
    assert value.free_slices(1).tolist() == [False, False]
    assert Value((2, 2), [masked]).free_slices(0).tolist() == [False, False]
    assert Value((2,), [Pointer(0, (None,))], np.zeros(2)).free_slices(0).tolist() == [False] * 2


def test_spread_aligns_some_axes_and_mixes_the_others():
    context = Analysis([(2, 3)])
    latent = context.latent(0, np.float32)
    (p,) = context.spread(latent, {1: 0}, 3)
    assert p.index[0] is None
    np.testing.assert_array_equal(p.index[1], np.arange(3).reshape(3, 1, 1))
    (everything,) = context.touched([latent], 2)
    assert everything.is_everything()
