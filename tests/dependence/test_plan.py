"""Plans against a relation found entry by entry."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbvi.dependence import patterns
from bbvi.dependence import plan as plan_module
from bbvi.dependence.plan import joint_plan, plan
from bbvi.dependence.pointers import Pointer


def relation(pointers, factor_shape, leaf_shape):
    """Whether factor entry j reads latent entry i, as an array [*factor_shape, *leaf_shape]."""
    rank = len(factor_shape)
    reads = np.zeros((*factor_shape, *leaf_shape), bool)
    for p in pointers:
        extra_shape = np.broadcast_shapes(*[a.shape[rank:] for a in p.arrays])
        for j, e in itertools.product(np.ndindex(factor_shape), np.ndindex(extra_shape)):

            def at(a, position=(*j, *e)):
                return a[tuple(min(k, n - 1) for k, n in zip(position, a.shape, strict=True))]

            if p.mask is None or at(p.mask):
                choices = [
                    range(n) if a is None else [at(a)]
                    for a, n in zip(p.index, leaf_shape, strict=True)
                ]
                for i in itertools.product(*choices):
                    reads[j + i] = True
    return reads


def block_matrix(pointers, factor_shape, leaf_shape, event_ndims=0):
    """The same as a matrix of factor entries and blocks."""
    reads = relation(pointers, factor_shape, leaf_shape)
    event_axes = tuple(range(reads.ndim - event_ndims, reads.ndim))
    num_blocks = math.prod(leaf_shape[: len(leaf_shape) - event_ndims])
    return reads.any(event_axes).reshape(math.prod(factor_shape), num_blocks)


def assert_is(matrix, found, factor_shape, block_shape):
    """The plan is the matrix, exactly, and so is its transpose."""
    rng = np.random.default_rng(0)
    factor = rng.integers(-9, 10, factor_shape).astype(np.float32)
    blocks = rng.integers(-9, 10, block_shape).astype(np.float32)

    @jax.jit
    def both(factor, blocks):
        (back,) = jax.linear_transpose(found.accumulate, factor)(blocks)
        return found.accumulate(factor), back

    sums, back = both(factor, blocks)
    np.testing.assert_array_equal(sums, (factor.reshape(-1) @ matrix).reshape(block_shape))
    np.testing.assert_array_equal(back, (matrix @ blocks.reshape(-1)).reshape(factor_shape))
    assert found.num_pairs in (None, matrix.sum())


def random_pointer(rng, factor_shape, leaf_shape, *, max_extra=3):
    extra_shape = tuple(rng.integers(1, max_extra + 1, rng.choice(3, p=[0.6, 0.3, 0.1])))
    full = (*factor_shape, *extra_shape)

    def random_shape():
        return tuple(n if rng.random() < 0.5 else 1 for n in full)

    mask = rng.random(random_shape()) < 0.6 if rng.random() < 0.4 else None
    index = []
    for size in leaf_shape:
        form = rng.choice(["whole", "table", "affine"])
        if form == "affine" and factor_shape:
            axis = rng.integers(len(factor_shape))
            n = factor_shape[axis]
            shape = [n if a == axis else 1 for a in range(len(full))]
            values = rng.integers(-2, size + 2) + rng.choice([-2, -1, 1, 2]) * np.arange(n)
            inside = ((values >= 0) & (values < size)).reshape(shape)
            mask = inside if mask is None else mask & inside
            index.append(values.reshape(shape))
        else:
            index.append(None if form == "whole" else rng.integers(0, size, random_shape()))
    return Pointer(0, tuple(index), mask)


def random_case(rng, **kwargs):
    factor_shape = tuple(rng.integers(1, 5, rng.integers(0, 4)))
    leaf_shape = tuple(rng.integers(1, 5, rng.integers(0, 4)))
    pointers = [
        random_pointer(rng, factor_shape, leaf_shape, **kwargs) for _ in range(rng.integers(0, 4))
    ]
    if pointers and rng.random() < 0.2:
        pointers.append(pointers[0])
    return pointers, factor_shape, leaf_shape


@pytest.mark.parametrize("seed", range(8))
def test_random_pointers_equal_the_relation(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        pointers, factor_shape, leaf_shape = random_case(rng)
        event_ndims = int(rng.integers(0, len(leaf_shape) + 1))
        found = plan(pointers, factor_shape, leaf_shape, event_ndims)
        matrix = block_matrix(pointers, factor_shape, leaf_shape, event_ndims)
        assert found.num_pairs == matrix.sum()
        assert_is(matrix, found, factor_shape, leaf_shape[: len(leaf_shape) - event_ndims])


def sums_with_traced_arrays(pointers, is_traced, factor, leaf_shape):
    """The kind of the plan, and its sums, made where some of the arrays are traced."""
    arrays = [a for p in pointers for a in p.arrays]
    kinds = []

    @jax.jit
    def accumulate(traced, factor):
        known = iter(zip(is_traced, traced, arrays, strict=True))

        def choose(_):
            is_it, tracer, array = next(known)
            return tracer if is_it else array

        mixed = [p.map(choose) for p in pointers]  # map goes through p.arrays in order
        found = plan(mixed, factor.shape, leaf_shape, 0)
        kinds.append(found.kind)
        return found.accumulate(factor)

    sums = accumulate(arrays, factor)
    return kinds[0], sums


@pytest.mark.parametrize("seed", range(4))
def test_traced_pointers_give_the_same_sums(seed):
    rng = np.random.default_rng(seed)
    kinds = []
    for _ in range(15):
        factor_shape = tuple(rng.integers(1, 4, rng.integers(1, 3)))
        # More indices per axis than extra ones, so that no traced set could be the whole axis.
        leaf_shape = tuple(rng.choice([1, 5], rng.integers(1, 3), p=[0.2, 0.8]))
        pointers = [
            random_pointer(rng, factor_shape, leaf_shape, max_extra=2)
            for _ in range(rng.integers(1, 4))
        ]
        is_traced = rng.random(sum(len(p.arrays) for p in pointers)) < 0.7
        factor = rng.integers(-9, 10, factor_shape).astype(np.float32)
        kind, sums = sums_with_traced_arrays(pointers, is_traced, factor, leaf_shape)
        matrix = block_matrix(pointers, factor_shape, leaf_shape)
        np.testing.assert_array_equal(sums.reshape(-1), factor.reshape(-1) @ matrix)
        kinds.append(kind)
    assert sum("traced" in kind for kind in kinds) >= 5


T = np.arange(6)
COUNTY = np.array([0, 2, 2, 1, 0, 2])
AFTER_FIRST = T > 0
KINDS = {
    # name: (pointers, factor shape, leaf shape, event_ndims, kind)
    "identity": ([((T,), None)], (6,), (6,), 0, "slices"),
    "chain": ([((T - 1,), AFTER_FIRST), ((T,), None), ((T + 1,), T < 5)], (6,), (6,), 0, "slices"),
    "clipped chain": ([((T,), None), ((np.maximum(T - 1, 0),), None)], (6,), (6,), 0, "slices"),
    "ring": ([((T,), None), ((np.roll(T, 1),), None)], (6,), (6,), 0, "slices"),
    "ring where masked": ([((np.roll(T, 1),), T % 3 > 0)], (6,), (6,), 0, "slices"),
    "stride": ([((2 * T + 1,), None), ((2 * T,), None)], (6,), (12,), 0, "slices"),
    "reversed": ([((T[::-1].copy(),), None)], (6,), (6,), 0, "slices"),
    "window": ([((T[:, None] + np.arange(3),), None)], (6,), (8,), 0, "slices"),
    "constant": ([((np.array([3]),), None)], (6,), (6,), 0, "slices"),
    "constant where masked": ([((T,), T == 2)], (6,), (6,), 0, "slices"),
    "grid": (
        [((T[:, None], np.arange(4)[None]), None), ((T[:, None] + 1, np.arange(4)[None]), None)],
        (6, 4),
        (7, 4),
        0,
        "slices",
    ),
    "transposed": ([((T[None], np.arange(4)[:, None]), None)], (4, 6), (6, 4), 0, "slices"),
    "diagonal": ([((T, T), None)], (6,), (6, 6), 0, "segment_sum"),
    "all pairs": ([((T[:, None],), None), ((T[None],), None)], (6, 6), (6,), 0, "slices"),
    "rows": ([((T, None), None)], (6,), (6, 3), 0, "slices"),
    "rows drawn jointly": ([((T, None), None)], (6,), (6, 3), 1, "slices"),
    "entries of a row": ([((T[:, None], np.arange(3)[None]), None)], (6, 3), (6, 3), 1, "slices"),
    "row and its entries": (
        [((T[:, None], None), None), ((T[:, None], np.arange(3)[None]), None)],
        (6, 3),
        (6, 3),
        0,
        "slices",
    ),
    "row and column": (
        [((T[:, None], None), None), ((None, np.arange(3)[None]), None)],
        (6, 3),
        (6, 3),
        0,
        "segment_sum",
    ),
    "lookup": ([((COUNTY,), None)], (6,), (3,), 0, "segment_sum"),
    "lookup of rows": (
        [((COUNTY[:, None], np.arange(2)[None]), None)],
        (6, 2),
        (3, 2),
        0,
        "segment_sum",
    ),
    "tree": ([((T,), None), ((T // 2,), AFTER_FIRST)], (6,), (6,), 0, "slices + segment_sum"),
    "choice sets": ([((np.stack([T, COUNTY, COUNTY], 1),), None)], (6,), (6,), 0, "segment_sum"),
    "everything": ([((None,), None)], (6,), (3,), 0, "all"),
    "everything where masked": (
        [((None,), AFTER_FIRST), ((None,), T == 5)],
        (6,),
        (3,),
        0,
        "all (masked)",
    ),
    "a scalar latent": ([((), T == 1), ((), T == 2)], (6,), (), 0, "all (masked)"),
    "a scalar factor": ([((None,), None)], (), (3,), 0, "all"),
    "the whole leaf drawn jointly": ([((T,), T > 2)], (6,), (6,), 1, "all (masked)"),
    "unread axes": ([((T[None, :, None],), None)], (2, 6, 3), (6,), 0, "slices"),
    "mask on an axis not indexed": (
        [((T[:, None],), np.array([[True, False]]))],
        (6, 2),
        (6,),
        0,
        "slices",
    ),
    "never": ([((T,), np.zeros(6, bool))], (6,), (6,), 0, "none"),
    "nothing": ([], (6,), (6,), 0, "none"),
    "an empty set": ([((np.zeros((6, 0), int),), None)], (6,), (6,), 0, "none"),
    "no entries": ([((np.zeros((0,), int),), None)], (0,), (6,), 0, "none"),
    "no latents": ([((None,), None)], (6,), (0,), 0, "none"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kind_and_sums_of_a_named_pattern(name):
    raw, factor_shape, leaf_shape, event_ndims, kind = KINDS[name]
    pointers = [Pointer(0, index, mask) for index, mask in raw]
    found = plan(pointers, factor_shape, leaf_shape, event_ndims)
    assert found.kind == kind
    matrix = block_matrix(pointers, factor_shape, leaf_shape, event_ndims)
    assert_is(matrix, found, factor_shape, leaf_shape[: len(leaf_shape) - event_ndims])


def test_overlapping_pointers_count_an_entry_once():
    pairs = plan([Pointer(0, (T[:, None],)), Pointer(0, (T[None],))], (6, 6), (6,), 0)
    np.testing.assert_array_equal(pairs.accumulate(jnp.ones((6, 6))), 11.0)  # not 12


def test_widened_beyond_the_limit(monkeypatch):
    pointers = [Pointer(0, (T[:, None], None)), Pointer(0, (None, np.arange(3)[None]))]
    monkeypatch.setattr(plan_module, "MAX_LISTED", 10)
    found = plan(pointers, (6, 3), (6, 3), 0)
    assert found.kind == "all"
    np.testing.assert_array_equal(found.accumulate(jnp.ones((6, 3))), np.full((6, 3), 18.0))


def test_large_patterns_need_no_lookup_and_tables_no_more_than_their_pairs():
    n = 100_000
    t = np.arange(n)
    chain = [Pointer(0, (t,)), Pointer(0, (t - 1,), t > 0)]
    factor = jax.ShapeDtypeStruct((n,), jnp.float32)

    def num_constants(pointers):
        program = jax.make_jaxpr(plan(pointers, (n,), (n,), 0).accumulate)(factor)
        return sum(np.size(c) for c in program.consts)

    assert num_constants(chain) <= 1  # the mask only cuts off what misses the leaf
    assert n <= num_constants([Pointer(0, (t // 2,))]) <= 2 * n


def test_a_window_of_few_indices_is_taken_apart_a_long_one_is_not(monkeypatch):
    window = Pointer(0, (T[:, None] + np.arange(3),))
    monkeypatch.setattr(patterns, "MAX_WINDOW", 2)
    assert plan([window], (6,), (8,), 0).kind == "segment_sum"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["chain", "tree", "everything where masked", "never"])
def test_dtype_is_kept(name, dtype):
    raw, factor_shape, leaf_shape, event_ndims, _ = KINDS[name]
    found = plan([Pointer(0, i, m) for i, m in raw], factor_shape, leaf_shape, event_ndims)
    with jax.enable_x64(True):
        assert found.accumulate(jnp.ones(factor_shape, dtype)).dtype == dtype


@pytest.mark.parametrize("name", ["chain", "tree", "choice sets", "everything where masked"])
def test_vmap_and_gradient(name):
    raw, factor_shape, leaf_shape, event_ndims, _ = KINDS[name]
    pointers = [Pointer(0, index, mask) for index, mask in raw]
    found = plan(pointers, factor_shape, leaf_shape, event_ndims)
    matrix = block_matrix(pointers, factor_shape, leaf_shape, event_ndims)
    factors = jnp.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(jax.vmap(found.accumulate)(factors), factors @ matrix)
    weights = jnp.arange(1.0, leaf_shape[0] + 1)
    gradient = jax.grad(lambda f: jnp.vdot(weights, found.accumulate(f)))(factors[0])
    np.testing.assert_array_equal(gradient, matrix @ weights)


def test_masked_out_entries_may_be_nan():
    found = plan([Pointer(0, (T,), T != 3)], (6,), (6,), 0)
    sums = found.accumulate(jnp.where(T == 3, jnp.nan, 1.0))
    np.testing.assert_array_equal(sums, [1, 1, 1, 0, 1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_joint_plan_equals_the_relation(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        factor_shape = tuple(rng.integers(1, 5, rng.integers(0, 4)))
        leaf_shapes = [tuple(rng.integers(1, 5, rng.integers(0, 3))) for _ in range(2)]
        by_leaf = {
            leaf: [random_pointer(rng, factor_shape, s) for _ in range(rng.integers(0, 3))]
            for leaf, s in enumerate(leaf_shapes)
        }
        reads = [
            block_matrix(by_leaf[leaf], factor_shape, s).any(1)
            for leaf, s in enumerate(leaf_shapes)
        ]
        found = joint_plan(by_leaf, factor_shape)
        assert_is((reads[0] | reads[1])[:, None], found, factor_shape, ())


def test_a_ring_with_a_traced_mask():
    ring = Pointer(0, (np.roll(T, 1),), T % 3 > 0)
    factor = np.arange(6, dtype=np.float32)
    kind, sums = sums_with_traced_arrays([ring], [False, True], factor, (6,))
    assert kind == "segment_sum (traced)"
    np.testing.assert_array_equal(sums, factor @ block_matrix([ring], (6,), (6,)))


def test_joint_plan_with_traced_mask():
    def accumulate(mask, factor):
        pointers = {0: [Pointer(0, (T,), mask)], 1: [Pointer(1, (), T == 5)]}
        found = joint_plan(pointers, (6,))
        assert (found.kind, found.num_pairs) == ("all (masked)", None)
        return found.accumulate(factor)

    assert jax.jit(accumulate)(T < 2, 10.0**T) == 100_011
