"""Fixtures for the tests of the models."""

import jax
import pytest


@pytest.fixture
def x64():
    """Turns on float64 for one test."""
    with jax.enable_x64(True):
        yield
