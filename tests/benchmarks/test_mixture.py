import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import bbvi
from benchmarks import mixture
from models import wine_mixture


def test_exact_elbo_is_the_mean_log_weight(key):
    x = mixture.data(20)
    factors = mixture.best_assignments(x, mixture.start(x).loc, np.full((5, 2), -1.0))
    guide = bbvi.MeanField({"mu": bbvi.Normal((5, 2)), "c": bbvi.Categorical(5, (20,))})
    phi = guide.init(key, x)._replace(
        normal=jnp.stack([jnp.ravel(jnp.asarray(leaf, jnp.float32)) for leaf in factors[:2]]),
        families={"c": {"logits": jnp.asarray(factors.logits, jnp.float32)}},
    )
    problem = bbvi.Problem(wine_mixture.log_joint_gather, guide)
    params = bbvi.Params(phi)
    z, log_q = problem.sample_and_log_q(problem.base_noise(jax.random.key(1), 100_000), params, x)
    log_weights = np.asarray(problem.log_p(params, x, z) - log_q, np.float64)
    error = log_weights.std() / np.sqrt(len(log_weights))
    assert error < 0.01 * abs(log_weights.mean())
    assert abs(mixture.exact_elbo(x, factors) - log_weights.mean()) < 5.0 * error


def test_coordinate_ascent_climbs_to_a_maximum():
    x = mixture.data(200)
    run = mixture.coordinate_ascent(x, mixture.start(x))
    states = [run.advance(run.state)]
    for _ in range(100):
        states.append(run.advance(states[-1]))
    elbos = [mixture.exact_elbo(x, state) for state in states]
    assert np.all(np.diff(elbos) > -1e-9 * abs(elbos[-1]))
    rng = np.random.default_rng(0)
    for leaf in ("loc", "log_scale", "logits"):
        value = np.asarray(getattr(states[-1], leaf))
        moved = states[-1]._replace(**{leaf: value + 0.01 * rng.normal(size=value.shape)})
        assert mixture.exact_elbo(x, moved) < elbos[-1]


def test_assignments_are_the_best_for_their_means():
    x = mixture.data(50)
    begin = mixture.start(x)
    best = mixture.best_assignments(x, begin.loc, begin.log_scale)
    np.testing.assert_allclose(special.softmax(best.logits, axis=1).sum(axis=1), 1.0)
    assert mixture.exact_elbo(x, best) > mixture.exact_elbo(x, begin)


@pytest.mark.slow
def test_quick_run(tmp_path):
    out = tmp_path / "mixture.json"
    # NumPyro relies on broadcasting, and every contestant runs from its start twice.
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        mixture.main(["--quick", "--out", str(out)])
    (case,) = json.loads(out.read_text())["cases"]
    final = {row["method"]: row["trace"][-1]["elbo"] for row in case["methods"]}
    assert max(final.values()) < case["cavi_elbo"] + 1e-3 * abs(case["cavi_elbo"])
    assert (
        final["bbvi score function, adaptive; adam(0.05)"]
        > final["bbvi score function, full signal; adam(0.05)"]
    )
