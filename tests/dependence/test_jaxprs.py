import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bbvi.dependence.jaxprs import (
    apply,
    called_jaxpr,
    evaluate,
    is_literal,
    tainted_scan_inputs,
    tainted_variables,
)
from bbvi.dependence.split_inline import inline_calls


@jax.custom_vjp
def doubled(v):
    return 2 * v


doubled.defvjp(lambda v: (2 * v, None), lambda _, ct: (2 * ct,))


def program(u, v):
    w = jax.jit(lambda a: jnp.sin(a) * v)(u)
    w = jax.checkpoint(jnp.cos)(w)
    ends, sums = lax.scan(lambda c, a: (c + a, c), 0.0, w)
    return {"a": doubled(w), "b": (ends, sums), "c": jax.nn.relu(u), "d": jnp.float32(3.0)}


U, V = np.arange(3.0), np.array([0.5, -1.0, 2.0])


def test_evaluate_runs_the_program():
    closed = jax.make_jaxpr(program)(U, V)
    outputs = evaluate(closed.jaxpr, closed.consts, [jnp.asarray(U), jnp.asarray(V)])
    expected = jax.tree.leaves(program(U, V))
    for out, value in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(out, value, rtol=1e-6)


def test_evaluate_steps_through_any_domain():
    closed = jax.make_jaxpr(lambda u: jnp.sin(u) + 1.0)(U)
    names = []

    def step(equation, operands):
        names.append(equation.primitive.name)
        return [sum(operands)]

    assert evaluate(closed.jaxpr, [], [10], step, lambda constant: 100) == [110]
    assert names == ["sin", "add"]


def test_inline_replaces_calls_but_keeps_rules_of_derivatives():
    closed = inline_calls(jax.make_jaxpr(program)(U, V))
    names = {equation.primitive.name for equation in closed.eqns}
    assert not names & {"jit", "pjit", "checkpoint", "remat2"}
    assert "scan" in names
    assert any(name.startswith("custom_vjp_call") for name in names)
    run = jax.core.eval_jaxpr
    for out, value in zip(
        run(closed.jaxpr, closed.consts, U, V), jax.tree.leaves(program(U, V)), strict=True
    ):
        np.testing.assert_allclose(out, value, rtol=1e-6)


def test_apply_binds_calls_with_functions_among_their_parameters():
    for function in (doubled, jax.nn.relu, jax.checkpoint(jnp.sin), jax.jit(jnp.cos)):
        closed = jax.make_jaxpr(function)(V)
        env = evaluate(closed.jaxpr, closed.consts, [jnp.asarray(V)], apply)
        np.testing.assert_allclose(env[0], function(V), rtol=1e-6)


def test_called_jaxpr_and_literals():
    (equation,) = jax.make_jaxpr(jax.jit(lambda u: u + 1.0))(U).eqns
    inner, consts = called_jaxpr(equation)
    assert list(consts) == []
    (add,) = inner.eqns
    assert [is_literal(var) for var in add.invars] == [False, True]
    with pytest.raises(NotImplementedError, match="add has no jaxpr"):
        called_jaxpr(add)


def test_tainted_variables_follow_the_marked_inputs():
    closed = jax.make_jaxpr(lambda u, v: (u + v, 2 * v, u * 3, 1.0))(U, V)
    tainted = tainted_variables(closed.jaxpr, [True, False])
    marks = [not is_literal(var) and var in tainted for var in closed.jaxpr.outvars]
    assert marks == [True, False, True, False]


def test_taint_passes_from_carry_to_carry():
    def step(carry, x):
        first, second, third, counter = carry
        return (second, third, x, counter + 1), first

    closed = jax.make_jaxpr(lambda xs: lax.scan(step, (0.0, 0.0, 0.0, 0), xs))(U)
    (scan,) = (e for e in closed.eqns if e.primitive.name == "scan")
    marks = [not is_literal(var) and var in closed.jaxpr.invars for var in scan.invars]
    body = scan.params["jaxpr"].jaxpr
    by_shape = dict(zip(body.invars, tainted_scan_inputs(scan, marks), strict=True))
    floats = [
        mark for var, mark in by_shape.items() if jnp.issubdtype(var.aval.dtype, jnp.floating)
    ]
    integers = [
        mark for var, mark in by_shape.items() if jnp.issubdtype(var.aval.dtype, jnp.integer)
    ]
    assert floats == [True] * 4
    assert integers == [False]
