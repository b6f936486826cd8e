import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bbvi.dependence import pointers
from bbvi.dependence.pointers import Pointer
from tests.dependence.oracles import pairs


def reads(p, shape, leaf_shape):
    """For each entry of an array the set of latent entries it reads."""
    matrix = pairs([p], shape, [leaf_shape])
    return [set(np.flatnonzero(row)) for row in matrix]


def random_pointer(rng, shape, leaf_shape, extra=()):
    """Index arrays that vary along some of the axes, some of them None, and perhaps a mask."""
    full = (*shape, *extra)

    def some(n):
        return tuple(size if rng.random() < 0.6 else 1 for size in full), n

    index = tuple(
        None if rng.random() < 0.2 else rng.integers(n, size=some(n)[0]) for n in leaf_shape
    )
    mask = rng.random(some(2)[0]) < 0.7 if rng.random() < 0.5 else None
    return Pointer(0, index, mask)


SHAPE, LEAF = (2, 3), (3, 4)
EXTRA = [(), (3,), (2, 3)]


def random_pointers(number):
    rng = np.random.default_rng(number)
    return [random_pointer(rng, SHAPE, LEAF, extra) for extra in EXTRA for _ in range(4)]


def test_a_latent_reads_itself():
    assert reads(pointers.identity(0, (2, 1, 3)), (2, 1, 3), (2, 1, 3)) == [{i} for i in range(6)]
    assert pointers.identity(0, ()).is_everything()


def test_the_form_says_what_is_read():
    p = Pointer(0, (np.array([[0], [2]]), None), np.array([[True, False], [True, True]]))
    assert reads(p, (2, 2), (3, 2)) == [{0, 1}, set(), {4, 5}, {4, 5}]
    assert not p.is_everything()
    assert p.is_concrete()
    assert p.ndim(2) == 2


@pytest.mark.parametrize("seed", range(8))
def test_simplify_keeps_what_is_read(seed):
    for p in random_pointers(seed):
        q = pointers.simplify(p, 2, LEAF)
        assert reads(q, SHAPE, LEAF) == reads(p, SHAPE, LEAF)


def test_simplify_writes_every_index_as_none_and_a_set_once():
    free = np.array([2, 0, 1, 1]).reshape(1, 4)
    assert pointers.simplify(Pointer(0, (free,)), 1, (3,)).index == (None,)
    (index,) = pointers.simplify(Pointer(0, (free,)), 1, (4,)).index
    np.testing.assert_array_equal(index, [[0, 1, 2]])


def test_simplify_of_traced_indices_is_a_superset():
    def index(free):
        (index,) = pointers.simplify(Pointer(0, (free.reshape(1, 4),)), 1, (3,)).index
        assert index is None
        (index,) = pointers.simplify(Pointer(0, (free.reshape(1, 4),)), 1, (5,)).index
        return index

    np.testing.assert_array_equal(jax.jit(index)(jnp.array([2, 0, 1, 1])), [[2, 0, 1, 1]])


def test_too_large_a_pointer_is_widened(monkeypatch):
    monkeypatch.setattr(pointers, "MAX_ENTRIES", 10)
    rng = np.random.default_rng(0)
    index = (rng.integers(3, size=(2, 1, 6)), rng.integers(4, size=(1, 3, 6)))
    p = pointers.simplify(Pointer(0, index), 2, LEAF)
    assert p.is_everything()
    mixed = Pointer(0, (np.arange(2).reshape(2, 1, 1), index[1]))
    q = pointers.simplify(mixed, 2, LEAF)
    assert q.index[1] is None
    np.testing.assert_array_equal(q.index[0], [[0], [1]])


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_mix_is_the_union_along_axes(axes, keepdims):
    for p in random_pointers(0):
        before = pairs([p], SHAPE, [LEAF]).reshape(*SHAPE, -1)
        shape = before.any(axes, keepdims=keepdims).shape[:-1]
        q = pointers.mix(p, axes, 2, LEAF, keepdims=keepdims)
        after = pairs([q], shape, [LEAF]).reshape(*shape, -1)
        np.testing.assert_array_equal(after, before.any(axes, keepdims=keepdims))


@pytest.mark.parametrize("seed", range(4))
def test_collapse_is_the_union_of_all(seed):
    for p in random_pointers(seed):
        if not pointers.holds_somewhere(p):
            continue
        (found,) = reads(pointers.collapse(p, 2, LEAF), (), LEAF)
        needed = set().union(*reads(p, SHAPE, LEAF))
        assert found >= needed
        if p.mask is None or all(index is not None for index in p.index):
            assert found == needed


