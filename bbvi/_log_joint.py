"""Tracing the user's ``log_joint``, with errors that say what is wrong with it."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bbvi._tree import shapes
from bbvi._types import Data, Latents, LogJoint, PyTree

# What JAX raises where Python asks for the value of an array that is only traced.
VALUE_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
# Where code is not the user's own: the packages installed, and this one.
FOREIGN = ("site-packages", "dist-packages", str(Path(__file__).parent))


def trace_log_joint(log_joint: LogJoint, x: Data, z: Latents, *model_args: PyTree) -> Any:
    """The closed jaxpr of ``log_joint`` as a function of ``(z, x, *model_args)``.

    Traces shapes only, and compiles nothing.

    Raises:
      ValueError: ``log_joint`` fails, needs the value of a latent in Python, reads a latent that
        there is not, or does not return one scalar.
      TypeError: it returns a scalar that is not a floating-point number.
    """
    described = shapes(z, "latents")
    _check_call(log_joint, 2 + len(model_args))
    try:
        closed = jax.make_jaxpr(lambda z, x, *model_args: log_joint(x, z, *model_args))(
            z, x, *model_args
        )
    except KeyError as error:
        raise ValueError(
            f"log_joint looks up {error}, which there is not; the latents are {described}, and x "
            f"is {shapes(x, 'x')}. It is called as log_joint(x, z)."
        ) from error
    except VALUE_ERRORS as error:
        raise ValueError(
            f"log_joint needs the value of a latent, or of data, in Python{_where(error)}. It is "
            "traced by JAX, with values not known yet. Instead of `if` use jnp.where or "
            "jax.lax.cond, instead of a `for` or `while` over a traced number jax.lax.fori_loop or "
            "while_loop, instead of NumPy, math, float() or int() jax.numpy, and instead of an "
            "index by a boolean array jnp.where."
        ) from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"log_joint failed on one draw with latents {described} and x {shapes(x, 'x')}: {error}"
        ) from error
    if len(closed.out_avals) != 1:
        raise ValueError(
            f"log_joint must return one scalar, got {len(closed.out_avals)} arrays; did it return "
            "at all?"
        )
    (out,) = closed.out_avals
    if out.shape != ():
        raise ValueError(
            f"log_joint must return a scalar for ONE draw of the latents, got shape {out.shape}; "
            "sum over the data, and leave the sample axis to bbvi."
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"log_joint must return a floating-point scalar, got dtype {out.dtype}.")
    return closed


def _check_call(log_joint: Any, num_args: int) -> None:
    """Raise unless ``log_joint`` is a function that takes so many arguments."""
    call = "log_joint(x, z)" if num_args == 2 else "log_joint(x, z, theta)"
    if not callable(log_joint):
        raise TypeError(f"log_joint must be a function, {call} -> scalar, got {log_joint!r}.")
    try:
        signature = inspect.signature(log_joint)
    except (TypeError, ValueError):
        return  # of a builtin: the call itself will tell
    try:
        signature.bind(*range(num_args))
    except TypeError as error:
        hint = " Learned parameters theta are given as model_params."
        raise ValueError(
            f"log_joint is called as {call}, but its signature is {signature}: {error}."
            + (hint if num_args == 2 else " Without theta leave model_params out.")
        ) from error


def _where(error: BaseException) -> str:
    """The user's line an error arose at, such as " at model.py:10 (`if z > 0:`)"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(path in frame.filename for path in FOREIGN)]
    if not own:
        return ""
    code = f" (`{own[-1].line}`)" if own[-1].line else ""
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}{code}"
