"""A program is traced once for each key and shapes, unless it holds what is being traced."""

import jax
import jax.numpy as jnp
import pytest

from bbvi.dependence.programs import traced_once


def test_traced_once_for_each_key_and_shape():
    traces = []

    def times(factor, x):
        def multiply(x):
            traces.append((factor, x.shape))
            return {"result": factor * x}

        return traced_once(("times", factor), multiply, x)["result"]

    for factor, x in (
        (2.0, jnp.ones(2)),
        (2.0, jnp.zeros(2)),
        (2.0, jnp.ones(3)),
        (3.0, jnp.ones(2)),
    ):
        assert times(factor, x).tolist() == (factor * x).tolist()
    assert traces == [(2.0, (2,)), (2.0, (3,)), (3.0, (2,))]


@pytest.mark.usefixtures("tracer_leak_checks")
def test_programs_that_close_over_tracers_are_not_kept():
    def power(x):
        return traced_once("power", lambda y: x * y, x)

    assert float(jax.jit(jax.grad(power))(3.0)) == 6.0
    assert float(jax.jit(jax.grad(power))(5.0)) == 10.0
