"""The annealed evidence lower bound."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.infer.loop import Loop
from bbvi.infer.step import Algorithm
from bbvi.tempering import tempered


def conjugate(x, z, theta):
    """mu ~ N(theta, 2), x ~ N(mu, 1)."""
    return norm.logpdf(z["mu"], theta, 2.0) + norm.logpdf(x, z["mu"]).sum()


X = jnp.array([1.8, 2.2, 2.0, 2.4])
GUIDE = bbvi.MeanField({"mu": bbvi.Normal()})


def run(objective, estimator=None, **options):
    return bbvi.fit(
        conjugate,
        GUIDE,
        X,
        key=jax.random.key(3),
        estimator=estimator,
        objective=objective,
        model_params=jnp.asarray(0.5),
        progress=False,
        **options,
    )


# What a step does.


@pytest.mark.parametrize(
    "estimator",
    [
        bbvi.Reparameterization(4),
        bbvi.ScoreFunction(4),
        bbvi.MeasureValued(2),
        bbvi.PerSite({"mu": bbvi.ScoreFunction(4)}),
    ],
    ids=repr,
)
def test_power_one_is_the_elbo_bit_for_bit(estimator):
    # From a point that is given: an annealed run is not started near a mode.
    options = {"init_params": GUIDE.params_at({"mu": -1.0}), "num_steps": 200}
    plain = run(None, estimator, **options)
    same = run(bbvi.Tempered(lambda step: 1.0), estimator, **options)
    assert float(plain.params.model) != 0.5
    states = [(run.params, run.state.opt_state, run.state.estimator_state) for run in (same, plain)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    np.testing.assert_array_equal(same.history.loss, plain.history.loss)


def posterior(beta, theta=0.5):
    """Location and scale of the posterior of the log joint to the power beta."""
    precision = beta * (1 / 4 + len(X))
    return beta * (theta / 4 + float(X.sum())) / precision, precision**-0.5


@pytest.mark.parametrize("estimator", [bbvi.Reparameterization(4), bbvi.ScoreFunction(16)])
def test_fixed_point_at_a_power(estimator):
    """Held at 0.1, the posterior of the tempered model, and the tempered loss: minus log Z."""
    beta, theta = 0.1, 0.5
    schedule = optax.constant_schedule(beta)

    def log_joint(x, z):
        return conjugate(x, z, theta)

    init, step = bbvi.make_step(
        log_joint,
        GUIDE,
        objective=bbvi.Tempered(schedule),
        estimator=estimator,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 3000)),
    )
    state, infos = jax.lax.scan(lambda s, _: step(s, X), init(jax.random.key(0), X), length=3000)
    loc, scale = posterior(beta, theta)
    got = GUIDE.site_params(state.params.guide)["mu"]
    np.testing.assert_allclose(got["loc"], loc, atol=0.02 * scale)
    np.testing.assert_allclose(jnp.exp(got["log_scale"]), scale, rtol=0.02)
    grid = jnp.linspace(-20.0, 20.0, 20_001)
    log_p = jax.vmap(lambda mu: log_joint(X, {"mu": mu}))(grid)
    log_z = np.logaddexp.reduce(beta * np.asarray(log_p, np.float64)) + np.log(grid[1] - grid[0])
    np.testing.assert_allclose(np.mean(infos.loss[-500:]), -log_z, atol=0.02)


def test_learned_parameters_are_trained_and_the_power_is_not():
    """The gradient has the structure of the parameters, and theta's is tempered too."""
    objective = bbvi.Tempered(lambda step: jnp.where(step < 5, 0.25, 1.0))
    traced = run(objective, num_steps=10, trace_fn=lambda info: info.grads.model)
    assert traced.history.trace.shape == (10,)
    assert traced.params.model.shape == ()

    def gradient(objective):
        init, step = bbvi.make_step(conjugate, GUIDE, objective=objective)
        params = GUIDE.params_at({"mu": jnp.asarray(1.0)}, 0.3)
        state = init(jax.random.key(0), X, params, model_params=jnp.asarray(0.5))
        return step(state, X)[1].grads.model

    np.testing.assert_allclose(gradient(objective), 0.25 * gradient(bbvi.Elbo()), rtol=1e-5)


