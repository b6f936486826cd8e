"""Which terms of a log joint belong to one row of the data, and which to none."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core as jex_core

from bbvi._tree import is_floating, named_leaves, with_leaf
from bbvi._types import Data, Latents, LogJoint, PyTree
from bbvi.dependence.analysis import Analysis, Value
from bbvi.dependence.jaxprs import Equation, Variable, is_literal
from bbvi.dependence.programs import traced_once
from bbvi.dependence.row_reads import (
    ROWS,
    Batch,
    batch_of,
    is_row_by_row,
    reads_rows,
    row_inputs,
    tied_to_rows,
)
from bbvi.dependence.split import FREE, Walk
from bbvi.dependence.split_inline import inline_calls
from bbvi.dependence.split_plan import Kind, Plan, make_plan

# In the text of a program: real numbers, and what is made real; addresses in memory.
REALS = re.compile(r"[\w.+-]+(?=:b?f\d+\[)|new_dtype=b?float[^]]*\] \S+")
ADDRESSES = re.compile(r"0x[0-9a-f]+")
DECLARE = (
    "write it as a sum of one term for each row, or declare which terms are sums over the data: "
    "bbvi.FactorizedLogJoint(..., data_terms=..., num_data=...)."
)


def data_and_rest(
    log_joint: LogJoint, names: tuple[str, ...] | None, x: Data, z: Latents, *model_args: PyTree
) -> dict[str, Array]:
    r"""A log joint as a sum over the rows of x, and what is free of them.

    .. math:: \log p(x, z) = \sum_{n=1}^B d(x_n, z_n, z) + r(z)

    Both are read off the program. An array in which each entry reads one row, and every row is
    read alike, belongs to the data as it stands: what is the same in all its entries, such as the
    normaliser of a likelihood, is there once for each row. What reaches no such array is r. A
    latent with one row for each row of x is told by being read beside it; its prior is part of d.

    The log joint is traced for 2B rows too. Then d must be the same function of each row, and r
    the same function: otherwise it depends on the number of rows in some other way. The order of
    the rows is taken not to matter.

    Args:
      log_joint: ``(x, z, *model_args) -> []``.
      names: leaves of x with one row for each datum; all that have axes by default.
      x: a batch of B > 1 rows.
      z: one draw of the latents.
      *model_args: learned parameters of the model, if it has any.

    Returns:
      The sum over the rows, "data", and r, "rest".

    Raises:
      ValueError: the log joint is not seen to be such a sum.

    Example:
      >>> import jax.numpy as jnp
      >>> def log_joint(y, z):
      ...     return -0.5 * z["mu"] ** 2 + jnp.sum(-0.5 * (y - z["mu"]) ** 2 - 0.9)
      >>> parts = data_and_rest(log_joint, None, jnp.zeros(10), {"mu": 2.0})
      >>> round(float(parts["data"]), 4), float(parts["rest"])
      (-29.0, -2.0)

    References:
      Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational Inference.
    """

    def run(x: Data, z: Latents, *model_args: PyTree) -> tuple[Array, Array]:
        return _checked_sums(log_joint, batch_of(x, names), x, z, *model_args)

    data, rest = traced_once((data_and_rest, log_joint, names), run, x, z, *model_args)
    return {"data": data, "rest": rest}


def _checked_sums(
    log_joint: LogJoint, batch: Batch, x: Data, z: Latents, *model_args: PyTree
) -> tuple[Array, Array]:
    if batch.size == 1:
        raise ValueError(
            "a batch of one row does not show what there is once for each row: use two rows or "
            "more, or declare the terms that are sums over the data."
        )
    program = _program(log_joint, batch, x, z, *model_args)
    shapes = jax.eval_shape(lambda: (x, z))
    larger = Batch(batch.leaves, 2 * batch.size)
    x2, z2 = _twice(shapes[0], "x", batch.leaves), _twice(shapes[1], "latents", program.local)
    try:
        twice = _program(log_joint, larger, x2, z2, *model_args)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"log_joint takes {batch.size} rows but not {larger.size}: {error} To have its data "
            f"terms found, {DECLARE}"
        ) from error
    if program.data != twice.data or program.rest != twice.rest:
        raise ValueError(
            "log_joint depends on the number of rows other than by a sum over them, such as by a "
            f"mean, a factor N/B or a normaliser times x.shape[0]: {DECLARE}"
        )
    data, rest = jex_core.jaxpr_as_fun(program.closed)(*jax.tree.leaves((x, z, model_args)))
    return data, rest


def _twice(tree: PyTree, root: str, names: frozenset[str]) -> PyTree:
    """Shapes with the leading axis of some leaves doubled."""
    for name, leaf in named_leaves(tree, root).items():
        if name in names:
            shape = (2 * leaf.shape[0], *leaf.shape[1:])
            tree = with_leaf(tree, root, name, jax.ShapeDtypeStruct(shape, leaf.dtype))
    return tree


class _Program(NamedTuple):
    """The two sums for one number of rows, and what must not depend on that number.

    Attributes:
      closed: ``(x, z, *model_args) -> data, rest``.
      local: names of the latents with one row for each row of x.
      data: of the arrays of data terms what made them and how many entries there are for a row,
        and all numbers they are computed with.
      rest: the program of the rest.
    """

    closed: Any
    local: frozenset[str]
    data: tuple[Any, ...]
    rest: str


def _program(log_joint: LogJoint, batch: Batch, *arguments: PyTree) -> _Program:
    facts: list[Any] = []

    def run(*arguments: PyTree) -> tuple[Array, Array]:
        sums, *facts[:] = _sums(log_joint, batch, *arguments)
        return sums

    closed = jax.make_jaxpr(run)(*arguments)
    local, arrays = facts
    data, rest = (_text(closed.jaxpr, output) for output in closed.jaxpr.outvars)
    return _Program(closed, local, (arrays, REALS.findall(data)), ADDRESSES.sub("", rest))


def _text(jaxpr: Any, output: Variable) -> str:
    """The part of a program that one of its outputs needs."""
    needed = set() if is_literal(output) else {output}
    equations: list[Equation] = []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            equations.insert(0, equation)
            needed.update(var for var in equation.invars if not is_literal(var))
    inputs = [var for var in (*jaxpr.constvars, *jaxpr.invars) if var in needed]
    return str(jaxpr.replace(constvars=[], invars=inputs, outvars=[output], eqns=equations))


def _sums(
    log_joint: LogJoint, batch: Batch, x: Data, z: Latents, *model_args: PyTree
) -> tuple[tuple[Array, Array], frozenset[str], list[tuple[str, float]]]:
    """The two sums, the latents with rows, and label and entries per row of the data's arrays."""
    leaves = jax.tree.leaves((x, z, model_args))
    closed = inline_calls(jax.make_jaxpr(log_joint)(x, z, *model_args))
    jaxpr, (output,) = closed.jaxpr, closed.jaxpr.outvars
    if output.aval.shape != () or not is_floating(output.aval):
        raise ValueError(f"log_joint must return one real scalar, got {output.aval}.")
    latents = named_leaves(z, "latents")
    inputs = row_inputs(batch, x, z)
    inputs += [Value(np.shape(leaf)) for leaf in jax.tree.leaves(model_args)]
    analysis = Analysis([(batch.size,), *(np.shape(leaf)[:1] for leaf in latents.values())])

    # Every variable that something reads, as an output: what it reads itself, and its value.
    operands = [output, *(var for equation in jaxpr.eqns for var in equation.invars)]
    used = {var for var in operands if not is_literal(var)}
    made = [var for equation in jaxpr.eqns for var in equation.outvars if var in used]
    every = jex_core.ClosedJaxpr(jaxpr.replace(outvars=made), closed.consts)
    found = analysis.run(every.jaxpr, every.consts, inputs)
    tied = tied_to_rows(found, batch.size)
    local = {name: leaf for k, (name, leaf) in enumerate(latents.items(), ROWS + 1) if k in tied}
    for name, leaf in local.items():
        if leaf.shape[0] != batch.size:
            raise ValueError(
                f"latent '{name}' of shape {leaf.shape} is read by the place of a row in the batch "
                f"of {batch.size}: look it up by an index in x."
            )

    reading = zip(made, found, strict=True)
    stops = {var for var, value in reading if is_row_by_row(value, tied, batch.size)}
    is_tied = [reads_rows(value, tied) for value in inputs]
    plan = _stopped(make_plan(jaxpr, is_tied, [(output, Kind())]), stops)
    labels: list[str] = []

    def terms(*leaves: Array) -> list[Array]:
        walk = Walk(plan, closed.consts, leaves)
        walk.values |= zip(made, jex_core.jaxpr_as_fun(every)(*leaves), strict=True)
        walk.send(output, np.ones((), output.aval.dtype), Kind(), FREE)
        walk.run()
        for var in jaxpr.invars:
            walk.stop(var, "input")
        factors = [*walk.factors[::-1], *((FREE, value) for value in walk.free)]
        labels[:] = [label for label, _ in factors]
        return [jnp.asarray(array) for _, array in factors]

    split = jax.make_jaxpr(terms)(*leaves)
    arrays = jex_core.jaxpr_as_fun(split)(*leaves)
    reads = analysis.run(split.jaxpr, split.consts, inputs)
    data = rest = jnp.zeros((), output.aval.dtype)
    per_row = []
    for label, array, value in zip(labels, arrays, reads, strict=True):
        if not reads_rows(value, tied):
            rest = rest + jnp.sum(array)
            continue
        if not is_row_by_row(value, tied, batch.size):
            raise ValueError(
                f"the term '{label}' of shape {array.shape} does not have entries for each row of "
                f"x that read this row alone: {DECLARE}"
            )
        data = data + jnp.sum(array)
        per_row.append((label, array.size / batch.size))
    if not per_row:
        raise ValueError(
            f"no term of log_joint reads a row of x (leaves {sorted(batch.leaves)}): pass data in "
            "x rather than closing over them."
        )
    return (data, rest), frozenset(local), per_row


def _stopped(plan: Plan, variables: set[Variable]) -> Plan:
    """The plan with stops at some variables, for a walk that is given all values."""
    routes = {}
    for number, route in plan.routes.items():
        weighted = {v for v in plan.jaxpr.eqns[number].outvars if v in plan.weighted}
        if not weighted <= variables:
            routes[number] = route
    return dataclasses.replace(plan, routes=routes, live=set())
