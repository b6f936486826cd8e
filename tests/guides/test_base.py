"""What every guide gets for free, and what a guide of the user's own must do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bbvi
from bbvi.testing import check_guide


@dataclasses.dataclass(frozen=True)
class Exponential(bbvi.Guide):
    """q(z) = r exp(-r z) with log r = phi + offset * x."""

    offset: float = 0.0
    wrong: float = 0.0
    reparameterized = True

    def init(self, key, x):
        return jnp.zeros(())

    def sample(self, key, params, x):
        return jax.random.exponential(key) * jnp.exp(-params - self._shift(x))

    def log_prob(self, params, x, z):
        log_rate = params + self._shift(x)
        return (1 + self.wrong) * log_rate - z * jnp.exp(log_rate)

    def _shift(self, x):
        return 0.0 if x is None else self.offset * x


def test_a_guide_of_three_methods_is_complete():
    check_guide(Exponential(), num_samples=4000)
    (site,) = Exponential().sites()
    assert (site.name, site.family, site.reparameterized) == ("latents", "Exponential", True)


def test_a_guide_may_read_the_data():
    check_guide(Exponential(offset=0.5), jnp.array(2.0), num_samples=4000)


def test_the_check_finds_a_wrong_normaliser():
    with pytest.raises(AssertionError, match="score"):
        check_guide(Exponential(wrong=0.5), num_samples=4000)


def test_defaults_are_consistent():
    guide, params = Exponential(), jnp.array(0.3)
    z, log_q = guide.sample_and_log_prob(jax.random.key(0), params, None)
    np.testing.assert_allclose(log_q, stats.expon(scale=np.exp(-0.3)).logpdf(z), rtol=1e-5)
    again, entropy = guide.sample_and_entropy(jax.random.key(0), params, None)
    assert z == again
    assert entropy == -log_q


def test_fit_with_a_guide_of_the_users_own():
    def log_joint(x, z):  # the posterior is exponential with rate 2
        return -2.0 * z

    result = bbvi.fit(log_joint, Exponential(), num_steps=1500, progress=False)
    assert float(result.params.guide) == pytest.approx(np.log(2.0), abs=0.05)


def test_stop_gradient_of_named_sites_only():
    guide = bbvi.MeanField({"a": bbvi.Normal(), "b": bbvi.Normal()})

    def total(z):
        stopped = guide.stop_gradient(z, ["b"])
        return stopped["a"] * 2.0 + stopped["b"] * 3.0

    gradient = jax.grad(total)({"a": jnp.array(1.0), "b": jnp.array(1.0)})
    assert (float(gradient["a"]), float(gradient["b"])) == (2.0, 0.0)


def test_stop_gradient_of_a_lone_latent():
    gradient = jax.grad(lambda z: Exponential().stop_gradient(z, ["latents"]) * 2.0)
    assert float(gradient(jnp.array(1.0))) == 0.0
