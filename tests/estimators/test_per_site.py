import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bbvi
from bbvi.testing import check_mean, normal_problem, replicate_gradients
from tests.estimators.oracles import estimate, gauss_hermite

ENTROPIES = ["closed_form", "monte_carlo", "stick_the_landing"]


def mixed_problem():
    """A Bernoulli switches the mean of a normal under a log joint that is no polynomial."""

    def log_joint(x, z, theta):
        b = z["b"].astype(theta.dtype)
        wave = 0.8 * jnp.sin(2 * z["z"])
        return theta * b - jnp.logaddexp(theta, 0.0) - 0.5 * (z["z"] - 2 * b + 1) ** 2 + wave

    guide = bbvi.MeanField({"b": bbvi.Bernoulli(), "z": bbvi.Normal()})
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(0), None, jnp.asarray(0.4))
    normal, families = jnp.array([[0.3], [-0.4]]), {"b": {"logits": jnp.asarray(-0.5)}}
    params = params._replace(guide=params.guide._replace(normal=normal, families=families))
    nodes, weights = gauss_hermite(60)

    def loss(params):
        (loc,), (log_scale,) = params.guide.normal
        prob = jax.nn.sigmoid(params.guide.families["b"]["logits"])
        total = log_scale + 0.5 * jnp.log(2 * jnp.pi * jnp.e)
        total -= prob * jnp.log(prob) + (1 - prob) * jnp.log1p(-prob)
        for b, mass in ((0, 1 - prob), (1, prob)):
            z = {"b": jnp.full(60, b), "z": loc + jnp.exp(log_scale) * nodes}
            values = jax.vmap(lambda z: log_joint(None, z, params.model))(z)
            total += mass * jnp.dot(weights, values)
        return -total

    return problem, params, ravel_pytree(jax.grad(loss)(params))[0]


def mixed(entropy, baseline=None, num_samples=4):
    return bbvi.PerSite(
        {
            "z": bbvi.Reparameterization(num_samples, entropy),
            "b": bbvi.ScoreFunction(num_samples, baseline or bbvi.LeaveOneOut()),
        }
    )


@pytest.mark.parametrize(
    "estimator",
    [
        *(mixed(entropy) for entropy in ENTROPIES),
        mixed("closed_form", bbvi.NoBaseline()),
        bbvi.PerSite({"b": bbvi.ScoreFunction(8), "z": bbvi.ScoreFunction(8)}),
        bbvi.ScoreFunction(8),
        bbvi.VarGrad(8),
    ],
    ids=repr,
)
def test_unbiased_on_mixed_latents(estimator):
    problem, params, exact = mixed_problem()
    estimator.validate(problem, params, None)
    check_mean(
        replicate_gradients(jax.random.key(1), estimator, problem, params, None, 30_000), exact
    )


def test_default_on_mixed_latents_is_unbiased():
    problem, params, exact = mixed_problem()
    estimator = bbvi.estimators.default_estimator(problem, params, None)
    check_mean(
        replicate_gradients(jax.random.key(1), estimator, problem, params, None, 10_000), exact
    )


@pytest.mark.parametrize("entropy", ENTROPIES)
def test_order_of_the_sites_changes_nothing(entropy, key):
    problem, params, _ = mixed_problem()
    forward = mixed(entropy)
    backward = bbvi.PerSite(dict(reversed(forward.estimators)))
    noise = forward.draw(key, problem)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        estimate(forward, problem, params, noise),
        estimate(backward, problem, params, noise),
    )


def test_score_function_at_every_site_is_the_score_function(key):
    problem, params, _ = mixed_problem()
    score = bbvi.ScoreFunction(4)
    noise = score.draw(key, problem)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        estimate(bbvi.PerSite({"b": score, "z": score}), problem, params, noise),
        estimate(score, problem, params, noise),
    )


@pytest.mark.parametrize("entropy", ENTROPIES)
def test_pathwise_at_every_site_is_reparameterization(entropy, key):
    problem, params, _ = normal_problem()
    pathwise = bbvi.Reparameterization(4, entropy)
    noise = pathwise.draw(key, problem)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        estimate(bbvi.PerSite({"z": pathwise}), problem, params, noise).grads,
        estimate(pathwise, problem, params, noise).grads,
    )


