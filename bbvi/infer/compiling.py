"""``jit`` for the programs that ``fit`` compiles: quick to compile where that costs nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA vectorises by itself, so that LLVM's first level gives steps as fast as its third, or a tenth
# slower at most, for a third to two thirds of the time to compile; level zero makes them ten times
# slower. On accelerators the same option is about kernels, whose time is most of a run's.
OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": 1}}


class Program:
    """A compiled function, for the platform that its arrays are on.

    Attributes:
      function: what is compiled.
      static_argnames: its arguments that are not arrays.
    """

    def __init__(self, function: Callable[..., Any], static_argnames: tuple[str, ...]):
        functools.update_wrapper(self, function)
        self.function, self.static_argnames = function, static_argnames

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._on(args, kwargs)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """What is handed to the compiler."""
        return self._on(args, kwargs).lower(*args, **kwargs)

    def _on(self, args: Any, kwargs: Any) -> Any:
        arrays = (a for a in jax.tree.leaves((args, kwargs)) if isinstance(a, jax.Array))
        devices = next((array.devices() for array in arrays), jax.devices())
        return _jitted(self.function, self.static_argnames, next(iter(devices)).platform)


def jit(*static_argnames: str) -> Callable[[Callable[..., Any]], Program]:
    """``jax.jit`` with the options of its arrays' platform.

    Args:
      *static_argnames: names of the arguments that are not arrays.
    """
    return lambda function: Program(function, static_argnames)


@functools.cache
def _jitted(function: Callable[..., Any], static_argnames: tuple[str, ...], platform: str) -> Any:
    options = OPTIONS.get(platform)
    return jax.jit(function, static_argnames=static_argnames, compiler_options=options)
