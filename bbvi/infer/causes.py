"""The usual reasons why an operation gives NaN or infinity, and what helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bbvi.dependence.origin import Origin

LOGS = frozenset({"log", "log1p"})
ROOTS = frozenset({"sqrt", "rsqrt", "cbrt"})
EXPONENTIALS = frozenset({"exp", "exp2", "expm1", "sinh", "cosh"})
POWERS = frozenset({"pow", "integer_pow"})
LIMITED = frozenset(
    {"lgamma", "digamma", "polygamma", "igamma", "igammac", "acos", "acosh", "asin", "atanh"}
    | {"erf_inv", "regularized_incomplete_beta", "zeta"}
)
READS = frozenset({"gather", "dynamic_slice"})
SUMS = frozenset({"reduce_sum", "add", "sub", "add_any", "cumsum", "dot_general", "mul", "square"})

LOG_SCALE = (
    "Stay on the log scale: jax.nn.log_softmax, jax.nn.log_sigmoid, jax.nn.logsumexp, "
    "jnp.logaddexp, or the logpdf of a distribution."
)
TOO_LARGE = "Lower the learning rate, bring the data to a scale of about one, or bound the latent."


class Cause(NamedTuple):
    """Why a number is not finite, and what to do; full sentences."""

    reason: str
    remedy: str


def support_of(latents: Sequence[str]) -> str:
    """What to do where a latent leaves the numbers that the model allows."""
    names = ", ".join(f"'{name}'" for name in latents)
    return (
        f"Give {'latent ' + names if names else 'the latent'} its support, for example "
        "bbvi.Normal((), support=bbvi.supports.positive)."
    )


def takes_constant(origin: Origin) -> bool:
    """Whether an operation takes a number that is not finite whatever the latents are."""
    return any(
        constant and np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all()
        for constant, array in zip(origin.constants, origin.operands, strict=True)
    )


def cause_of_value(origin: Origin, latents: Sequence[str]) -> Cause:
    """Why an operation gives NaN or infinity.

    Args:
      origin: the operation.
      latents: names of the latents that its term reads.
    """
    name, operands, value = origin.primitive, origin.operands, origin.value[origin.index]
    given = [origin.at(k) for k in range(len(operands))]
    first = given[0] if given else None
    if takes_constant(origin):
        if np.isneginf(value):
            return Cause(
                "The model is -inf here: the guide reaches outside the model's support.",
                support_of(latents),
            )
        return Cause(
            "A constant or an entry of the data that is not finite enters here.",
            "Remove it, or replace it and mask its terms in log_joint.",
        )
    if name in LOGS and first is not None:
        if first == (-1 if name == "log1p" else 0):
            return Cause(
                "The logarithm of zero: what it takes has underflowed, or a scale has collapsed.",
                LOG_SCALE,
            )
        return Cause("The logarithm of a negative number.", support_of(latents))
    if name in ROOTS and first is not None and first < 0:
        return Cause("The root of a negative number.", support_of(latents))
    if (name == "div" and given[1] == 0) or (first == 0 and name in {"rsqrt", *POWERS}):
        return Cause(
            "A division by zero: a scale may have collapsed.",
            "Keep the divisor away from zero, by a support or a prior that does, or by "
            "bbvi.supports.greater_than(1e-3).",
        )
    if name in EXPONENTIALS:
        limit = math.log(float(np.finfo(origin.value.dtype).max))
        return Cause(
            f"Overflow: exp of more than {limit:.3g} is infinite in {origin.value.dtype}.",
            LOG_SCALE,
        )
    if name == "pow" and first is not None and first < 0:
        return Cause("A power of a negative number.", support_of(latents))
    if name == "cholesky":
        matrix = operands[0][origin.index[:-2]]
        lowest = np.linalg.eigvalsh(0.5 * (matrix + matrix.T)).min()
        return Cause(
            f"The matrix is not positive definite: its smallest eigenvalue is {lowest:.3g}.",
            "Add a small multiple of the identity, or make its Cholesky factor the latent, "
            "bbvi.supports.cholesky_factor.",
        )
    if name in READS:
        return Cause(
            "An index out of range, for which jnp.take gives NaN.",
            "Check the indices against the shape of what they are read from.",
        )
    if name in LIMITED:
        return Cause(f"{name} is not defined, or infinite, there.", support_of(latents))
    if name == "pure_callback":
        return Cause("The Python function called here returned it.", support_of(latents))
    if name in SUMS | POWERS | {"div"}:
        return Cause("Overflow: the operands are finite, their result is not.", TOO_LARGE)
    return Cause(f"{name} is not finite there.", support_of(latents))


def cause_of_gradient(origin: Origin) -> Cause:
    """Why an operation has a derivative that is NaN or infinite.

    Args:
      origin: the operation.
    """
    name = origin.primitive
    if origin.is_unused:
        return Cause(
            "Nothing reads this entry, as one that jnp.where leaves out, but its derivative is "
            "infinite, and zero times infinity is NaN.",
            "Put a harmless value in before as well: jnp.where(ok, f(jnp.where(ok, z, 1.0)), 0.0).",
        )
    if name in ROOTS | POWERS | {"abs"}:
        return Cause(
            "The derivative is infinite at zero, as that of a root or a norm is.",
            "Keep the argument away from zero: add a small constant inside the root.",
        )
    if name in {"div", *LOGS}:
        return Cause(
            "The derivative overflows close to zero.",
            "Keep the argument away from zero, or stay on the log scale.",
        )
    if name in {"cholesky", "eigh", "svd", "qr"}:
        return Cause(
            f"The derivative of {name} does not exist where the matrix is singular, or two of its "
            "eigenvalues are equal.",
            "Add a small multiple of the identity.",
        )
    return Cause(f"The derivative of {name} is not finite there.", TOO_LARGE)
