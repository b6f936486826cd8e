"""The starting point: the mode of the unconstrained posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi

COVARIANCE = jnp.array([[4.0, 1.9], [1.9, 1.0]])
CENTRE = jnp.array([300.0, -7.0])


def correlated(x, z):
    return jax.scipy.stats.multivariate_normal.logpdf(z["w"], x, COVARIANCE)


@pytest.mark.parametrize(
    "guide",
    [
        bbvi.MeanField({"w": bbvi.Normal((2,))}),
        bbvi.FullRank({"w": bbvi.Normal((2,))}),
        bbvi.LowRank({"w": bbvi.Normal((2,))}, rank=1),
    ],
    ids=lambda guide: type(guide).__name__,
)
def test_the_mode_of_a_correlated_gaussian_far_away(guide):
    z = bbvi.find_mode(correlated, guide, CENTRE)
    np.testing.assert_allclose(z["w"], CENTRE, atol=0.05)
    params = guide.params_at(z, 1.0)
    elbo = bbvi.fit(
        correlated, guide, CENTRE, init_params=params, num_steps=1, progress=False
    ).elbo(jax.random.key(1), 1000)
    assert elbo.value > -30.0  # from the guide's own start it is below -1e5


def test_the_volume_of_the_bijector_counts():
    # Of log z, where z is Gamma(3, 2): the mode of u = log z is log(3 / 2), not log((3 - 1) / 2).
    def log_joint(x, z):
        return 2.0 * jnp.log(z["tau"]) - 2.0 * z["tau"]

    z = bbvi.find_mode(log_joint, bbvi.MeanField({"tau": bbvi.LogNormal()}))
    np.testing.assert_allclose(z["tau"], 1.5, rtol=1e-3)


def test_learned_parameters_are_held_fixed():
    z = bbvi.find_mode(
        lambda x, z, theta: -0.5 * (z - theta) ** 2,
        bbvi.MeanField(bbvi.Normal()),
        model_params=jnp.array(4.0),
    )
    np.testing.assert_allclose(z, 4.0, rtol=1e-4)


def test_bad_input():
    with pytest.raises(TypeError, match=r"whose sites are all bbvi\.Normal"):
        bbvi.find_mode(correlated, bbvi.MeanField({"w": bbvi.Gamma((2,))}), CENTRE)
    with pytest.raises(ValueError, match="not finite anywhere on the way"):
        bbvi.find_mode(
            lambda x, z: jnp.log(-1.0 - z["w"] ** 2), bbvi.MeanField({"w": bbvi.Normal()})
        )
