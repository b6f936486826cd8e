import jax
import numpy as np
import optax
import pytest
from scipy import stats

import bbvi
from models import large_mixture

ESTIMATOR = bbvi.PerSite(
    {
        **dict.fromkeys(("weights", "means", "scales"), bbvi.Reparameterization(2)),
        "assignment": bbvi.LocalExpectation(2),
    }
)


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_scipy(draw):
    x, z = large_mixture.data(), draw("large_mixture")
    weights, means, scales, c = (
        np.asarray(z[name]) for name in ("weights", "means", "scales", "assignment")
    )
    expected = stats.dirichlet.logpdf(weights, np.ones(4))
    expected += stats.norm.logpdf(means, 0.0, 5.0).sum()
    expected += stats.halfnorm.logpdf(scales, scale=2.0).sum()
    for k in range(4):
        own = np.asarray(x)[c == k]
        expected += len(own) * np.log(weights[k])
        expected += stats.multivariate_normal.logpdf(own, means[k], np.diag(scales[k] ** 2)).sum()
    assert large_mixture.log_joint(x, z) == pytest.approx(expected, rel=1e-12)


def test_points_are_drawn_from_the_truth():
    """In any number; moments of each component within five standard errors."""
    points, c = large_mixture.draw_data(100_000)
    assert points.shape == (100_000, 2)
    for k, weight in enumerate(large_mixture.TRUTH["weights"]):
        own, scale = points[c == k], large_mixture.TRUTH["scales"][k]
        errors = [
            (len(own) / 1e5 - weight) / np.sqrt(weight * (1.0 - weight) / 1e5),
            *(own.mean(axis=0) - large_mixture.TRUTH["means"][k]) / scale * np.sqrt(len(own)),
            *(own.std(axis=0) / scale - 1.0) * np.sqrt(2.0 * len(own)),
        ]
        assert np.abs(errors).max() < 5.0


def test_network_of_the_posterior_is_the_posterior():
    x = large_mixture.data(50)
    network = large_mixture.posterior_network(**large_mixture.TRUTH)
    probs = jax.nn.softmax(large_mixture.Encoder().apply(network, x))
    joint = np.stack(
        [
            weight * stats.norm.pdf(np.asarray(x), mean, scale).prod(axis=1)
            for weight, mean, scale in zip(*large_mixture.TRUTH.values(), strict=True)
        ],
        axis=1,
    )
    np.testing.assert_allclose(probs, joint / joint.sum(axis=1, keepdims=True), atol=1e-5)


def fitted(guide, x, init_params, batch_size, num_steps):
    return bbvi.fit(
        *(large_mixture.log_joint, guide, x),
        estimator=ESTIMATOR,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, num_steps)),
        init_params=init_params,
        batch_size=batch_size,
        num_steps=num_steps,
        progress=False,
    )


def test_batches_reach_the_optimum_of_all_data():
    """To a fifth of a nat, of more than a hundred from a start that the points are moved off."""
    x, guide = large_mixture.data(300), large_mixture.local(300)
    start = large_mixture.start(guide, x + 1.0)
    whole = fitted(guide, x, start, None, 1000).history.loss
    assert whole[0] - whole[-300:].mean() > 100.0
    batched = fitted(guide, x, start, 60, 4000)
    elbo = batched.at(x, rows=np.arange(300)).elbo(jax.random.key(1), 4000)
    assert elbo.standard_error < 0.02
    assert elbo.value == pytest.approx(-whole[-300:].mean(), abs=0.2)


def test_truth_is_found_from_a_hundred_thousand_points():
    x, guide = large_mixture.data(100_000), large_mixture.amortized(100_000)
    result = fitted(guide, x, large_mixture.start(guide, x), 500, 800)
    shared = guide.guides[0]
    found = shared.sample(shared.base_noise(jax.random.key(1)), result.params.guide[0], None)
    gaps = np.linalg.norm(found["means"][:, None] - large_mixture.TRUTH["means"][None], axis=2)
    order = gaps.argmin(axis=0)
    assert sorted(order) == [0, 1, 2, 3]
    for name, tolerance in (("weights", 0.01), ("means", 0.03), ("scales", 0.03)):
        true = large_mixture.TRUTH[name]
        np.testing.assert_allclose(found[name][order], true, rtol=0.0, atol=tolerance)
