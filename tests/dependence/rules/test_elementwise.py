import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tests.dependence.oracles import Integers, check

UNARY = {
    f.__name__: f
    for f in (
        *(lax.neg, lax.exp, lax.exp2, lax.log, lax.log1p, lax.expm1, lax.sqrt, lax.rsqrt, lax.cbrt),
        *(lax.square, lax.abs, lax.sign, lax.logistic, lax.floor, lax.ceil, lax.round),
        *(lax.sin, lax.cos, lax.tan, lax.asin, lax.acos, lax.atan, lax.sinh, lax.cosh, lax.tanh),
        *(lax.asinh, lax.acosh, lax.atanh),
        *(lax.erf, lax.erfc, lax.erf_inv, lax.lgamma, lax.digamma, lax.bessel_i0e, lax.bessel_i1e),
        *(lax.stop_gradient, jax.nn.relu, jax.nn.softplus, jnp.isnan),
    )
}
BINARY = {
    f.__name__: f
    for f in (
        *(lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.pow, lax.max, lax.min, lax.nextafter),
        *(lax.lt, lax.le, lax.gt, lax.ge, lax.atan2, lax.complex, jnp.logaddexp, jnp.hypot),
    )
}


def test_functions_of_one_array():
    # No redraw is NaN.
    check(
        lambda x, z: {name: f(z["a"]) for name, f in UNARY.items()},
        {"a": (2, 3)},
        loose={"isnan": 6},
    )


def test_functions_of_two_arrays():
    check(
        lambda x, z: {name: f(z["a"], z["b"]) for name, f in BINARY.items()},
        {"a": (2, 3), "b": (2, 3)},
    )


def test_special_functions():
    def program(x, z):
        a, b = jnp.abs(z["a"]), jnp.abs(z["b"])
        return {
            "igamma": lax.igamma(a, b),
            "igammac": lax.igammac(a, b),
            "igamma_grad_a": lax.igamma_grad_a(a, b),
            "random_gamma_grad": lax.random_gamma_grad(a, b),
            "zeta": lax.zeta(1 + a, b),
            # Iterates until all entries have converged, which moves the others' last digits.
            "betainc": jnp.round(lax.betainc(a, b, jnp.full(3, 0.4)), 3),
            "polygamma": lax.polygamma(jnp.ones(3), a),
            "integer_pow": lax.integer_pow(a, 3),
            "clamp": lax.clamp(-1.0, z["a"], 1.0),
            "clamp, latent bounds": lax.clamp(-b, z["a"], b),
        }

    # The derivative of a gamma draw is a loop until all entries have converged.
    check(program, {"a": (3,), "b": (3,)}, loose={"random_gamma_grad": 12})


def test_integers():
    def program(x, z):
        a, b = z["a"], z["b"]
        return {
            "eq": a == b,
            "ne": a != b,
            "and": a & b,
            "or": a | b,
            "xor": a ^ b,
            "not": ~a,
            "shift_left": a << b,
            "shift_right_logical": lax.shift_right_logical(-a, b),
            "shift_right_arithmetic": lax.shift_right_arithmetic(-a, b),
            "population_count": lax.population_count(a),
            "clz": lax.clz(a),
            "mulhi": lax.mulhi(a << 29, b << 29) if hasattr(lax, "mulhi") else a * b,
            "sign": jnp.sign(a - 1),
            "min": jnp.minimum(a, b),
            "to float": a.astype(float),
            "to bool": a.astype(bool),
            "one_hot": jax.nn.one_hot(a, 4),
            "power": a**b,
            "remainder": a % (b + 1),
        }

    check(program, {"a": Integers((3,), 4), "b": Integers((3,), 3)})


def test_conversions():
    def program(x, z):
        a = z["a"]
        wide = lax.complex(a, -a)
        return {
            "to int": a.astype(int),
            "half": a.astype(jnp.bfloat16),
            "reduce_precision": lax.reduce_precision(a, 5, 3),
            "bitcast": lax.bitcast_convert_type(a, jnp.int64 if a.dtype == "float64" else "int32"),
            "real": lax.real(wide),
            "imag": lax.imag(wide),
            "conj": lax.conj(wide),
            "name": checkpoint_name(a, "a"),
            "copy": jnp.array(a, copy=True),
            "optimization_barrier": lax.optimization_barrier((a, 2 * a)),
            "device_put": jax.device_put(a),
        }

    check(program, {"a": (3,)})