@pytest.mark.parametrize("seed", range(4))
def test_lookup_is_a_gather_of_sets(seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(-1, 2, size=(4, 1)), rng.integers(-1, 3, size=(1, 5))
    for p in random_pointers(seed):
        before = pairs([p], SHAPE, [LEAF]).reshape(*SHAPE, -1)
        q = pointers.lookup(p, [rows, columns], 2, 2)
        after = pairs([q], (4, 5), [LEAF]).reshape(4, 5, -1)
        present = (rows >= 0) & (columns >= 0)
        np.testing.assert_array_equal(after, before[rows, columns] & present[..., None])


def test_lookup_of_traced_sources_and_of_traced_pointers():
    rows, columns = np.array([[1], [0], [1]]), np.array([[2, 0]])

    def traced_sources(rows):
        return [pointers.lookup(p, [rows, columns], 2, 2).arrays for p in random_pointers(1)]

    def traced_pointers(arrays):
        return [
            pointers.lookup(_with(p, of), [rows, columns], 2, 2).arrays
            for p, of in zip(random_pointers(1), arrays, strict=True)
        ]

    known = [pointers.lookup(p, [rows, columns], 2, 2).arrays for p in random_pointers(1)]
    given = [p.arrays for p in random_pointers(1)]
    for found in (jax.jit(traced_sources)(rows), jax.jit(traced_pointers)(given)):
        jax.tree.map(np.testing.assert_array_equal, found, known)


def _with(p, arrays):
    arrays = iter(arrays)
    return p.map(lambda a: next(arrays))


@pytest.mark.parametrize("axis", [0, 1])
def test_take_is_a_lookup_along_one_axis(axis):
    source = np.array([1, -1, 0])
    for p in random_pointers(2):
        before = pairs([p], SHAPE, [LEAF]).reshape(*SHAPE, -1)
        expected = before.take(source, axis)
        expected[(slice(None),) * axis + (source < 0,)] = False
        q = pointers.take(p, axis, source, 2)
        shape = expected.shape[:2]
        after = pairs([q], shape, [LEAF]).reshape(*shape, -1)
        np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("new", [(6,), (3, 2), (1, 6), (2, 1, 3), (3, 1, 2, 1)])
def test_reshape_keeps_the_order_of_entries(new):
    for p in random_pointers(3):
        q = pointers.reshape(p, SHAPE, new)
        assert reads(q, new, LEAF) == reads(p, SHAPE, LEAF)


@pytest.mark.parametrize(
    ("old", "new", "groups"),
    [
        ((2, 3), (6,), [((0, 1), (0,))]),
        ((2, 3), (2, 1, 3), [((0,), (0,)), ((), ())]),
        ((4, 3), (2, 2, 3), [((0,), (0, 1)), ((1,), (2,))]),
        ((2, 0), (0,), None),
        ((), (1, 1), None),
    ],
)
def test_axis_groups_have_equal_sizes(old, new, groups):
    found = pointers.axis_groups(old, new)
    assert [axis for before, _ in found for axis in before] == list(range(len(old)))
    assert [axis for _, after in found for axis in after] == list(range(len(new)))
    for before, after in found:
        assert np.prod([old[d] for d in before]) == np.prod([new[d] for d in after])
    if groups is not None and old != (2, 3):
        assert [(tuple(b), tuple(a)) for b, a in found] == groups


def test_restrict_keeps_where_the_mask_holds():
    mask = np.array([True, False, True])
    for p in random_pointers(4):
        expected = pairs([p], SHAPE, [LEAF]).reshape(*SHAPE, -1) & mask[None, :, None]
        kept = pointers.restrict(p, mask, 2)
        found = pairs(kept, SHAPE, [LEAF]).reshape(*SHAPE, -1)
        np.testing.assert_array_equal(found, expected)
    p = pointers.identity(0, (3,))
    assert pointers.restrict(p, np.zeros(3, bool), 1) == []
    assert pointers.restrict(p, np.ones(3, bool), 1) == [p]


def test_union_drops_what_is_covered():
    p = pointers.identity(0, (3,))
    masked = dataclasses.replace(p, mask=np.array([True, False, True]))
    never = dataclasses.replace(p, mask=np.zeros(3, bool))
    other = Pointer(1, (None,))
    assert pointers.union([p, masked], [never, p, other]) == [p, other]
    assert pointers.union([masked], [p]) == [p]
    everything = Pointer(0, (None,))
    assert pointers.union([p, masked], [everything]) == [everything]


@pytest.mark.parametrize("seed", range(4))
def test_union_and_merge_keep_what_is_read(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) < 0.5
    first, second = (
        Pointer(0, tuple(rng.integers(n, size=SHAPE) for n in LEAF), m) for m in (mask, ~mask)
    )
    several = [*random_pointers(seed), first, second]
    expected = pairs(several, SHAPE, [LEAF])
    np.testing.assert_array_equal(pairs(pointers.union(several), SHAPE, [LEAF]), expected)
    np.testing.assert_array_equal(pairs(pointers.merge(several, 2), SHAPE, [LEAF]), expected)
    (joined,) = pointers.merge([first, second], 2)
    assert joined.mask is None


def test_only_certainly_equal_pointers_are_the_same():
    p = pointers.identity(0, (3,))
    assert pointers.same(p, pointers.identity(0, (3,)))
    assert not pointers.same(p, pointers.identity(1, (3,)))
    assert not pointers.same(p, Pointer(0, (None,)))
    assert not pointers.same(p, dataclasses.replace(p, mask=np.ones(3, bool)))

    def traced(index):
        q = Pointer(0, (index,))
        assert pointers.same(q, q)
        assert not pointers.same(q, Pointer(0, (index + 0,)))
        assert pointers.holds_somewhere(dataclasses.replace(q, mask=index > 5))
        return index

    jax.jit(traced)(jnp.arange(3))


def test_shrink_cuts_constant_axes():
    np.testing.assert_array_equal(pointers.shrink(np.full((2, 3), 5)), [[5]])
    np.testing.assert_array_equal(pointers.shrink(np.array([[1, 2], [1, 2]])), [[1, 2]])
