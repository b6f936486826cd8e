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


def transfer(coupling, field):
    """Returns log Z and P(s = 1) by passing messages over the four columns of three spins."""
    columns = 2.0 * np.array(list(itertools.product([0, 1], repeat=3))) - 1.0
    within = coupling * (columns[:, 1:] * columns[:, :-1]).sum(axis=1) + field * columns.sum(axis=1)
    between = np.exp(coupling * columns @ columns.T)
    weight = np.exp(within)
    forward, backward = [weight], [np.ones(8)]
    for _ in range(3):
        forward.append(weight * (between.T @ forward[-1]))
        backward.append(between @ (weight * backward[-1]))
    joint = np.array(forward) * np.array(backward[::-1])
    probs = joint / joint.sum(axis=1, keepdims=True)
    return np.log(joint[0].sum()), (probs @ (columns > 0)).T


def test_reference_equals_transfer_matrices():
    reference = models.ising.reference()
    log_evidence, mean = transfer(0.3, 0.1)
    assert reference.log_evidence == pytest.approx(log_evidence, rel=1e-12)
    np.testing.assert_allclose(reference.mean["s"], mean, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_log_joint_sums_to_the_reference():
    grids = np.array(list(itertools.product([0, 1], repeat=12))).reshape(-1, 3, 4)
    log_joint = jax.jit(jax.vmap(models.ising.log_joint, in_axes=(None, 0)))
    log_weights = log_joint(models.ising.data(), {"s": jnp.asarray(grids)})
    total = jax.scipy.special.logsumexp(log_weights)
    assert total == pytest.approx(models.ising.reference().log_evidence, rel=1e-12)
