"""Colourings against the entries that meet, found one by one."""

import itertools

import jax
import numpy as np
import pytest

from bbvi.dependence import colouring
from bbvi.dependence.colouring import colour
from bbvi.dependence.pointers import Pointer


def entries_read(pointers, factor_shape, leaf_shape):
    """For every factor entry, the set of latent entries it reads."""
    rank = len(factor_shape)
    for j in np.ndindex(factor_shape):
        entries = set()
        for p in pointers:
            for e in np.ndindex(np.broadcast_shapes(*[a.shape[rank:] for a in p.arrays])):
                position = (*j, *e)
                index = [
                    None if a is None else a[tuple(np.minimum(position, np.array(a.shape) - 1))]
                    for a in (*p.index, p.mask)
                ]
                if p.mask is None or index[-1]:
                    choices = zip(index[:-1], leaf_shape, strict=True)
                    entries |= set(
                        itertools.product(*(range(n) if i is None else [i] for i, n in choices))
                    )
        yield entries


def assert_separates(found, leaf_shape, factors):
    assert found.colours.shape == leaf_shape
    used = np.unique(found.colours)
    assert used.size == 0 or (used[0] >= 0 and used[-1] == found.num_colours - 1)
    for factor_shape, pointers in factors:
        for entries in entries_read(pointers, factor_shape, leaf_shape):
            colours = [found.colours[tuple(int(i) for i in entry)] for entry in entries]
            assert len(set(colours)) == len(colours)


def random_pointer(rng, factor_shape, leaf_shape):
    extra_shape = tuple(rng.integers(1, 4, rng.choice(3, p=[0.7, 0.2, 0.1])))
    full = (*factor_shape, *extra_shape)

    def random_shape():
        return tuple(n if rng.random() < 0.5 else 1 for n in full)

    mask = rng.random(random_shape()) < 0.6 if rng.random() < 0.4 else None
    index = []
    for size in leaf_shape:
        form = rng.choice(["whole", "table", "affine"], p=[0.1, 0.4, 0.5])
        if form == "affine" and factor_shape:
            axis = rng.integers(len(factor_shape))
            shape = [n if a == axis else 1 for a, n in enumerate(full)]
            values = rng.integers(-2, 3) + rng.choice([-1, 1, 2]) * np.arange(factor_shape[axis])
            values = values.reshape([factor_shape[axis] if n > 1 else 1 for n in shape])
            inside = (values >= 0) & (values < size)
            mask = inside if mask is None else mask & inside
            index.append(values)
        else:
            index.append(None if form == "whole" else rng.integers(0, size, random_shape()))
    return Pointer(0, tuple(index), mask)


