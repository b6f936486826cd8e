"""The conformance checks must catch what they are for: known bugs are planted here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import (
    bernoulli_problem,
    check_estimator,
    check_guide,
    check_mean,
    check_zero_mean,
    exact_bernoulli_gradient,
    normal_problem,
    replicate_gradients,
)


@dataclasses.dataclass(frozen=True)
class BiasedVarGrad(bbvi.VarGrad):
    """With the 1/S variance: (S - 1)/S of the gradient."""

    def surrogate(self, noise, problem, params, x, state):
        scalar, (log_weights, state) = super().surrogate(noise, problem, params, x, state)
        mean_log_p = jnp.mean(
            problem.log_p(params, x, problem.sample(noise, jax.lax.stop_gradient(params), x))
        )
        shrunk = (scalar + mean_log_p) * (self.num_samples - 1) / self.num_samples
        return shrunk - mean_log_p, (log_weights, state)


@dataclasses.dataclass(frozen=True)
class Greedy(bbvi.MovingAverage):
    """Updates first: the average has seen the sample it is subtracted from."""

    def __call__(self, state, signal, x):
        _, state = super().__call__(state, signal, x)
        return jnp.full_like(signal, state.total / state.weight), state


@dataclasses.dataclass(frozen=True)
class InSample(bbvi.Baseline):
    """The mean of all the step's signals, its own included."""

    def __call__(self, state, signal, x):
        return jnp.broadcast_to(jnp.mean(signal, axis=0), signal.shape), state


@dataclasses.dataclass(frozen=True)
class NoScoreTerm(bbvi.SurrogateEstimator):
    """Minus the mean log weight differentiated at held draws: right in theta, wrong in phi."""

    def surrogate(self, noise, problem, params, x, state):
        z = problem.sample(noise, jax.lax.stop_gradient(params), x)
        log_weights = problem.log_p(params, x, z) - problem.log_q(params, x, z)
        return -jnp.mean(log_weights), (log_weights, state)


@dataclasses.dataclass(frozen=True)
class WrongSign(bbvi.ScoreFunction):
    """Climbs where it should descend."""

    def estimate(self, noise, problem, params, x, state):
        estimate, state = super().estimate(noise, problem, params, x, state)
        return estimate._replace(grads=jax.tree.map(jnp.negative, estimate.grads)), state


@dataclasses.dataclass(frozen=True)
class ForgetsTheta(bbvi.ScoreFunction):
    """No gradient for the model's learned parameters."""

    def estimate(self, noise, problem, params, x, state):
        estimate, state = super().estimate(noise, problem, params, x, state)
        model = jax.tree.map(jnp.zeros_like, estimate.grads.model)
        return estimate._replace(grads=estimate.grads._replace(model=model)), state


@pytest.mark.parametrize(
    "estimator",
    [
        BiasedVarGrad(4),
        bbvi.ScoreFunction(2, Greedy(0.5)),
        bbvi.ScoreFunction(4, InSample()),
        NoScoreTerm(8),
        WrongSign(8),
        ForgetsTheta(8),
    ],
    ids=lambda e: type(getattr(e, "baseline", e)).__name__ + type(e).__name__,
)
def test_biased_estimators_are_caught(estimator):
    with pytest.raises(AssertionError, match="biased: coordinate"):
        check_estimator(estimator)


@dataclasses.dataclass(frozen=True)
class LandedBound(bbvi.Reparameterization):
    """Holds the parameters of log q fixed, whatever the objective."""

    def surrogate(self, noise, problem, params, x, state):
        z = problem.sample(noise, params, x)
        log_p, log_q = problem.by_component(jax.lax.stop_gradient(params), x, z)
        return problem.objective(log_p - log_q), (log_p - log_q, state)


def test_multi_sample_bound_landed_would_be_biased():
    """Why ``validate`` refuses it: the mean of the gradient is another one."""
    elbo, params, _ = normal_problem()
    problem = dataclasses.replace(elbo, objective=bbvi.Iwae(2))

    def gradients(estimator, seed):
        return replicate_gradients(jax.random.key(seed), estimator, problem, params, None, 40_000)

    exact = gradients(bbvi.Reparameterization(2), 1).mean(axis=0)
    check_mean(gradients(bbvi.Reparameterization(2), 2), exact)
    with pytest.raises(AssertionError, match="biased"):
        check_mean(gradients(LandedBound(2), 3), exact)


@dataclasses.dataclass(frozen=True)
class OtherSignOfLoss(bbvi.ScoreFunction):
    def estimate(self, noise, problem, params, x, state):
        estimate, state = super().estimate(noise, problem, params, x, state)
        return estimate._replace(loss=-estimate.loss), state


@dataclasses.dataclass(frozen=True)
class Picky(bbvi.ScoreFunction):
    def validate(self, problem, params, x):
        raise ValueError("not this one")


def test_other_failures_are_caught():
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_estimator(OtherSignOfLoss(8))
    with pytest.raises(AssertionError, match=r"no target accepts .*not this one"):
        check_estimator(Picky(8))