def test_each_site_has_its_own_baseline_state():
    problem, params, _ = mixed_problem()
    averages = {
        name: bbvi.ScoreFunction(1, bbvi.MovingAverage(d)) for name, d in (("b", 0.5), ("z", 0.9))
    }
    estimator = bbvi.PerSite(averages)
    state = estimator.init(problem, params, None)
    for i in range(2):
        noise = estimator.draw(jax.random.key(i), problem)
        _, state = estimator.estimate(noise, problem, params, None, state)
    assert state["b"].baseline.weight == pytest.approx(1 - 0.5**2)
    assert state["z"].baseline.weight == pytest.approx(1 - 0.9**2)


def test_default_scores_only_the_sites_it_must():
    """The default is pathwise where it can be: here in one of two normals."""

    def log_joint(x, z):
        return -((z["smooth"] - jnp.round(z["rough"])) ** 2)

    guide = bbvi.MeanField({"rough": bbvi.Normal(), "smooth": bbvi.Normal()})
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(0), None)
    default = bbvi.estimators.default_estimator(problem, params, None)
    assert {name: type(e) for name, e in default.estimators} == {
        "rough": bbvi.ScoreFunction,
        "smooth": bbvi.Reparameterization,
    }
    default.validate(problem, params, None)
    with pytest.raises(ValueError, match="not differentiable in latent 'rough'"):
        bbvi.PerSite(dict.fromkeys(("rough", "smooth"), bbvi.Reparameterization())).validate(
            problem, params, None
        )


def test_full_rank_and_bernoulli_in_a_product():
    """Sites of other guides than the mean field: names are those of ``guide.sites()``."""
    sites = {"w": bbvi.Normal((2,)), "c": bbvi.Bernoulli()}
    guide = bbvi.Product(bbvi.FullRank({"w": sites["w"]}), bbvi.MeanField({"c": sites["c"]}))
    problem = bbvi.Problem(lambda x, z: -jnp.sum((z["w"] - z["c"]) ** 2), guide)
    params = problem.init(jax.random.key(1), None)
    grads = []
    for pathwise in (bbvi.Reparameterization(4, e) for e in ("closed_form", "monte_carlo")):
        estimator = bbvi.PerSite({"w": pathwise, "c": bbvi.ScoreFunction(4, bbvi.NoBaseline())})
        estimator.validate(problem, params, None)
        noise = estimator.draw(jax.random.key(2), problem)
        grads.append(estimate(estimator, problem, params, noise).grads.guide[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *grads)


# Errors.


@pytest.mark.parametrize("names", [("b",), ("z",), ("b", "z", "w")])
def test_names_must_be_the_guides_sites(names):
    problem, params, _ = mixed_problem()
    estimator = bbvi.PerSite({name: bbvi.ScoreFunction(4) for name in names})
    with pytest.raises(ValueError, match=r"estimator names sites .*, the guide's are \['b', 'z'\]"):
        estimator.validate(problem, params, None)


def test_num_samples_must_agree():
    with pytest.raises(ValueError, match=r"num_samples must agree: got \{.b.: 4, .z.: 8\}"):
        bbvi.PerSite({"b": bbvi.ScoreFunction(4), "z": bbvi.Reparameterization(8)})


def test_needs_estimators_of_single_sites():
    with pytest.raises(TypeError, match=r"site 'b': PerSite combines .*, got VarGrad"):
        bbvi.PerSite({"b": bbvi.VarGrad(4)})
    with pytest.raises(ValueError, match="PerSite needs an estimator for every site"):
        bbvi.PerSite({})


def test_pathwise_at_a_discrete_site():
    problem, params, _ = mixed_problem()
    both = bbvi.PerSite({"b": bbvi.Reparameterization(4), "z": bbvi.Reparameterization(4)})
    with pytest.raises(ValueError, match=r"site 'b' \(Bernoulli\) is not reparameterizable"):
        both.validate(problem, params, None)
