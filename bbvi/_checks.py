"""Numbers among arguments: an error that names the argument, or nothing."""

from __future__ import annotations

import math
import numbers
from typing import Any


def is_number(value: Any) -> bool:
    """Whether a value is one finite real number, and not a bool."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an int of at least ``least``, and not a bool."""
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_int and value >= least


def check_positive(name: str, value: Any) -> None:
    """Raise unless a value is a positive number.

    Args:
      name: what to call it, such as ``"StudentT df"``.
      value: what was given.

    Raises:
      ValueError: it is none.

    Example:
      >>> check_positive("StudentT df", "5")
      Traceback (most recent call last):
      ValueError: StudentT df must be a positive number, got '5'.
    """
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless a value is an int of at least ``least``.

    Args:
      name: what to call it, such as ``"num_steps"``.
      value: what was given.
      least: the smallest that will do.

    Raises:
      ValueError: it is none.

    Example:
      >>> check_count("num_steps", 1e3)
      Traceback (most recent call last):
      ValueError: num_steps must be an int >= 1, got 1000.0.
    """
    if not is_count(value, least):
        raise ValueError(f"{name} must be an int >= {least}, got {value!r}.")
