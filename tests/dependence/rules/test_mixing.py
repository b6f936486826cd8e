import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.dependence.oracles import Integers, check

SPEC = {"a": (2, 3), "b": (3,), "c": (3, 2)}


def test_reductions():
    def program(x, z):
        a, b = z["a"], z["b"]
        return {
            "sum": a.sum(),
            "rows": a.sum(1),
            "columns": a.sum(0, keepdims=True),
            "max": a.max(1),
            "min": a.min(0),
            "prod": a.prod(1),
            "all": (a > 0).all(1),
            "any": (a > 0).any(0),
            "xor": lax.reduce_xor((a > 0).astype(jnp.int32), (1,)),
            "argmax": jnp.argmax(a, 1),
            "argmin": jnp.argmin(b),
            "mean of a product": (a * b[None]).mean(1),
            "logsumexp": jax.nn.logsumexp(a, 0),
            "softmax": jax.nn.softmax(b),
            "variance": a.var(1),
            "norm": jnp.linalg.norm(a, axis=1),
            "median": jnp.median(a, 1),
            "twice": a.sum(1).sum(),
            "of an outer product": jnp.outer(b, b).sum(1),
            "of a subset": a[:, :2].sum(1),
            "any extra": jnp.outer(b, z["c"][:, 0]).max(0),
        }

    check(program, SPEC)


def test_generic_reductions_read_everything():
    def program(x, z):
        return {"reduce": lax.reduce(z["a"], 1.0, lambda p, q: p * q + p, (1,))}

    check(program, SPEC, loose={"reduce": 6}, unknown=["reduce"])


def test_cumulative_operations_read_the_whole_axis():
    def program(x, z):
        a = z["a"]
        return {
            "cumsum": jnp.cumsum(a, 1),
            "cumprod": jnp.cumprod(a, 0),
            "cummax": lax.cummax(a, 1),
            "cummin": lax.cummin(a, 1),
            "cumlogsumexp": lax.cumlogsumexp(a, 1),
            "reverse": lax.cumsum(a, 1, reverse=True),
        }

    loose = {"cumsum": 6, "cumprod": 3, "cummax": 6, "cummin": 6, "cumlogsumexp": 6, "reverse": 6}
    check(program, SPEC, loose=loose)


def test_sorts():
    def program(x, z):
        a, b = z["a"], z["b"]
        return {
            "sort": jnp.sort(a, 1),
            "sort 0": jnp.sort(a, 0),
            "argsort": jnp.argsort(a, 1),
            "several": lax.sort((b, z["c"][:, 0], x), num_keys=2),
            "keys of data": lax.sort((x, b), num_keys=1),
            "top_k": lax.top_k(a, 2),
            "top_k of one axis": lax.top_k(b, 1),
            "unique ranks": jnp.argsort(jnp.argsort(b)),
            "sorted, then indexed": jnp.sort(b)[0],
            "searchsorted, latent queries": jnp.searchsorted(jnp.sort(x), b),
            "quantile": jnp.quantile(b, 0.3),
        }

    # A sort that only carries b along, in an order known from data, moves it.
    check(
        program,
        SPEC,
        np.array([0.3, -1.0, 0.6]),
        loose={"several.0": 9, "several.2": 9, "keys of data.0": 9, "keys of data.1": 6},
    )


def test_windows():
    def program(x, z):
        a, b = z["a"], z["b"]

        def window(v, op, init, dims, strides, padding, dilation=None):
            return lax.reduce_window(v, init, op, dims, strides, padding, dilation)

        return {
            "sum": window(a, lax.add, 0.0, (1, 2), (1, 1), "VALID"),
            "max": window(a, lax.max, -jnp.inf, (1, 2), (1, 1), "SAME"),
            "min": window(a, lax.min, jnp.inf, (2, 1), (1, 1), "VALID"),
            "shifted": window(b, lax.add, 0.0, (1,), (1,), [(1, -1)]),
            "strided": window(b, lax.add, 0.0, (1,), (2,), [(0, 2)]),
            "dilated": window(b, lax.add, 0.0, (1,), (1,), [(0, -2)], (2,)),
            "product": window(b, lax.mul, 1.0, (2,), (1,), "VALID"),
        }

    # An axis that a window spans, moves or dilates is read as a whole.
    loose = {"sum": 4, "max": 8, "min": 0, "shifted": 7, "strided": 7, "dilated": 7, "product": 2}
    check(program, SPEC, loose=loose, unknown=["reduce_window"])


