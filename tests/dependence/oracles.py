"""What a program reads of its latents: found by the analysis, and observed by redrawing latents."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from bbvi.dependence import rules  # noqa: F401  registers the rules
from bbvi.dependence.analysis import Analysis, constant
from bbvi.dependence.pointers import Pointer

# Several base points, since an entry of a maximum, say, is read at some points only.
SCALES = 5 * (0.3, 0.7, 1.0, 3.0)


# Programs run for milliseconds: most of the time goes into compiling them.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@dataclasses.dataclass(frozen=True)
class Integers:
    """A latent of integers 0, ..., ``num_values`` - 1."""

    shape: tuple
    num_values: int


def abstract(spec):
    """Shapes and dtypes of latents given as ``{name: shape or Integers}``."""

    def leaf(form):
        if isinstance(form, Integers):
            return jax.ShapeDtypeStruct(form.shape, jnp.int32)
        return jax.ShapeDtypeStruct(form, jnp.zeros(()).dtype)

    return {name: leaf(form) for name, form in sorted(spec.items())}


def analyse(function, x, spec):
    """Values of the outputs, and the analysis."""
    z = abstract(spec)
    closed = jax.make_jaxpr(function)(x, z)
    analysis = Analysis([leaf.shape for leaf in z.values()])
    inputs = [constant(leaf) for leaf in jax.tree.leaves(x)]
    inputs += [analysis.latent(k, leaf.dtype) for k, leaf in enumerate(z.values())]
    return analysis.run(closed.jaxpr, closed.consts, inputs), analysis


def pairs(pointers, shape, leaf_shapes):
    """Matrix [entries of an array, entries of all leaves]: what the pointers say."""
    matrices = [np.zeros((*shape, *leaf_shape), bool) for leaf_shape in leaf_shapes]
    for p in pointers:
        leaf_shape, axes = leaf_shapes[p.leaf], [a for a, i in enumerate(p.index) if i is not None]
        arrays = [np.asarray(a) for a in p.arrays]
        extra = np.broadcast_shapes(*[a.shape for a in arrays])[len(shape) :]
        full = [np.atleast_1d(np.broadcast_to(a, (*shape, *extra))) for a in arrays]
        holds = full.pop() if p.mask is not None else np.ones((*shape, *extra), bool)
        rows = np.nonzero(np.atleast_1d(holds))
        # Axes read at an index first, axes read as a whole last.
        whole = [a for a in range(len(leaf_shape)) if a not in axes]
        order = [len(shape) + a for a in (*axes, *whole)]
        view = matrices[p.leaf].transpose(*range(len(shape)), *order)
        view[(*rows[: len(shape)], *[index[rows] for index in full])] = True
    flat = [
        m.reshape(math.prod(shape), math.prod(s))
        for m, s in zip(matrices, leaf_shapes, strict=True)
    ]
    return np.concatenate(flat, axis=1)


def relation(function, x, spec, *, traced=False):
    """The matrix of each output by name, as the analysis finds it, and what it did not know.

    With ``traced`` the analysis runs inside ``jit``, where x is not known.
    """
    structure = []

    def pointers(x):
        outputs, analysis = analyse(function, x, spec)
        reads = [[(p.index, p.mask) for p in out.reads] for out in outputs]
        structure[:] = [(outputs, [[p.leaf for p in out.reads] for out in outputs], analysis)]
        return reads

    if traced:
        compiled = jax.jit(pointers).lower(x).compile(compiler_options=FAST_COMPILATION)
        reads = jax.device_get(compiled(x))
    else:
        reads = pointers(x)
    ((outputs, leaves, analysis),) = structure
    matrices = [
        pairs(
            [Pointer(leaf, index, mask) for leaf, (index, mask) in zip(numbers, of, strict=True)],
            out.shape,
            analysis.leaf_shapes,
        )
        for out, numbers, of in zip(outputs, leaves, reads, strict=True)
    ]
    return _by_name(function, x, spec, matrices), analysis.unknown


def _by_name(function, x, spec, values):
    """A dictionary of the leaves of the output: ``a`` or ``a.0`` or, for one array, ``out``."""
    tree = jax.eval_shape(function, x, abstract(spec))
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "out" for path in paths]
    return dict(zip(names, values, strict=True))


def draws(spec, rng):
    """Base points and redraws: latents [n, ...], for each row its base and its redrawn entry."""
    shapes = abstract(spec)
    rows, bases, entries = [], [], []
    start = 0

    def add(point, base, entry):
        rows.append({name: value.copy() for name, value in point.items()})
        bases.append(base)
        entries.append(entry)

    points = []
    for number, scale in enumerate(SCALES):
        point = {}
        for name, leaf in shapes.items():
            if isinstance(spec[name], Integers):
                point[name] = _integers(number, spec[name], rng)
            else:
                point[name] = scale * rng.normal(size=leaf.shape)
            point[name] = np.asarray(point[name], leaf.dtype)
        points.append(point)
        add(point, number, -1)
    for number, point in enumerate(points):
        start = 0
        for name, leaf in shapes.items():
            for position in np.ndindex(leaf.shape):
                old = point[name][position]
                if isinstance(spec[name], Integers):
                    values = [v for v in range(spec[name].num_values) if v != old]
                else:
                    values = [0.0, -old, *rng.normal(size=2), 7.0, -7.0, 0.3]
                for value in values:
                    add({**point, name: point[name]}, number, start)
                    rows[-1][name][position] = value
                start += 1
    z = {name: np.stack([row[name] for row in rows]) for name in shapes}
    return z, np.array(bases), np.array(entries), start


def _integers(number, form, rng):
    """All there are if they are few, else a draw."""
    size = math.prod(form.shape)
    if size == 0 or form.num_values**size > len(SCALES):
        return rng.integers(form.num_values, size=form.shape)
    return (number // form.num_values ** np.arange(size) % form.num_values).reshape(form.shape)


def observed(function, x, spec):
    """The matrix of each output by name: True where redrawing an entry alone changes the output.

    Draws run one after the other, never as a batch: bits do not depend on the place in a batch.
    The sign of a zero and the payload of a NaN do not count.
    """
    z, bases, entries, num_entries = draws(spec, np.random.default_rng(0))
    run = jax.jit(lambda x, z: jax.lax.map(lambda row: jax.tree.leaves(function(x, row)), z))
    compiled = run.lower(x, z).compile(compiler_options=FAST_COMPILATION)
    matrices = []
    for rows in jax.device_get(compiled(x, z)):
        rows = rows.reshape(len(bases), math.prod(rows.shape[1:]))
        changed = rows != rows[bases]
        if np.issubdtype(rows.dtype, np.inexact):
            changed &= ~(np.isnan(rows) & np.isnan(rows[bases]))
        matrix = np.zeros((num_entries + 1, rows.shape[1]), bool)
        np.logical_or.at(matrix, entries, changed)
        matrices.append(matrix[:num_entries].T)
    return _by_name(function, x, spec, matrices)


def check(function, spec, x=None, *, loose=None, traced=None, unknown=()):
    """Nothing that is observed is missed, and the excess is exactly as stated.

    Args:
      function: ``(x, z) -> {name: array}``, a program per name.
      spec: the latents.
      x: data; if there are any, the analysis must hold where they are traced, too.
      loose: by name the number of pairs that are found but not observed; 0 if not named.
      traced: the same for traced data, where it is not what it is for known data.
      unknown: the primitives that no rule is known for.
    """
    __tracebackhide__ = True
    loose = loose or {}
    traced = {**loose, **(traced or {})}
    seen = observed(function, x, spec)
    found, missing = relation(function, x, spec)
    assert sorted(missing) == sorted(unknown)
    _compare("known data", found, seen, loose)
    if jax.tree.leaves(x):
        _compare("traced data", relation(function, x, spec, traced=True)[0], seen, traced)
    return found


def _compare(case, found, seen, loose):
    __tracebackhide__ = True
    assert set(loose) <= set(seen), f"no output {set(loose) - set(seen)}"
    missed = {name: np.argwhere(seen[name] & ~found[name]) for name in seen}
    missed = {name: where.tolist() for name, where in missed.items() if len(where)}
    assert not missed, f"{case}: [output entry, latent entry] read, but not found: {missed}"
    excess = {name: int((found[name] & ~seen[name]).sum()) for name in seen}
    wrong = {n: (e, loose.get(n, 0)) for n, e in excess.items() if e != loose.get(n, 0)}
    assert not wrong, f"{case}: pairs found but not observed, (now, as stated): {wrong}"