def terms(x, z, theta):
    return {
        "prior": norm.logpdf(z["mu"], theta, 2.0),
        "likelihood": norm.logpdf(x, z["mu"]),
    }


def test_only_data_terms_are_tempered():
    log_joint = bbvi.FactorizedLogJoint(
        terms, scopes={"prior": ("mu",)}, data_terms=("likelihood",), num_data=40
    )
    z, theta, beta = {"mu": jnp.asarray(1.2)}, jnp.asarray(0.5), jnp.asarray(0.3)
    by_name = terms(X, z, theta)
    wanted = by_name["prior"] + 0.3 * 10 * by_name["likelihood"].sum()  # N / B = 10
    flat = tempered(log_joint)
    assert isinstance(flat, bbvi.FactorizedLogJoint)
    np.testing.assert_allclose(flat(X, z, (theta, beta)), wanted, rtol=1e-5)
    labels = flat.declared_factors(X, z, (theta, beta)).labels
    assert {label.split(":")[0] for label in labels} == {"prior", "likelihood"}
    plain = tempered(bbvi.FactorizedLogJoint(terms))
    total = by_name["prior"] + by_name["likelihood"].sum()
    np.testing.assert_allclose(plain(X, z, (theta, beta)), 0.3 * total, rtol=1e-5)
    assert tempered(conjugate) == tempered(conjugate)  # so that it compiles once


def test_annealed_data_terms_reach_the_posterior():
    log_joint = bbvi.FactorizedLogJoint(
        lambda x, z: terms(x, z, 0.5), data_terms=("likelihood",), num_data=len(X)
    )
    result = bbvi.fit(
        log_joint,
        GUIDE,
        X,
        objective=bbvi.Tempered(optax.linear_schedule(0.1, 1.0, 500)),
        progress=False,
    )
    got = GUIDE.site_params(result.params.guide)["mu"]
    loc, scale = posterior(1.0)
    np.testing.assert_allclose(got["loc"], loc, atol=0.05 * scale)
    np.testing.assert_allclose(jnp.exp(got["log_scale"]), scale, rtol=0.05)


# What fit does.


def test_nothing_is_decided_before_the_power_is_one():
    """The stopping rule, the rate and the verdict begin where the annealing ends."""
    long = bbvi.Tempered(optax.linear_schedule(0.2, 1.0, 6000))
    result = run(long)
    assert result.status == "converged"
    assert int(result.state.step) >= 6000 + bbvi.Plateau().min_steps
    rates = []
    run(long, num_steps=8000, callbacks=[lambda p: rates.append((p.step, float(p.state.rate)))])
    assert all(rate == 1 for step, rate in rates if step < 7000)
    assert rates[-1][1] == 0.25**3
    # Tempered losses are far below the plain ones: no sign that the run got worse.
    assert result.history.loss[:500].mean() < result.history.loss[-500:].mean() - 1
    elbo = result.elbo(jax.random.key(1), 4000)
    assert abs(elbo.value + result.history.loss[-1000:].mean()) < 0.05


def test_where_the_annealing_ends():
    objective = bbvi.Tempered(optax.linear_schedule(0.1, 1.0, 50))
    assert objective.num_annealing_steps(0, 200) == 50
    assert objective.num_annealing_steps(30, 200) == 20  # a run that is continued
    assert objective.num_annealing_steps(60, 200) == 0
    cycles = bbvi.Tempered(lambda step: jnp.minimum(1.0, 0.1 + (step % 100) / 50) ** (step < 300))
    assert cycles.num_annealing_steps(0, 1000) == 245


def test_drops_of_the_rate_come_after_the_annealing():
    problem = bbvi.Problem(lambda x, z: -0.5 * z["mu"] ** 2, GUIDE)
    loop = Loop(Algorithm(problem, None, None), None, 1000, None, bbvi.Plateau(), False, 200)
    assert loop._drops() == [600, 760, 880]


