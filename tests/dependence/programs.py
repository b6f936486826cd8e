"""Random programs of a few operations each, the same every time for a seed."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.dependence.oracles import Integers

SPEC = {"a": (3, 4), "b": (4,), "k": Integers((3,), 4)}
DATA = {
    "m": np.array([[0.5, 0.0, -1.0, 2.0], [0.0, 0.0, 1.0, 0.3], [1.5, -0.7, 0.0, 0.0]]),
    "i": np.array([3, 0, 3, 1, 2]),
}
NUM_OPERATIONS = 8
MAX_SIZE = 30


def random_program(seed):
    """A function ``(x, z) -> {name: array}`` of what every operation returns."""

    def program(x, z):
        rng = np.random.default_rng(seed)
        floats = [x["m"], z["b"], z["a"]]
        integers = [x["i"], z["k"], z["k"]]
        outputs = {}
        while len(outputs) < NUM_OPERATIONS:
            name = str(rng.choice(sorted(OPERATIONS)))
            # The later ones more often, so that programs are deep rather than wide.
            v, w = (floats[-1 - int(rng.integers(len(floats)) * rng.random())] for _ in range(2))
            k = integers[rng.integers(len(integers))]
            out = OPERATIONS[name](rng, v, w, k)
            if out is None or out.size > MAX_SIZE:
                continue
            outputs[f"{len(outputs)} {name}"] = out
            if jnp.issubdtype(out.dtype, jnp.floating):
                floats.append(out / (1 + jnp.abs(out)))  # zero times infinity is not zero
            else:
                integers.append(jnp.abs(out) % 5)
        return outputs

    return program


def _axis(rng, v):
    return int(rng.integers(v.ndim)) if v.ndim else None


def _along_axis(operation):
    """An operation on one axis, which a scalar has not."""
    return lambda rng, v, w, k: None if v.ndim == 0 else operation(rng, v, _axis(rng, v))


def _same_shape(operation):
    def run(rng, v, w, k):
        if v.shape == w.shape:
            return operation(v, w)
        if v.ndim == w.ndim + 1 and v.shape[1:] == w.shape:
            return operation(v, jnp.broadcast_to(w, v.shape))
        return operation(v, w.sum())

    return run


def _gather(rng, v, axis):
    return jnp.take(v, rng.integers(-2, v.shape[axis] + 2, size=3), axis=axis)


def _gather_latent(rng, v, w, k):
    return None if v.ndim == 0 else jnp.take(v, k.reshape(-1)[:3], axis=_axis(rng, v), mode="clip")


def _gather_pairs(rng, v, w, k):
    if v.ndim != 2 or k.ndim != 1:
        return None
    k = jnp.minimum(k, min(v.shape) - 1)
    other = jnp.asarray(rng.integers(v.shape[1], size=k.shape[0]))
    return v[k, other] if rng.random() < 0.5 else v[other % v.shape[0], k]


def _segment_sum(rng, v, w, k):
    if v.ndim == 0:
        return None
    known = np.array(rng.integers(-1, 4, size=v.shape[0]))
    ids = k if k.shape == v.shape[:1] and rng.random() < 0.3 else known
    return jax.ops.segment_sum(v, ids, 3)


def _update(rng, v, w, k):
    if v.ndim == 0:
        return None
    position = k.reshape(-1)[0] if k.size and rng.random() < 0.3 else int(rng.integers(v.shape[0]))
    return v.at[position].set(w.sum()) if rng.random() < 0.5 else v.at[position].multiply(2.0)


def _scan(rng, v, w, k):
    if v.ndim == 0 or v.shape[0] == 0:
        return None
    form, is_reversed = rng.integers(4), bool(rng.random() < 0.5)
    zero = jnp.zeros(v.shape[1:], v.dtype)

    def step(carry, row):
        memory, counter = carry
        out = (memory * row, memory + row, row * w.sum(), row + v[counter])[form]
        return (row if form == 0 else out if form == 1 else memory, counter + 1), out

    (end, _), rows = lax.scan(step, (zero + w.sum() * 0.5, 0), v, reverse=is_reversed)
    return rows if rng.random() < 0.8 else end


def _branch(rng, v, w, k):
    other = v[::-1] if v.ndim else 2 * v
    decides = k.reshape(-1)[0] > 1 if k.size and rng.random() < 0.5 else rng.random() < 0.5
    return lax.cond(decides, lambda: v, lambda: other * w.sum())


def _while(rng, v, w, k):
    limit = k.reshape(-1)[0] if k.size and rng.random() < 0.5 else int(rng.integers(3))
    step = jnp.sin if rng.random() < 0.5 or v.ndim == 0 else lambda u: jnp.roll(u, 1, axis=0)
    return lax.while_loop(lambda c: c[0] < limit, lambda c: (c[0] + 1, step(c[1])), (0, v))[1]


def _reshape(rng, v, w, k):
    sizes = [d for d in range(1, v.size + 1) if v.size % d == 0]
    return v.reshape(int(rng.choice(sizes)), -1) if v.size and rng.random() < 0.7 else v.reshape(-1)


def _pad(rng, v, axis):
    config = [(0, 0, 0)] * v.ndim
    config[axis] = (int(rng.integers(-1, 2)), int(rng.integers(0, 2)), int(rng.integers(2)))
    return lax.pad(v, jnp.zeros((), v.dtype), config)


def _dot(rng, v, w, k):
    if v.ndim == 0 or w.ndim == 0 or w.shape[0] != v.shape[-1]:
        return jnp.outer(v, w)
    return jnp.tensordot(v, w, 1)


def _sparse(rng, v, axis):
    matrix = np.where(rng.random((4, v.shape[axis])) < 0.4, rng.normal(size=(4, 1)), 0.0)
    return jnp.moveaxis(jnp.tensordot(jnp.asarray(matrix, v.dtype), v, ((1,), (axis,))), 0, axis)


def _vmap(rng, v, axis):
    row = (lambda u: jnp.sort(u.reshape(-1)), jnp.sum, lambda u: u * u.max(), jnp.cumsum)
    return jax.vmap(row[rng.integers(4)], in_axes=axis)(v)


def _slice(rng, v, axis):
    size = v.shape[axis]
    start, step = int(rng.integers(size + 1)), int(rng.choice([-2, -1, 1, 2]))
    return v[(slice(None),) * axis + (slice(start, None, step),)]


OPERATIONS = {
    "elementwise": lambda rng, v, w, k: (jnp.exp, jnp.square, jnp.round, jax.nn.relu, jnp.sign)[
        rng.integers(5)
    ](v),
    "binary": _same_shape(lambda v, w: v * w + 0.3),
    "maximum": _same_shape(jnp.maximum),
    "select, latent": _same_shape(lambda v, w: jnp.where(v > 0, w, 1.0)),
    "select, known": lambda rng, v, w, k: jnp.where(rng.random(v.shape) < 0.5, v, w.sum()),
    "zeros": lambda rng, v, w, k: v * (rng.random(v.shape) < 0.6),
    "transpose": lambda rng, v, w, k: v.T,
    "reshape": _reshape,
    "slice": _along_axis(_slice),
    "pad": _along_axis(_pad),
    "roll": _along_axis(lambda rng, v, axis: jnp.roll(v, 1, axis)),
    "concatenate": _along_axis(lambda rng, v, axis: jnp.concatenate([v, jnp.flip(v, axis)], axis)),
    "stack": _same_shape(lambda v, w: jnp.stack([v, jnp.broadcast_to(w, v.shape)], -1)),
    "broadcast": lambda rng, v, w, k: jnp.broadcast_to(v, (2, *v.shape)),
    "gather": _along_axis(_gather),
    "gather, latent": _gather_latent,
    "gather, pairs": _gather_pairs,
    "table": lambda rng, v, w, k: jnp.asarray(rng.normal(size=5))[k],
    "segment_sum": _segment_sum,
    "update": _update,
    "sum": _along_axis(lambda rng, v, axis: v.sum(axis)),
    "max": _along_axis(lambda rng, v, axis: v.max(axis, initial=-9.0)),
    "cumsum": _along_axis(lambda rng, v, axis: jnp.cumsum(v, axis)),
    "sort": _along_axis(lambda rng, v, axis: jnp.sort(v, axis)),
    "argsort": _along_axis(lambda rng, v, axis: jnp.argsort(v, axis)),
    "round to integers": lambda rng, v, w, k: jnp.round(2 * v).astype(jnp.int32),
    "dot": _dot,
    "sparse": _along_axis(_sparse),
    "vmap": _along_axis(_vmap),
    "scan": _scan,
    "branch": _branch,
    "while": _while,
}