def test_convolutions():
    def program(x, z):
        a, kernel, image = z["a"], z["b"], z["image"]
        conv = lax.conv_general_dilated
        return {
            "convolve": jnp.convolve(a[0], kernel[:2], mode="same"),
            "batch": conv(a[:, None], x, (1,), "SAME"),
            "latent kernel": conv(a[:, None], kernel[None, None, :2], (1,), "VALID"),
            "two axes": conv(image, jnp.ones((1, 1, 2, 2)), (1, 1), "VALID"),
            "channels last": conv(
                *(a[..., None], x.transpose(2, 1, 0), (1,), "SAME"),
                dimension_numbers=("NWC", "WIO", "NWC"),
            ),
            "batch last": conv(
                *(a[:, None].transpose(2, 1, 0), x.transpose(2, 1, 0), (1,), "SAME"),
                dimension_numbers=("WCN", "WIO", "NWC"),
            ),
            "batch groups": conv(
                a[:, None], jnp.ones((2, 1, 2)), (1,), "VALID", batch_group_count=2
            ),
        }

    # Images stay apart; positions and channels mix.
    loose = {
        **{"convolve": 5, "batch": 8, "latent kernel": 4, "two axes": 8, "channels last": 8},
        **{"batch last": 8, "batch groups": 16},
    }
    check(program, {**SPEC, "image": (2, 1, 2, 3)}, np.array([[[1.0, 2.0]]]), loose=loose)


def test_dot_products():
    def program(x, z):
        a, b, c, batch = z["a"], z["b"], z["c"], z["batch"]
        return {
            "inner": b @ b,
            "matrix, vector": a @ b,
            "matrix, matrix": a @ c,
            "vector, matrix": b @ c,
            "data, latent": x @ c,
            "latent, data": a @ x.T,
            "outer": jnp.outer(b, b),
            "batched": jnp.einsum("nij,nj->ni", batch, a),
            "batched, both": jnp.einsum("nij,njk->nik", batch, batch.swapaxes(1, 2)),
            "batch inside": jnp.einsum("ni,nj->ijn", a, c.T[:, ::-1]),
            "trace": jnp.einsum("ii->", jnp.outer(b, b)),
            "bilinear": jnp.einsum("i,ij,j->", b, jnp.outer(b, b), b),
            "two contracted": jnp.tensordot(batch, batch, ((1, 2), (1, 2))),
            "vmap": jax.vmap(lambda row: row @ c)(a),
            "kronecker": jnp.kron(b, c[:, 0]),
            "cross": jnp.cross(b, a[0]),
            "weak": b @ jnp.ones((3, 2)),
        }

    check(program, {**SPEC, "batch": (2, 2, 3)}, np.arange(1.0, 7).reshape(2, 3))


def test_sparse_matrices_keep_their_pattern():
    x = {
        "chain": np.diag(np.ones(4), 1),
        "one-hot": np.eye(3)[[2, 0, 0, 1]],
        "difference": np.eye(4, 5) - np.eye(4, 5, 1),
        "empty": np.zeros((2, 5)),
        "empty row": np.eye(5)[:4] * np.array([1.0, 0.0, 1.0, 1.0])[:, None],
    }

    def program(x, z):
        v, w, m = z["v"], z["w"], z["m"]
        return {
            "left": x["chain"] @ v,
            "right": v @ x["chain"],
            "one-hot": x["one-hot"] @ w,
            "one-hot of a matrix": x["one-hot"] @ m,
            "matrix, right": m.T @ x["one-hot"].T,
            "difference": x["difference"] @ v,
            "ising": v * (x["chain"] @ v),
            "quadratic": v @ (x["chain"] @ v),
            "empty": x["empty"] @ v,
            "empty row": x["empty row"] @ v,
            "of a sum": x["one-hot"] @ (m + w[:, None]),
            "closed over": np.eye(5) @ v,
        }

    check(
        program,
        {"v": (5,), "w": (3,), "m": (3, 2)},
        x,
        loose={"empty": 10, "ising": 1},  # the last row of the chain is empty
        traced={
            **{"left": 21, "right": 21, "one-hot": 8, "one-hot of a matrix": 16},
            **{"matrix, right": 16, "difference": 12, "ising": 17, "empty row": 17},
            **{"of a sum": 32},
        },
    )


