import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import models


@pytest.mark.usefixtures("x64")
def test_reference_equals_enumeration():
    paths = np.array(list(itertools.product([0, 1], repeat=10)))
    log_joint = jax.jit(jax.vmap(models.hidden_markov.log_joint, in_axes=(None, 0)))
    log_probs = np.asarray(log_joint(models.hidden_markov.data(), {"z": jnp.asarray(paths)}))
    reference = models.hidden_markov.reference()
    assert reference.log_evidence == pytest.approx(special.logsumexp(log_probs), rel=1e-12)
    smoothed = special.softmax(log_probs) @ paths
    np.testing.assert_allclose(reference.probs["z"][:, 1], smoothed, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_transitions_are_read_from_row_to_column():
    x = models.hidden_markov.data() | {"transition": jnp.asarray([[0.9, 0.1], [0.4, 0.6]])}
    z = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 0])
    emissions = stats.norm.logpdf(x["flow"], np.array([11.0, 8.5])[z], 1.3).sum()
    transitions = np.log(0.9 * 0.1 * 0.6**6 * 0.4)
    actual = models.hidden_markov.log_joint(x, {"z": jnp.asarray(z)})
    assert actual == pytest.approx(np.log(0.5) + transitions + emissions, rel=1e-12)