@pytest.mark.parametrize("seed", range(4))
def test_random_pointers_are_separated(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        leaf_shape = tuple(rng.integers(1, 5, rng.integers(0, 4)))
        factors = []
        for _ in range(rng.integers(0, 3)):
            factor_shape = tuple(rng.integers(1, 5, rng.integers(0, 3)))
            pointers = [
                random_pointer(rng, factor_shape, leaf_shape) for _ in range(rng.integers(0, 4))
            ]
            factors.append((factor_shape, pointers))
        assert_separates(colour(leaf_shape, factors), leaf_shape, factors)


T = np.arange(12)
A, B, SIX = np.arange(5)[:, None], np.arange(4)[None], np.arange(6)[:, None]
TASK, WORKER = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 1, 2])
PARENT = np.maximum(T - 1, 0) // 2  # a binary tree
CASES = {
    # name: (leaf shape, factors, number of colours)
    "no factor": ((12,), [], 1),
    "assignments": ((12,), [((12,), [Pointer(0, (T,))])], 1),
    "a scalar": ((), [((3,), [Pointer(0, ())])], 1),
    "chain": ((12,), [((12,), [Pointer(0, (T,)), Pointer(0, (T - 1,), T > 0)])], 2),
    "chain from a clipped index": (
        (12,),
        [((12,), [Pointer(0, (T,)), Pointer(0, (np.maximum(T - 1, 0),))])],
        2,
    ),
    "chain backwards in two factors": (
        (12,),
        [
            ((11,), [Pointer(0, (T[:0:-1],)), Pointer(0, (T[-2::-1],))]),
            ((12,), [Pointer(0, (T,))]),
        ],
        2,
    ),
    "AR(2)": (
        (12,),
        [((12,), [Pointer(0, (T,)), Pointer(0, (T - 1,), T > 0), Pointer(0, (T - 2,), T > 1)])],
        3,
    ),
    "AR(3) from a window": ((15,), [((12,), [Pointer(0, (T[:, None] + np.arange(4),))])], 4),
    "seasonal": ((12,), [((12,), [Pointer(0, (T,)), Pointer(0, (T - 4,), T >= 4)])], 3),
    "grid": (
        (5, 4),
        [
            ((4, 4), [Pointer(0, (A[:4], B)), Pointer(0, (A[:4] + 1, B))]),
            ((5, 3), [Pointer(0, (A, B[:, :3])), Pointer(0, (A, B[:, :3] + 1))]),
        ],
        2,
    ),
    "torus": (
        (6, 4),
        [
            ((6, 4), [Pointer(0, (SIX, B)), Pointer(0, ((SIX - 1) % 6, B))]),
            ((6, 4), [Pointer(0, (SIX, B)), Pointer(0, (SIX, (B - 1) % 4))]),
        ],
        2,
    ),
    "odd ring": ((5,), [((5,), [Pointer(0, (T[:5],)), Pointer(0, (np.roll(T[:5], 1),))])], 3),
    "no entry": ((12,), [((0,), [Pointer(0, (T[:0],)), Pointer(0, (T[:0],))])], 1),
    "no latent": ((0, 3), [], 0),
    "chains of groups": (
        (3, 12),
        [
            (
                (6, 12),
                [
                    Pointer(0, (TASK[:, None], T[None])),
                    Pointer(0, (TASK[:, None].copy(), T[None] - 1), T[None] > 0),
                ],
            )
        ],
        2,
    ),
    "tasks of crowdsourcing": ((3,), [((6,), [Pointer(0, (TASK,))])], 1),
    "workers of crowdsourcing": ((3,), [((6,), [Pointer(0, (WORKER,))])], 1),
    "tree": ((12,), [((12,), [Pointer(0, (T,)), Pointer(0, (PARENT,))])], 2),
    "all pairs": ((12,), [((12, 12), [Pointer(0, (T[:, None],)), Pointer(0, (T[None],))])], 12),
    "rows": ((12, 3), [((12,), [Pointer(0, (T, None))])], 3),
    "chain of rows": (
        (12, 3),
        [((11,), [Pointer(0, (T[:11], None)), Pointer(0, (T[1:], None))])],
        6,
    ),
    "everything": ((3, 4), [((), [Pointer(0, (None, None))])], 12),
    "pairs that never hold together": (
        (12,),
        [((12,), [Pointer(0, (T,), T < 6), Pointer(0, (11 - T,), T >= 6)])],
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_number_of_colours_of_a_named_pattern(name):
    leaf_shape, factors, num_colours = CASES[name]
    found = colour(leaf_shape, factors)
    assert_separates(found, leaf_shape, factors)
    assert found.num_colours == num_colours


def test_a_long_chain_and_a_large_grid_need_no_list_of_conflicts(monkeypatch):
    monkeypatch.setattr(colouring, "MAX_CONFLICTS", 0)
    t = np.arange(300_000)
    chain = [Pointer(0, (t,)), Pointer(0, (t - 1,), t > 0)]
    assert colour((300_000,), [((300_000,), chain)]).num_colours == 2
    a, b = np.arange(600)[:, None], np.arange(500)[None]
    neighbours = [Pointer(0, (a, b)), Pointer(0, (a + 1, b), a < 599)]
    ring = [Pointer(0, (t,)), Pointer(0, (np.roll(t, 1),))]
    assert colour((300_000,), [((300_000,), ring)]).num_colours == 2
    assert colour((600, 500), [((600, 500), neighbours)]).num_colours == 2


@pytest.mark.parametrize("seed", range(5))
def test_greedy_on_random_graphs(seed):
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, 30, (60, 2))
    factors = [((60,), [Pointer(0, (edges[:, 0],)), Pointer(0, (edges[:, 1],))])]
    found = colour((30,), factors)
    assert_separates(found, (30,), factors)
    neighbours = {tuple(e) for e in np.concatenate([edges, edges[:, ::-1]]) if e[0] != e[1]}
    max_degree = max(np.bincount([a for a, _ in neighbours]))
    assert 2 <= found.num_colours <= max_degree + 1


@pytest.mark.parametrize("seed", range(5))
def test_bipartite_graphs_take_two_colours(seed):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 20, 50), rng.integers(20, 40, 50)
    shuffled = rng.permutation(40)
    factors = [((50,), [Pointer(0, (shuffled[left],)), Pointer(0, (shuffled[right],))])]
    found = colour((40,), factors)
    assert_separates(found, (40,), factors)
    assert found.num_colours == 2


def coloured_when_traced(make_factors, leaf_shape):
    """The colouring where the argument of ``make_factors`` is traced."""
    found = []
    jax.jit(lambda traced: found.append(colour(leaf_shape, make_factors(traced))))(TASK)
    return found[0]


def test_one_traced_index_is_no_conflict():
    found = coloured_when_traced(lambda idx: [((6,), [Pointer(0, (idx,))])], (3,))
    assert found.num_colours == 1


def test_the_same_traced_index_twice_is_no_conflict_along_its_axis():
    time = T[None]

    def make_factors(idx):
        group = idx.reshape(6, 1)
        return [((6, 12), [Pointer(0, (group, time)), Pointer(0, (group, time - 1), time > 0)])]

    assert coloured_when_traced(make_factors, (3, 12)).num_colours == 2


def test_two_traced_indices_are_unknown():
    assert (
        coloured_when_traced(
            lambda idx: [((6,), [Pointer(0, (idx,)), Pointer(0, (2 - idx,))])], (3,)
        )
        is None
    )


def test_a_traced_set_is_unknown():
    def make_factors(idx):
        return [((3,), [Pointer(0, (idx.reshape(3, 2),))])]

    assert coloured_when_traced(make_factors, (3,)) is None


def test_a_traced_mask_is_taken_to_hold():
    def make_factors(idx):
        return [((6,), [Pointer(0, (TASK,)), Pointer(0, (WORKER,), idx > 0)])]

    found = coloured_when_traced(make_factors, (3,))
    factors = [((6,), [Pointer(0, (TASK,)), Pointer(0, (WORKER,))])]
    assert_separates(found, (3,), factors)


def test_too_many_conflicts_to_list(monkeypatch):
    leaf_shape, factors, _ = CASES["tree"]
    monkeypatch.setattr(colouring, "MAX_CONFLICTS", 10)
    assert colour(leaf_shape, factors) is None
