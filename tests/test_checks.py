"""Numbers among arguments."""

import jax.numpy as jnp
import numpy as np
import pytest

from bbvi._checks import check_count, check_positive, is_count, is_number


@pytest.mark.parametrize("value", [1, 2.5, np.float32(1.0), np.int64(3), -1.0])
def test_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [True, "1", None, np.nan, np.inf, np.ones(2), jnp.ones(()), 1j])
def test_what_is_no_number(value):
    assert not is_number(value)
    with pytest.raises(ValueError, match="rate must be a positive number, got"):
        check_positive("rate", value)


@pytest.mark.parametrize("value", [0, True, 2.0, "3", None, np.bool_(True)])
def test_what_is_no_count(value):
    assert not is_count(value)
    with pytest.raises(ValueError, match="num_steps must be an int >= 1, got"):
        check_count("num_steps", value)


def test_counts():
    check_count("num_steps", np.int32(5), least=5)
    with pytest.raises(ValueError, match="num_steps must be an int >= 6, got 5"):
        check_count("num_steps", 5, least=6)
