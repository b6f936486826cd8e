"""What a printed result says after minibatches, and about other rows of data."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi

N = 40
X = jnp.asarray(np.random.default_rng(0).normal(size=N))
GUIDE = bbvi.Local({"u": bbvi.Normal((N,))})


def log_joint(x, z):
    """Each x is N(0, 2) and each u, given it, N(x / 2, 1 / 2)."""
    shift = z["m"] if "m" in z else 0.0
    prior = norm.logpdf(z["u"]).sum() + norm.logpdf(shift)
    return prior + norm.logpdf(x, z["u"] + shift).sum()


def evidence(x):
    return float(norm.logpdf(x, 0.0, np.sqrt(2.0)).sum() + norm.logpdf(0.0))


@pytest.fixture(scope="module")
def result():
    return bbvi.fit(log_joint, GUIDE, X, batch_size=8, num_steps=3000, progress=False)


def test_local_latents_have_khats_of_their_own(result):
    text = str(result)
    assert re.search(r"ELBO +-\d+.* nats \(of all data, by 16 random batches\)", text)
    khat, share = re.search(r"k-hat +(\S+) in the median of 32 .* in (\d+)%", text).groups()
    assert float(khat) < 0.5
    assert int(share) > 90
    assert "3000 steps (600 epochs)" in text


def test_too_narrow_local_guides_are_told(result):
    rows = jax.tree.map(jnp.zeros_like, result.params.guide)
    rows["u"]["log_scale"] -= 3.0
    params = result.params._replace(guide=rows)
    narrow = bbvi.fit(
        log_joint, GUIDE, X, batch_size=8, num_steps=1, init_params=params.guide, progress=False
    )
    khat, share = re.search(r"k-hat +(\S+) in the median of 32 .* in (\d+)%", str(narrow)).groups()
    assert float(khat) > 0.7
    assert int(share) < 30


def test_shared_latents_have_no_khat_from_batches():
    guide = bbvi.Product(bbvi.MeanField({"m": bbvi.Normal()}), GUIDE)
    found = bbvi.fit(log_joint, guide, X, batch_size=8, num_steps=50, progress=False)
    assert "k-hat    not known from minibatches where the data share latents" in str(found)


def test_elbo_by_batches_is_that_of_all_rows(result):
    """At the posterior it is the log evidence; the error covers the choice of the rows."""
    by_batches = result.elbo(jax.random.key(0), 500)
    all_rows = result.at(X, rows=jnp.arange(N)).elbo(jax.random.key(1), 500)
    exact = evidence(X)
    assert abs(by_batches.value - exact) < 4.5 * by_batches.standard_error + 0.2
    assert abs(all_rows.value - exact) < 4.5 * all_rows.standard_error + 0.2
    assert by_batches.standard_error > 5 * all_rows.standard_error


def test_other_rows_are_evaluated_with_their_own_parameters(result):
    rows = jnp.array([7, 3, 30])
    few = result.at(X[rows], rows=rows)
    u = few.sample(jax.random.key(0), 4000)["u"]
    np.testing.assert_allclose(u.mean(axis=0), X[rows] / 2, atol=0.06)
    found = few.log_evidence(jax.random.key(1), 2000)
    assert found.num_components == 3
    assert abs(found.value - evidence(X[rows])) < 5 * found.standard_error + 1e-3
    with pytest.raises(ValueError, match=r"these 3 are, at\(x, rows=\[...\]\); got rows=None"):
        result.at(X[rows])
    with pytest.raises(ValueError, match=r"got rows=\[1\]"):
        result.at(X[rows], rows=[1])


def test_many_rows_are_evaluated_group_by_group():
    """The log evidence of 300 rows, in groups, is the sum of that of each."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=300))
    guide = bbvi.Local({"u": bbvi.Normal((300,))})
    start = guide.params_at({"u": x / 2}, np.sqrt(0.5))  # the posterior
    fitted = bbvi.fit(
        log_joint,
        guide,
        x,
        batch_size=100,
        num_steps=1,
        optimizer=optax.sgd(0.0),
        init_params=start,
        progress=False,
    )
    weights = fitted.at(x, rows=jnp.arange(300)).component_log_weights(jax.random.key(0), 200)
    assert weights.shape == (200, 300)
    each = norm.logpdf(x, 0.0, np.sqrt(2.0)) + norm.logpdf(0.0) / 300
    np.testing.assert_allclose(weights.mean(axis=0), each, atol=0.05)