def clusters(x, z):
    """Five means of twenty data each, whose assignments are summed out."""
    likelihood = norm.logpdf(x[:, None], z["mu"][None], 0.5) - jnp.log(5.0)
    return norm.logpdf(z["mu"], 0.0, 5.0).sum() + jax.nn.logsumexp(likelihood, axis=1).sum()


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_annealing_finds_clusters_from_bad_starts():
    """Of 20 starts all find the five clusters; without annealing 5 end with two at one mean."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.concatenate([rng.normal(m, 0.5, 20) for m in (-8, -4, 0, 4, 8)]))
    guide = bbvi.MeanField({"mu": bbvi.Normal((5,))})

    def number_found(objective):
        elbos = []
        for seed in range(20):
            start = 5 * jax.random.normal(jax.random.key(100 + seed), (5,))
            result = bbvi.fit(
                clusters,
                guide,
                x,
                key=jax.random.key(seed),
                objective=objective,
                num_steps=3000,
                init_params=guide.params_at({"mu": start}, 0.1),
                progress=False,
            )
            elbos.append(result.elbo(jax.random.key(1), 1000).value)
        assert abs(max(elbos) + 250) < 2
        return sum(np.array(elbos) > max(elbos) - 5)

    assert number_found(bbvi.Elbo()) <= 17
    assert number_found(bbvi.Tempered(optax.linear_schedule(0.01, 1.0, 2000))) == 20


def two_modes(x, z):
    """Seven eighths of the mass are at 4."""
    return jnp.logaddexp(norm.logpdf(z["mu"], -4.0) - jnp.log(7.0), norm.logpdf(z["mu"], 4.0))


def test_annealing_finds_the_larger_of_two_modes():
    """Twenty runs from the smaller mode: none leaves it without annealing, all do with it."""
    start = GUIDE.params_at({"mu": jnp.asarray(-4.0)}, 0.5)

    def locations(objective):
        result = bbvi.fit(
            two_modes,
            GUIDE,
            objective=objective,
            init_params=start,
            num_restarts=20,
            num_steps=3000,
            progress=False,
        )
        return np.asarray(result.restarts.states.params.guide.normal)[:, 0, 0]

    assert (locations(None) < -3).all()
    annealed = bbvi.Tempered(optax.linear_schedule(0.02, 1.0, 2000))
    assert (locations(annealed) > 3).all()


# Errors.


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (optax.linear_schedule(0.1, 0.7, 50), r"must end at 1, got 0\.7 at the last step 99"),
        (optax.linear_schedule(0.1, 1.0, 200), r"must end at 1, got 0\.5455 at the last step 99"),
        (optax.linear_schedule(0.0, 1.0, 50), r"must be positive, got 0 at step 0"),
        (optax.linear_schedule(1.5, 1.0, 50), None),
        (lambda step: jnp.where(step == 7, jnp.nan, 1.0), r"must be positive, got nan at step 7"),
    ],
)
def test_schedules_are_checked_before_a_run(schedule, message):
    if message is None:
        assert run(bbvi.Tempered(schedule), num_steps=100).status == "max_steps"
        return
    with pytest.raises(ValueError, match=message):
        run(bbvi.Tempered(schedule), num_steps=100)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (0.5, "must be a function of the step that JAX can trace, got 0.5"),
        (lambda step: 1.0 if step > 5 else 0.1, "must be a function of the step that JAX can tra"),
        (lambda step: jnp.ones(2), r"must return one real number, got float\d+\[2\]"),
        (lambda step: 1, r"must return one real number, got int\d+\[\]"),
    ],
)
def test_schedules_are_checked_when_made(schedule, message):
    with pytest.raises(TypeError, match=message):
        bbvi.Tempered(schedule)


def test_a_step_that_is_not_finite_is_explained():
    """The failing step is repeated with its own power."""
    objective = bbvi.Tempered(optax.linear_schedule(0.1, 1.0, 5))
    with pytest.raises(bbvi.NonFiniteError, match=r"log_joint is nan at \d of 8 draws"):
        bbvi.fit(
            lambda x, z: jnp.log(z["mu"]), GUIDE, objective=objective, num_steps=50, progress=False
        )
