import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_counts_bonds():
    """A chessboard breaks all 17 bonds; one flipped corner breaks two."""
    x = models.ising.data()
    chessboard = jnp.asarray(np.indices((3, 4)).sum(axis=0) % 2)
    corner = jnp.ones((3, 4), int).at[0, 0].set(0)
    assert models.ising.log_joint(x, {"s": chessboard}) == pytest.approx(-17 * 0.3)
    assert models.ising.log_joint(x, {"s": corner}) == pytest.approx((17 - 4) * 0.3 + 10 * 0.1)


def transfer(coupling, field, num_rows):
    """Returns log Z and P(s = 1) by passing messages over the four columns."""
    columns = 2.0 * np.array(list(itertools.product([0, 1], repeat=num_rows))) - 1.0
    within = coupling * (columns[:, 1:] * columns[:, :-1]).sum(axis=1) + field * columns.sum(axis=1)
    between = np.exp(coupling * columns @ columns.T)
    weight = np.exp(within)
    forward, backward = [weight], [np.ones(len(columns))]
    for _ in range(3):
        forward.append(weight * (between.T @ forward[-1]))
        backward.append(between @ (weight * backward[-1]))
    joint = np.array(forward) * np.array(backward[::-1])
    probs = joint / joint.sum(axis=1, keepdims=True)
    return np.log(joint[0].sum()), (probs @ (columns > 0)).T


@pytest.mark.parametrize(
    ("reference", "num_rows"), [(models.ising.reference, 3), (models.ising.reference_matrix, 4)]
)
def test_reference_equals_transfer_matrices(reference, num_rows):
    answer = reference()
    log_evidence, mean = transfer(0.3, 0.1, num_rows)
    assert answer.log_evidence == pytest.approx(log_evidence, rel=1e-12)
    np.testing.assert_allclose(np.reshape(answer.mean["s"], (num_rows, 4)), mean, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(4, 4), (2, 5)])
def test_matrix_equals_slices(shape):
    by_matrix = jax.jit(models.ising.make_log_joint_matrix(shape))
    for s in np.random.default_rng(0).integers(2, size=(10, *shape)):
        expected = models.ising.log_joint(models.ising.data(), {"s": jnp.asarray(s)})
        actual = by_matrix(models.ising.data_matrix(shape), {"s": jnp.asarray(s.reshape(-1))})
        assert actual == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


@pytest.mark.usefixtures("x64")
def test_log_joint_sums_to_the_reference():
    grids = np.array(list(itertools.product([0, 1], repeat=12))).reshape(-1, 3, 4)
    log_joint = jax.jit(jax.vmap(models.ising.log_joint, in_axes=(None, 0)))
    log_weights = log_joint(models.ising.data(), {"s": jnp.asarray(grids)})
    total = jax.scipy.special.logsumexp(log_weights)
    assert total == pytest.approx(models.ising.reference().log_evidence, rel=1e-12)
