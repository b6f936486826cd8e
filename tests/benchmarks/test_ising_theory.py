"""Theory of magnets: against enumeration, on chains, and as a bound."""

import numpy as np
import pytest

from benchmarks import ising_theory
from models import ising


@pytest.mark.parametrize(("shape", "coupling"), [((3, 4), 0.3), ((4, 3), -0.2), ((2, 5), 0.8)])
def test_transfer_matrices_sum_over_all_grids(shape, coupling):
    exact = ising._enumerate(shape, coupling, 0.1).log_evidence
    found = ising_theory.exact_log_partition(shape, coupling, 0.1)
    assert found == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_bethe_is_exact_on_a_chain_and_mean_field_is_not(shape):
    exact = ising_theory.exact_log_partition(shape, 0.7, 0.2)
    assert ising_theory.bethe_log_partition(shape, 0.7, 0.2)[0] == pytest.approx(exact, abs=1e-9)
    mean, _ = ising_theory.mean_field(shape, 0.7, 0.2)
    assert exact - ising_theory.mean_field_bound(mean, 0.7, 0.2) > 0.1


def test_without_coupling_all_are_exact():
    shape = (3, 3)
    exact = 9 * np.log(2 * np.cosh(0.4))
    mean, _ = ising_theory.mean_field(shape, 0.0, 0.4)
    found = (
        ising_theory.exact_log_partition(shape, 0.0, 0.4),
        ising_theory.mean_field_bound(mean, 0.0, 0.4),
        ising_theory.bethe_log_partition(shape, 0.0, 0.4)[0],
    )
    np.testing.assert_allclose(found, exact)


def test_the_fixed_point_is_a_maximum_below_log_z():
    shape, coupling, field = (3, 4), 0.5, 0.1
    mean, _ = ising_theory.mean_field(shape, coupling, field)
    bound = ising_theory.mean_field_bound(mean, coupling, field)
    assert bound < ising_theory.exact_log_partition(shape, coupling, field)
    rng = np.random.default_rng(0)
    for _ in range(100):
        moved = np.clip(mean + 0.05 * rng.normal(size=shape), -0.999, 0.999)
        assert ising_theory.mean_field_bound(moved, coupling, field) < bound


def test_the_bound_is_the_expected_energy_and_the_entropy():
    mean = np.linspace(-0.9, 0.9, 6).reshape(2, 3)
    grids = np.array(list(np.ndindex(*[2] * 6))).reshape(-1, 2, 3)
    q = np.prod(np.where(grids, (1 + mean) / 2, (1 - mean) / 2), axis=(1, 2))
    s = 2.0 * grids - 1.0
    bonds = (s[:, 1:] * s[:, :-1]).sum(axis=(1, 2)) + (s[..., 1:] * s[..., :-1]).sum(axis=(1, 2))
    elbo = np.sum(q * (0.3 * bonds + 0.2 * s.sum(axis=(1, 2)) - np.log(q)))
    assert ising_theory.mean_field_bound(mean, 0.3, 0.2) == pytest.approx(elbo)


def test_no_fixed_point_is_an_error(monkeypatch):
    monkeypatch.setattr(ising_theory, "MAX_SWEEPS", 3)
    for method in (ising_theory.mean_field, ising_theory.bethe_log_partition):
        with pytest.raises(RuntimeError, match="no fixed point in 3 sweeps"):
            method((3, 4), 0.5, 0.1)
