"""``jit`` with the options of a platform."""

import jax
import jax.numpy as jnp
import pytest

from bbvi.infer.compiling import OPTIONS, jit


def test_compiles_once_for_each_value_of_what_is_static():
    traces = []

    @jit("power")
    def raised(x, power):
        """Docstring."""
        traces.append(power)
        return x**power

    x = jnp.arange(3.0)
    assert raised(x, power=2).tolist() == [0.0, 1.0, 4.0]
    assert raised(x, 3).tolist() == [0.0, 1.0, 8.0]
    assert raised(x + 1.0, power=2).tolist() == [1.0, 4.0, 9.0]
    assert traces == [2, 3]
    assert raised.__doc__ == "Docstring."
    assert raised.lower(x, power=2).compile()(x).tolist() == [0.0, 1.0, 4.0]


def test_options_are_those_of_the_platform_that_arrays_are_on(monkeypatch):
    @jit()
    def double(x):
        return 2.0 * x

    @jit()
    def triple(x):
        return 3.0 * x

    monkeypatch.setitem(OPTIONS, "tpu", {"no_such_option": 1})
    assert double(jnp.ones(())) == 2.0
    monkeypatch.setitem(OPTIONS, "cpu", {"no_such_option": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        triple(jnp.ones(()))
