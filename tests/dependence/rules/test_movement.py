import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.dependence.oracles import Integers, analyse, check

SPEC = {"a": (2, 3, 2), "b": (3,), "s": ()}


def test_reordering():
    def program(x, z):
        a = z["a"]
        return {
            "transpose": a.transpose(2, 0, 1),
            "swapaxes": a.swapaxes(0, 2),
            "rev": lax.rev(a, (0, 2)),
            "roll": jnp.roll(a, 1, axis=1),
            "roll all": jnp.roll(a, 5),
            "moveaxis": jnp.moveaxis(a, 0, -1),
            "rot90": jnp.rot90(a[0]),
            "transpose of a sum": (a + z["b"][None, :, None]).transpose(1, 2, 0),
            "triangle": jnp.tril(jnp.outer(z["b"], z["b"])),
            "diagonal": jnp.diag(z["b"]),
            "of a diagonal": jnp.diagonal(a[:, :2, 0]),
        }

    check(program, SPEC)


def test_broadcasts():
    def program(x, z):
        return {
            "scalar": jnp.broadcast_to(z["s"], (2, 2)),
            "left": jnp.broadcast_to(z["b"], (2, 3)),
            "right": lax.broadcast_in_dim(z["b"], (3, 2), (0,)),
            "size one": jnp.broadcast_to(z["b"][:, None], (3, 4)),
            "middle": lax.broadcast_in_dim(z["a"][:, :, 0], (2, 4, 3), (0, 2)),
            "tile": jnp.tile(z["b"], (2, 2)),
            "tile one": jnp.tile(z["b"], 3),
            "repeat": jnp.repeat(z["b"], 2),
            "repeat unevenly": jnp.repeat(z["b"], np.array([0, 2, 1]), total_repeat_length=3),
            "expand_dims": jnp.expand_dims(z["b"], (0, 2)),
            "squeeze": jnp.squeeze(z["a"][:, 1:2, :1], (1, 2)),
            "outer": jnp.outer(z["b"], z["b"] + z["s"]),
            "meshgrid": jnp.meshgrid(z["b"], z["a"][:, 0, 0])[1],
        }

    check(program, SPEC)


def test_reshapes():
    def program(x, z):
        a, b = z["a"], z["b"]
        return {
            "merge": a.reshape(6, 2),
            "merge all": a.reshape(-1),
            "merge last": a.reshape(2, 6),
            "split": a.reshape(-1)[:8].reshape(2, 2, 2),
            "other runs": a.reshape(3, 4),
            "split and merge": a.reshape(1, 3, 2, 2),
            "ones": a.reshape(2, 1, 3, 1, 2, 1),
            "from ones": b.reshape(1, 3, 1).reshape(3),
            "of a broadcast": jnp.broadcast_to(b[None], (2, 3)).reshape(3, 2),
            "of a part": (a * b[None, :, None]).reshape(2, 6)[:, 1:4].reshape(6),
            "scalar": z["s"].reshape(1, 1).reshape(()),
            "ravel": jnp.ravel(jnp.outer(b, b)),
            "column-major": a.reshape(-1, order="F"),
            "of extra axes": a.sum(2).reshape(3, 2),
        }

    check(program, SPEC)


def test_slices():
    def program(x, z):
        a, b = z["a"], z["b"]
        return {
            "basic": a[1:, :2],
            "one": a[1, 2, 0],
            "strided": lax.slice(a, (0, 0, 0), (2, 3, 2), (1, 2, 1)),
            "backwards": b[::-1],
            "backwards, strided": b[::-2],
            "negative": b[-2:],
            "split": jnp.split(a, [1], axis=1),
            "unstack": jnp.unstack(a, axis=1),
            "ellipsis": a[..., 0],
            "new axis": b[None, :, None],
            "differences": jnp.diff(b),
            "neighbours": b[1:] * b[:-1],
        }

    check(program, SPEC)


def test_pads():
    def program(x, z):
        a, b, s = z["a"][:, :, 0], z["b"], z["s"]
        zero = jnp.zeros(())
        return {
            "zeros": jnp.pad(a, ((1, 0), (0, 2))),
            "negative": lax.pad(b, zero, [(-1, 2, 0)]),
            "interior": lax.pad(b, zero, [(0, 0, 2)]),
            "all at once": lax.pad(a, zero, [(-1, 2, 1), (1, -2, 2)]),
            "nothing left": lax.pad(b, zero, [(-2, 3, 0)]),
            "negative, interior": lax.pad(b, zero, [(-1, -1, 1)]),
            "latent fill": lax.pad(b, s, [(1, 1, 0)]),
            "edge": jnp.pad(b, 2, mode="edge"),
            "wrap": jnp.pad(b, 2, mode="wrap"),
            "reflect": jnp.pad(b, 1, mode="reflect"),
        }

    # The fill is taken to be read everywhere.
    check(program, SPEC, loose={"latent fill": 3})


def test_joins():
    def program(x, z):
        a, b, s = z["a"][:, :, 0], z["b"], z["s"]
        return {
            "concatenate": jnp.concatenate([a, b[None]], 0),
            "with data": jnp.concatenate([b, x["b"], b[:1]]),
            "shifted": jnp.concatenate([s[None], b[:-1]]),
            "stack": jnp.stack([b, 2 * b, x["b"]], 1),
            "stack scalars": jnp.stack([s, b[0], s]),
            "block": jnp.block([[a, a], [b[None], b[None]]]),
            "pieces": jnp.concatenate([b[:1], b[1:]]),
            "append": jnp.append(b, s),
            "reduced": jnp.concatenate([b, s[None]]).sum(keepdims=True),
            "vstack": jnp.vstack([b, b[::-1]]),
        }

    check(program, SPEC, {"b": np.arange(3.0)})


def test_pieces_that_fit_together_become_one_pointer():
    (out,), _ = analyse(
        lambda x, z: jnp.concatenate([z["b"][:1], 2 * z["b"][1:]]), None, {"b": (3,)}
    )
    (pointer,) = out.reads
    assert pointer.mask is None
    np.testing.assert_array_equal(pointer.index[0], [0, 1, 2])


def test_empty_arrays():
    def program(x, z):
        a, b = z["a"], z["b"]
        return {
            "latent": z["empty"],
            "sum of none": z["empty"].sum(0),
            "slice": b[:0],
            "slice, then sum": a[:, :0].sum(1),
            "concatenate": jnp.concatenate([b[:0], b, z["empty"][0]]),
            "reshape": z["empty"].reshape(3, 0, 2),
            "broadcast": b[:, None] + jnp.zeros((3, 0)),
            "pad": jnp.pad(b[:0], 1),
            "product": z["empty"] @ z["empty"].T,
            "dot": jnp.zeros((2, 0)) @ z["empty"].T,
            "gather": b[np.zeros(0, int)],
        }

    check(program, {**SPEC, "empty": (2, 0), "k": Integers((0,), 2)})


def test_integer_latents_move_alike():
    def program(x, z):
        k = z["k"]
        return {"rev": k[::-1], "pairs": jnp.stack([k[1:], k[:-1]], 1), "pad": jnp.pad(k, 1)}

    check(program, {"k": Integers((4,), 3)})