def test_check_mean_needs_power(key):
    noisy = 1.0 + 10.0 * jax.random.normal(key, (100, 2))
    with pytest.raises(AssertionError, match=r"no power: half-width .* use more replicates"):
        check_mean(noisy, jnp.ones(2))
    check_mean(noisy, jnp.ones(2), power=20.0)


def test_check_mean_sees_one_bad_coordinate(key):
    draws = 0.1 * np.asarray(jax.random.normal(key, (10_000, 3)))
    exact = np.array([1.0, 0.0, -1.0])
    check_mean(draws + exact, exact)
    with pytest.raises(AssertionError, match="biased: coordinate 1 "):
        check_mean(draws + np.array([0.0, 0.02, 0.0]) + exact, exact)


def test_check_mean_without_variance():
    check_mean(np.ones((10, 1)), np.ones(1))
    with pytest.raises(AssertionError, match="biased"):
        check_mean(np.full((10, 1), 1.001), np.ones(1))


def test_check_mean_false_alarms(key):
    """A correct estimator passes: none of 200 checks at a chance of 1e-6 each."""
    for draws in np.asarray(jax.random.normal(key, (200, 2_000, 2))):
        check_mean(1.0 + draws, np.ones(2), power=0.2)


def test_check_zero_mean(key):
    draws = np.asarray(jax.random.normal(key, (10_000, 2)))
    check_zero_mean(draws, "score")
    with pytest.raises(AssertionError, match=r"score: mean .* in coordinate 1"):
        check_zero_mean(draws + np.array([0.0, 0.1]), "score")


@pytest.mark.parametrize("replicates", [10, 2_500])
def test_replicates_are_independent_draws(replicates):
    problem, params, _ = normal_problem()
    gradients = replicate_gradients(
        jax.random.key(0), bbvi.Reparameterization(1), problem, params, None, replicates
    )
    assert gradients.shape == (replicates, 3)
    assert len(np.unique(gradients[:, 0])) > 0.99 * replicates


def test_exact_bernoulli_gradient_in_closed_form():
    """A product target: sigmoid'(eta) (eta - eta0) for each logit."""
    logits, target = jnp.array([0.5, -1.0]), jnp.array([1.2, 0.3])
    guide = bbvi.MeanField({"b": bbvi.Bernoulli((2,))})
    problem = bbvi.Problem(lambda x, z: jnp.dot(target, z["b"]), guide)
    params = problem.init(jax.random.key(0), None)
    params = params._replace(guide=params.guide._replace(families={"b": {"logits": logits}}))
    exact = ravel_pytree(exact_bernoulli_gradient(problem, params, None))[0]
    prob = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(exact, prob * (1 - prob) * (logits - target), rtol=1e-5)


def test_built_in_gradients_are_not_small():
    """Else the checks against them would mean little."""
    bernoulli, at_bernoulli = bernoulli_problem()
    _, at_normal, normal_loss = normal_problem()
    for exact in (
        exact_bernoulli_gradient(bernoulli, at_bernoulli, None),
        jax.grad(normal_loss)(at_normal),
    ):
        assert float(jnp.abs(ravel_pytree(exact.guide)[0]).max()) > 0.1
        assert float(jnp.abs(ravel_pytree(exact.model)[0]).max()) > 0.1


class Exponential(bbvi.Guide):
    """Exponentials by rate exp(phi): a correct guide whose base noise is a key."""

    reparameterized = True

    def init(self, key, x):
        return jnp.asarray(0.3)

    def sample(self, key, params, x):
        return jax.random.exponential(key) * jnp.exp(-params)

    def log_prob(self, params, x, z):
        return params - z * jnp.exp(params)


class Unnormalised(Exponential):
    def log_prob(self, params, x, z):
        return -z * jnp.exp(params)


class OutOfStep(Exponential):
    def sample_and_log_prob(self, noise, params, x):
        z = self.sample(noise, params, x)
        return z, self.log_prob(params, x, z) + 0.1


class Stopped(Exponential):
    def sample(self, key, params, x):
        return jax.lax.stop_gradient(super().sample(key, params, x))


class WrongEntropy(Exponential):
    def site_entropies(self, params, x, z):
        return {"latents": 1.0 + params}  # it is 1 - phi


class WrongSite(Exponential):
    def site_log_probs(self, params, x, z):
        return {"other": self.log_prob(params, x, z)}


def test_check_guide_accepts_a_correct_guide():
    check_guide(Exponential())


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Unnormalised(), "score: mean"),
        (OutOfStep(), "Not equal to tolerance"),
        (Stopped(), "reparameterized, but draws have no gradient"),
        (WrongEntropy(), "entropy and minus log density: mean"),
        (WrongSite(), "log densities of {'other'} for sites"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_wrong_guides_are_caught(guide, message):
    with pytest.raises(AssertionError, match=message):
        check_guide(guide)


@pytest.mark.parametrize(
    "guide",
    [
        bbvi.MeanField({"a": bbvi.Normal((2,)), "b": bbvi.Bernoulli(), "c": bbvi.Gamma()}),
        bbvi.FullRank({"w": bbvi.Normal((2,)), "s": bbvi.LogNormal()}),
    ],
    ids=repr,
)
def test_check_guide_accepts_built_in_guides(guide):
    check_guide(guide, num_samples=4_000)
