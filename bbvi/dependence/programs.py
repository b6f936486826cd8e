"""Programs traced once for the shapes of their arguments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.extend import core as jex_core

from bbvi._tree import abstract
from bbvi._types import PyTree

MAX_PROGRAMS = 64
_programs: OrderedDict[Any, tuple[Any, Any]] = OrderedDict()


def traced_once(key: Hashable, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Evaluate ``function(*args)``, which is traced once for each key and shapes of arguments.

    The program becomes part of whatever is being traced, with the lines its equations were written
    in; it is not compiled by itself.

    Args:
      key: all that the program depends on beside the shapes, such as the function.
      function: traced at arguments of which shapes are known only.
      *args: pytrees of arrays.
    """
    key = (key, abstract(args), jax.config.read("jax_enable_x64"))
    if key in _programs:
        _programs.move_to_end(key)
        closed, treedef = _programs[key]
    else:
        shapes = jax.eval_shape(lambda: args)
        closed, structure = jax.make_jaxpr(function, return_shape=True)(*shapes)
        treedef = jax.tree.structure(structure)
        # A function that closes over a tracer gives a program for that trace only.
        if not any(isinstance(c, jax.core.Tracer) for c in closed.consts):
            _programs[key] = closed, treedef
            if len(_programs) > MAX_PROGRAMS:
                _programs.popitem(last=False)
    return jax.tree.unflatten(treedef, jex_core.jaxpr_as_fun(closed)(*jax.tree.leaves(args)))
