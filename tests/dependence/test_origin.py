"""Which operation a NaN, an infinity or a bad derivative comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from bbvi.dependence.origin import gradient_origin, value_origin


def trace(function, *inputs):
    inputs = [jnp.asarray(leaf) for leaf in inputs]
    return jax.make_jaxpr(function)(*inputs), inputs, [True] * len(inputs)


def looped(z):
    """exp(0), exp(40), exp(80) and then one too many."""
    _, values = jax.lax.scan(lambda c, _: (c + z, jnp.exp(c)), 0.0, length=4)
    return values.sum()


VALUES = {
    "log": (lambda z: jnp.log(z).sum(), [1.0, -2.0], -2.0),
    "sqrt": (lambda z: (3 * jnp.sqrt(z - 1)).sum(), [1.0, 0.5], -0.5),
    "exp": (lambda z: -jnp.exp(100 * z).sum(), [0.5, 1.0], 100.0),
    "div": (lambda z: (1 / (z - 2)).sum(), [1.0, 2.0], 1.0),
    "cholesky": (lambda z: jnp.linalg.cholesky(jnp.diag(z)).sum(), [1.0, -1.0], None),
    "mul": (lambda z: (z * 1e30).sum(), [1.0, 1e10], 1e10),
    # In a branch that is taken, in a function with a derivative of its own, in a loop.
    "log1p": (
        lambda z: jax.lax.cond(z.sum() > 0, jnp.log1p, jnp.exp, z).sum(),
        [9.0, -3.0],
        -3.0,
    ),
    "custom": (lambda z: jax.nn.silu(jnp.exp(z)).sum(), [1.0, 100.0], 100.0),
    "scan": (looped, 40.0, 120.0),
    # What jnp.where leaves out is not the cause.
    "where": (
        lambda z: (jnp.where(z > 0, 1.0, jnp.log(z)) + jnp.sqrt(z - 3)).sum(),
        [5.0, 2.0],
        -1.0,
    ),
}
NAMES = {"custom": "exp", "scan": "exp", "where": "sqrt"}


@pytest.mark.parametrize("name", VALUES)
def test_the_operation_and_its_operand_are_found(name):
    function, z, operand = VALUES[name]
    found = value_origin(*trace(function, z))
    assert found.primitive == NAMES.get(name, name)
    assert found.at(0) == pytest.approx(operand)
    assert found.line.startswith("test_origin.py:") or not found.line
    assert not np.isfinite(found.value[found.index])


def test_a_constant_that_is_not_finite_ends_the_search():
    found = value_origin(*trace(lambda z: jnp.where(z > 0, z, -jnp.inf).sum(), [1.0, -1.0]))
    assert found.primitive == "select_n"
    assert found.index == (1,)
    bad = [k for k, array in enumerate(found.operands) if not np.isfinite(array).all()]
    assert [found.constants[k] for k in bad] == [True]


def test_a_finite_program_has_no_origin():
    args = trace(lambda z: logsumexp(z), [1.0, 1000.0])
    assert value_origin(*args) is None
    assert gradient_origin(*args) is None


GRADIENTS = {
    "the branch left out": (lambda z: jnp.where(z > 0, jnp.sqrt(z), 0.0), 0.0, "sqrt", True),
    "a root at zero": (lambda z: jnp.sqrt(z**2), 0.0, "sqrt", False),
    "a norm at zero": (lambda z: jnp.linalg.norm(z), [0.0, 0.0], "sqrt", False),
    "a power at zero": (lambda z: (z**0.5).sum(), [1.0, 0.0], "pow", False),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_operation_without_a_derivative_is_found(name):
    function, z, primitive, is_unused = GRADIENTS[name]
    args = trace(function, z)
    assert value_origin(*args) is None
    assert not np.isfinite(jax.grad(function)(args[1][0])).all()
    found = gradient_origin(*args)
    assert (found.primitive, found.is_unused, found.at(0)) == (primitive, is_unused, 0.0)
    assert found.line.startswith("test_origin.py:")


def test_a_program_without_a_derivative_has_no_origin():
    def loop(z):
        return jax.lax.while_loop(lambda c: c < 3, lambda c: c + 1.0, z)

    assert gradient_origin(*trace(loop, 0.0)) is None