def test_bitcasts_that_split_or_join_numbers_read_everything():
    def program(x, z):
        bytes_ = lax.bitcast_convert_type(z["a"].astype(jnp.float32), jnp.uint8)
        return {"split": bytes_, "join": lax.bitcast_convert_type(bytes_, jnp.float32)}

    check(program, {"a": (3,)}, loose={"split": 24, "join": 6})


def test_axes_of_size_one_broadcast():
    def program(x, z):
        return {
            "column, row": z["column"] * z["row"],
            "column, matrix": z["column"] + x,
            "scalar, row": z["scalar"] - z["row"],
            "scalar, matrix": x / z["scalar"],
            "bound": lax.clamp(z["scalar"], z["row"], 1.0),
            "rank 0 predicate": lax.select_n(z["scalar"] > 0, x, 2 * x),
        }

    check(program, {"column": (2, 1), "row": (1, 3), "scalar": ()}, np.ones((2, 3)))


def test_zeros_hide_what_they_multiply():
    x = {
        "mask": np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]]),
        "row": np.array([[0.0, 1.0, 1.0]]),
        "zero": np.zeros(()),
        "bits": np.array([0, 1, 3]),
        "bools": np.array([True, False, True]),
        "nan": np.array([0.0, np.nan, np.inf]),
    }

    def program(x, z):
        a = z["a"]
        return {
            "mask": x["mask"] * a,
            "mask, right": a * x["mask"],
            "row": x["row"] * a,
            "scalar": x["zero"] * a,
            "twice": x["mask"] * (x["row"] * a + z["b"]),
            "bits": x["bits"] & z["k"],
            "bools": x["bools"] & (z["k"] > 1),
            "nan": x["nan"] * a[0],
            "a constant": np.array([0.0, 1.0, 0.0]) * a[0],
            "a sum of zeros": jnp.sum(x["mask"] * a, axis=0),
        }

    check(
        program,
        {"a": (2, 3), "b": (1, 3), "k": Integers((3,), 4)},
        x,
        loose={"nan": 1},
        traced={
            **{"mask": 3, "mask, right": 3, "row": 2, "scalar": 6, "twice": 7, "bits": 1},
            **{"bools": 1, "nan": 2, "a sum of zeros": 3},
        },
    )


def test_select():
    x = {
        "mask": np.array([[True, False, True], [False, False, True]]),
        "flag": np.array(True),
        "which": np.array([[0, 1, 2], [2, 1, 0]]),
    }

    def program(x, z):
        a, b, c = z["a"], z["b"], z["a"] * z["b"]
        return {
            "known": jnp.where(x["mask"], a, b),
            "known scalar": lax.select_n(x["flag"], a, b),
            "known, three": lax.select_n(x["which"].astype(jnp.int32), a, b, c),
            "known, a constant": jnp.where(x["mask"], a, 0.0),
            "known, nan": jnp.where(x["mask"], a, jnp.nan),
            "known, reduced": jnp.sum(jnp.where(x["mask"], a, b), axis=1),
            "latent": jnp.where(a > 0, b, 1.0),
            "latent, nan": jnp.where(a > 0, jnp.log(a), jnp.nan),
            "latent scalar": lax.select_n(a[0, 0] > 0, a, b),
            "latent, three": lax.select_n(z["k"].reshape(2, 3), a, b, c),
            "safe where": jnp.where(a > 0, jnp.log(jnp.where(a > 0, a, 1.0)), 0.0),
            "masked nan": jnp.where(x["mask"], a / 0.0, b),
        }

    check(
        program,
        {"a": (2, 3), "b": (2, 3), "k": Integers((6,), 3)},
        x,
        traced={
            **{"known": 6, "known scalar": 6, "known, three": 4, "known, a constant": 3},
            **{"known, nan": 3, "known, reduced": 6, "masked nan": 6},
        },
    )
