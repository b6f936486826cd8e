"""Which term of a log joint is not finite, at which entry, and which latents it reads there."""

import jax.numpy as jnp
import numpy as np
import pytest

from bbvi.dependence.failing import find_failure

Z = {"a": jnp.array([0.5, -2.0, 3.0]), "b": jnp.array(1.5)}


def test_the_term_its_entry_and_what_it_reads():
    def log_joint(x, z):
        return -jnp.sum(z["a"] ** 2) + jnp.sum(x * jnp.log(z["a"] * z["b"])) - z["b"]

    failure = find_failure(log_joint, jnp.ones(3), Z)
    assert failure.term.startswith("log at test_failing.py:")
    assert failure.term.endswith(", entry [1] of [3]")
    assert np.isnan(failure.value)
    assert failure.num_bad == 1
    assert failure.reads == ("a[1] = -2", "b = 1.5")
    assert failure.origin.at(0) == pytest.approx(-3.0)


def test_many_entries_are_told_by_their_range():
    failure = find_failure(lambda x, z: jnp.log(-jnp.sum(z["a"]) * z["b"]), None, Z)
    assert failure.reads == ("a[0] = 0.5", "a[1] = -2", "a[2] = 3", "b = 1.5")
    failure = find_failure(
        lambda x, z: jnp.log(-jnp.sum(z["a"] ** 2)), None, {"a": jnp.arange(9.0)}
    )
    assert failure.reads == ("a at 9 entries in [0, 8]",)
    assert failure.latents == ("a",)


def test_entries_behind_an_index():
    def log_joint(x, z):
        return jnp.sum(jnp.sqrt(z["a"][x])) - z["b"]

    failure = find_failure(log_joint, jnp.array([0, 2, 2, 1]), Z)
    assert failure.reads == ("a[1] = -2",)


def test_the_term_of_a_derivative():
    def log_joint(x, z):
        root = jnp.where(z["b"] > 2.0, jnp.sqrt(z["b"] - 1.5), 0.0)
        return -jnp.sum(z["a"] ** 2) - z["b"] + root

    assert find_failure(log_joint, None, Z) is None
    failure = find_failure(log_joint, None, Z, of_gradient=True)
    assert failure.reads == ("b = 1.5",)
    assert failure.origin.primitive == "sqrt"
    assert failure.value == 0.0


def test_of_learned_parameters():
    def log_joint(x, z, theta):
        return -jnp.sum(z["a"] ** 2) - z["b"] ** 2 * jnp.sqrt(theta)

    failure = find_failure(log_joint, None, Z, jnp.array(-1.0))
    assert failure.reads == ("b = 1.5",)
    assert failure.origin.at(0) == -1.0