def test_linear_algebra():
    def program(x, z):
        b = z["b"]
        square = z["square"] + 9 * jnp.eye(2)
        positive = square @ square.T
        return {
            "cholesky": jnp.linalg.cholesky(positive),
            "lower": lax.linalg.triangular_solve(square, z["c"], left_side=False, lower=True),
            "qr": jnp.linalg.qr(square),
            "eigh": jnp.linalg.eigh(square),
            "svd": jnp.linalg.svd(square, compute_uv=False),
            "lu": jax.scipy.linalg.lu(square),
            "inverse": jnp.linalg.inv(square),
            "solve": jnp.linalg.solve(square, z["v"]),
            "determinant": jnp.linalg.slogdet(square)[1],
            "expm": jax.scipy.linalg.expm(square / 20),
            "solve, known matrix": jax.scipy.linalg.solve_triangular(x, z["v"], lower=True),
            "cho_solve": jax.scipy.linalg.cho_solve((x, True), z["v"]),
            "fft": jnp.fft.fft(b),
            "tridiagonal": lax.linalg.tridiagonal_solve(b, b + 5, b, b[:, None]),
        }

    # Triangles count as read.
    loose = {
        **{"cholesky": 2, "lower": 15, "solve, known matrix": 1, "qr.Q": 8, "qr.R": 6},
        **{"lu.0": 8, "lu.1": 2, "lu.2": 3},
    }
    spec = {**SPEC, "square": (2, 2), "v": (2,)}
    check(program, spec, np.array([[2.0, 0.0], [1.0, 3.0]]), loose=loose)


def test_batches_of_linear_algebra_stay_apart():
    def program(x, z):
        batch = z["batch"] + 9 * jnp.eye(2)[None]
        positive = batch @ batch.swapaxes(1, 2)
        v = z["v"]
        return {
            "cholesky": jnp.linalg.cholesky(positive),
            "triangular": jax.vmap(
                lambda m, r: jax.scipy.linalg.solve_triangular(m, r, lower=True)
            )(batch, v),
            "qr": jnp.linalg.qr(batch)[0],
            "eigh": jnp.linalg.eigh(batch),
            "svd": jnp.linalg.svd(batch, compute_uv=False),
            "inverse": jnp.linalg.inv(batch),
            "solve": jnp.linalg.solve(batch, v[..., None]),
            "solve, known matrix": jax.vmap(lambda r: jnp.linalg.solve(x, r))(v),
            "determinant": jnp.linalg.slogdet(batch)[1],
            "fft": jnp.abs(jnp.fft.fft(v)),
            "rfft": jnp.abs(jnp.fft.rfft(z["wide"])),
            "irfft": jnp.fft.irfft(z["wide"]),
            "fft2": jnp.abs(jnp.fft.fft2(batch)),
            "top_k": jax.vmap(lambda r: lax.top_k(r, 1)[0])(v),
            "gaussian": jax.scipy.stats.multivariate_normal.logpdf(
                v, jnp.zeros((1, 2)), (x @ x.T)[None]
            ),
        }

    spec = {"batch": (3, 2, 2), "v": (3, 2), "wide": (2, 4)}
    # Triangles count as read, within each matrix.
    loose = {"cholesky": 6, "qr": 24, "solve, known matrix": 3, "triangular": 15}
    check(program, spec, np.array([[2.0, 0.0], [1.0, 3.0]]), loose=loose)


def test_integer_latents_mix_alike():
    def program(x, z):
        k = z["k"]
        return {
            "counts": jax.nn.one_hot(k, 3).sum(0),
            "sum": k.sum(),
            "max": k.max(),
            "sort": jnp.sort(k),
            "dot": k @ k[::-1],
            "table": jnp.take(x, k, axis=0).sum(1),
        }

    check(program, {"k": Integers((4,), 3)}, np.arange(6.0).reshape(3, 2))
