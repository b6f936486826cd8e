"""Strict switches for every test: what JAX can check, it checks; what it warns of, fails."""

import os
from pathlib import Path

# Tests compile thousands of programs and run most of them once, so that no optimisation saves more
# time than it costs. Tests that compute for long ask for the fixture ``optimized``. A run with
# XLA_FLAGS= JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as users do.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
    " --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest

# A broadcast over a missing axis is a bug far more often than it is meant.
jax.config.update("jax_numpy_rank_promotion", "raise")
# A key used twice correlates draws that are taken to be independent.
jax.config.update("jax_debug_key_reuse", True)

# Compiled programs are kept from run to run: on a second run, most of the time of the first.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(caches / "bbvi-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def _fixed_seed():
    np.random.seed(0)  # noqa: NPY002 - for libraries under test that draw from the global state


@pytest.fixture
def key():
    """The key every test starts from."""
    return jax.random.key(0)


@pytest.fixture
def optimized():
    """Compiles the programs of one test with optimisation: worth its time where they run long."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def x64():
    """Turns on float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def tracer_leak_checks():
    """Fails if a traced value escapes its transformation.

    Not on for all tests, since JAX drops its caches of traces meanwhile: tests that count traces
    would fail and the others be slower. ``JAX_CHECK_TRACER_LEAKS=1`` puts it on for a whole run.
    """
    with jax.checking_leaks():
        yield
