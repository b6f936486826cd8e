import jax
import numpy as np
import optax
import pytest
from scipy import stats

import bbvi
from models import bayesian_network


def by_hand(x, z):
    hidden = np.tanh(x["features"] @ z["hidden_kernel"] / np.sqrt(10.0) + z["hidden_bias"])
    return hidden @ z["output_kernel"] / np.sqrt(20.0) + z["output_bias"]


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_scipy(draw):
    x, z = (
        jax.tree.map(np.asarray, tree)
        for tree in (bayesian_network.data(), draw("bayesian_network"))
    )
    expected = stats.norm.logpdf(x["response"], by_hand(x, z), z["noise"]).sum()
    expected += stats.halfnorm.logpdf(z["noise"])
    expected += sum(stats.norm.logpdf(leaf).sum() for name, leaf in z.items() if name != "noise")
    assert bayesian_network.log_joint(x, z) == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_split_is_standardised_where_the_network_is_trained():
    train, test = bayesian_network.split()
    assert train["features"].shape == (342, 10)
    assert test["response"].shape == (100,)
    for values in train.values():
        np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=1e-12)
        np.testing.assert_allclose(values.std(axis=0), 1.0, rtol=1e-12)
    other = bayesian_network.split(seed=1)[1]["response"]
    assert not np.array_equal(test["response"], other)


def test_scores_of_two_draws_are_those_by_hand():
    means, noise, y = np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([1.0, 2.0]), np.array([1.0, 0.0])
    rmse, log_density = bayesian_network.scores(means, noise, {"response": y})
    densities = stats.norm.pdf(y, means, noise[:, None])
    assert rmse == pytest.approx(np.sqrt(0.5))
    assert log_density == pytest.approx(np.log(densities.mean(axis=0)).mean(), rel=1e-6)


def fitted(train, batch_size, num_steps):
    return bbvi.fit(
        *(bayesian_network.log_joint, bayesian_network.mean_field(), train),
        estimator=bbvi.Reparameterization(2),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.02, num_steps)),
        batch_size=batch_size,
        num_steps=num_steps,
        progress=False,
    )


def test_batches_predict_as_all_data_do_and_no_worse_than_a_line():
    train, test = bayesian_network.split()
    elbos, scores = [], []
    for batch_size, num_steps in ((None, 3000), (57, 6000)):
        result = fitted(train, batch_size, num_steps).at(train)
        draws = result.sample(jax.random.key(1), 500)
        means, noise = bayesian_network.predict(draws, test["features"])
        elbos.append(result.elbo(jax.random.key(2), 1000).value)
        scores.append(bayesian_network.scores(means, noise, test))
    assert elbos[1] == pytest.approx(elbos[0], abs=2.0)
    np.testing.assert_allclose(scores[1], scores[0], atol=0.02)
    rmse, log_density = scores[1]
    linear_rmse, linear_log_density = bayesian_network.linear_scores(train, test)
    assert rmse < linear_rmse < 0.8  # that of the mean response is about 1
    assert log_density > linear_log_density
