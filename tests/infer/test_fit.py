"""What ``fit`` does when all goes well, and what it says when an argument is wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
import models

X = jnp.array([1.8, 2.2, 2.0, 2.4])
KEY = 0


def guide():
    return bbvi.MeanField({"mu": bbvi.Normal()})


def log_joint(x, z):
    return norm.logpdf(z["mu"], 0.0, 10.0) + norm.logpdf(x, z["mu"]).sum()


def fit(joint=log_joint, family=None, x=X, **options):
    settings = {"num_steps": 200, "progress": False, "optimizer": optax.adam(1e-2)}
    return bbvi.fit(joint, family or guide(), x, **(settings | options))


def test_default_call_converges_to_the_exact_posterior():
    result = bbvi.fit(log_joint, guide(), X, progress=False)
    precision = 4 + 0.01
    row = result.summary()["mu"]
    assert result.status == "converged"
    assert row["mean"] == pytest.approx(8.4 / precision, abs=0.05)
    assert row["sd"] == pytest.approx(precision**-0.5, rel=0.05)


def test_default_estimators_suit_the_model():
    def opaque(x, z):
        return jax.pure_callback(
            lambda mu: np.asarray(-0.5 * (mu - 1.0) ** 2, mu.dtype),
            jax.ShapeDtypeStruct((), z["mu"].dtype),
            z["mu"],
            vmap_method="expand_dims",
        )

    mixed = bbvi.MeanField({"mu": bbvi.Normal(), "b": bbvi.Bernoulli()})
    discrete = bbvi.MeanField({"b": bbvi.Bernoulli()})
    assert isinstance(fit(num_steps=1).estimator, bbvi.Reparameterization)
    result = fit(opaque, x=None, num_steps=1500, optimizer=optax.adam(0.02))
    assert isinstance(result.estimator, bbvi.ScoreFunction)
    assert result.summary()["mu"]["mean"] == pytest.approx(1.0, abs=0.2)
    result = fit(
        lambda x, z: jnp.log(jnp.where(z["b"] == 1, 0.8, 0.2)),
        discrete,
        num_steps=600,
        optimizer=optax.adam(0.05),
    )
    assert isinstance(result.estimator, bbvi.LocalExpectation)
    assert result.summary()["b"]["mean"] == pytest.approx(0.8, abs=0.05)
    assert "k-hat    -inf" in repr(result)  # an exact fit: the log weights are all the same
    result = fit(lambda x, z: norm.logpdf(z["mu"], 1.0 * z["b"]), mixed, num_steps=1)
    assert isinstance(dict(result.estimator.estimators)["b"], bbvi.LocalExpectation)
    assert isinstance(dict(result.estimator.estimators)["mu"], bbvi.Reparameterization)


def test_learned_parameters_reach_the_maximum_likelihood():
    # x_i ~ N(z_i, 1), z_i ~ N(theta, 1): the MLE of theta is the mean of x.
    def joint(x, z, theta):
        return norm.logpdf(z, theta["mean"]).sum() + norm.logpdf(x, z).sum()

    result = fit(
        joint,
        bbvi.MeanField(bbvi.Normal((4,))),
        model_params={"mean": jnp.array(0.0)},
        num_steps=3000,
        optimizer=None,
    )
    assert float(result.params.model["mean"]) == pytest.approx(2.1, abs=0.03)


def test_second_call_neither_traces_nor_compiles():
    traces = []

    def counted(x, z):
        traces.append(None)
        return log_joint(x, z)

    def call(key, steps):
        return bbvi.fit(
            counted,
            bbvi.MeanField({"mu": bbvi.Normal()}),
            X,
            key=jax.random.key(key),
            estimator=bbvi.Reparameterization(4),
            optimizer=optax.adam(1e-2),
            num_steps=steps,
            progress=False,
        )

    call(0, 200)
    before, compiled = len(traces), []
    assert before > 0

    def listen(event, duration, **_):
        if event.endswith(("backend_compile_duration", "jaxpr_to_mlir_module_duration")):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        call(1, 200)
        call(2, 350)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(traces) == before
    assert compiled == []


def test_the_key_decides_everything():
    first, second = (fit(key=jax.random.key(1)) for _ in range(2))
    chex.assert_trees_all_equal(first.state, second.state)
    np.testing.assert_array_equal(first.history.loss, second.history.loss)
    assert (fit(key=jax.random.key(2)).history.loss != first.history.loss).all()


def test_a_state_continues_where_it_was_and_stays_usable():
    whole = fit(num_steps=400)
    half = fit(num_steps=200)
    for _ in range(2):
        rest = fit(num_steps=200, init_state=half.state)
        chex.assert_trees_all_equal(rest.state, whole.state)
    joined = np.concatenate([half.history.loss, rest.history.loss])
    np.testing.assert_array_equal(joined, whole.history.loss)


def test_init_params_place_the_guide():
    family = guide()
    start = family.params_at({"mu": 2.1}, 0.5)
    result = fit(num_steps=1, init_params=start, optimizer=optax.sgd(0.0))
    chex.assert_trees_all_close(result.params.guide, start)


def test_trace_fn_is_recorded_at_every_step():
    result = fit(trace_fn=lambda info: {"w": info.log_weights, "loc": info.params.guide.normal[0]})
    assert result.history.trace["w"].shape == (200, 8)
    assert result.history.trace["loc"].shape == (200, 1)
    np.testing.assert_allclose(-result.history.trace["w"].mean(1), result.history.loss, rtol=1e-4)


def test_the_gradient_norm_can_be_traced():
    norms = fit(trace_fn=lambda info: (info.gradient_norm, info.grads)).history.trace
    assert norms[0].shape == (200,)
    flat = np.concatenate([leaf.reshape(200, -1) for leaf in jax.tree.leaves(norms[1])], axis=1)
    np.testing.assert_allclose(norms[0], np.linalg.norm(flat, axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "adam"}, TypeError, "optax.GradientTransformation.*got 'adam'"),
        ({"optimizer": optax.adam}, TypeError, "must be an optax.GradientTransformation"),
        ({"objective": "elbo"}, TypeError, "objective must be a bbvi.Objective, got 'elbo'"),
        ({"estimator": "score"}, TypeError, "estimator must be a bbvi.Estimator"),
        ({"estimator": {"nu": bbvi.ScoreFunction()}}, ValueError, r"names sites \['nu'\]"),
        ({"learning_rate": 0.1}, TypeError, "unexpected keyword argument 'learning_rate'"),
        ({"key": np.array([0, 1], np.uint32)}, TypeError, "key must be one typed key"),
        ({"key": 0}, TypeError, "key must be one typed key, got 0"),
        ({"x": jnp.zeros((0,))}, ValueError, r"data 'x' is empty \(shape \(0,\)\)"),
        ({"family": "mean_field"}, TypeError, "guide must be a bbvi.Guide.*got 'mean_field'"),
        ({"family": bbvi.Normal()}, TypeError, "guide must be a bbvi.Guide.*got Normal"),
        ({"init_params": {"mu": 0.0}}, ValueError, "init_params do not fit the guide"),
        ({"model_params": jnp.array(1)}, TypeError, "model_params.*dtype int32; only floating"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",  # the message; no address in memory
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)


def test_legacy_and_batched_keys_are_refused():
    with pytest.raises(TypeError, match=r"got uint32\[2\] array; make it with jax.random.key"):
        fit(key=jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match=r"one typed key, got key<fry>\[3\] array"):
        fit(key=jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": bbvi.Reparameterization(4)}, "site 'b'.*is not reparameterizable"),
        ({"estimator": {"b": bbvi.Reparameterization(4)}}, "site 'b'.*ScoreFunction"),
    ],
)
def test_pathwise_gradients_of_discrete_sites_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(lambda x, z: 1.0 * z["b"], bbvi.MeanField({"b": bbvi.Bernoulli()}), **options)


def test_too_few_draws_for_the_baseline_are_refused():
    with pytest.raises(ValueError, match="LeaveOneOut needs num_samples >= 2, got 1"):
        fit(estimator=bbvi.ScoreFunction(num_samples=1))


def relative(name, guide_name="mean_field", **options):
    target = models.get(name)
    settings = {"progress": False, "key": jax.random.key(KEY)} | options
    result = bbvi.fit(target.log_joint, target.guides[guide_name](), target.data(), **settings)
    return result, target.reference(), result.elbo(jax.random.key(9), 4000)


@pytest.mark.parametrize(
    ("name", "guide_name"),
    [
        ("conjugate_gaussian", "full_rank"),
        ("beta_bernoulli", "conjugate"),
        ("gaussian_mixture_small", "mean_field"),
    ],
)
def test_a_guide_that_holds_the_posterior_reaches_the_evidence(name, guide_name):
    result, reference, elbo = relative(name, guide_name)
    assert result.status == "converged"
    assert elbo.value == pytest.approx(reference.log_evidence, abs=0.02 + 4 * elbo.standard_error)
    draws = result.sample(jax.random.key(1), 4000)
    for site, mean in (reference.mean or {}).items():
        error = np.abs(np.mean(draws[site], axis=0) - mean) / reference.sd[site]
        assert np.max(error) < 0.15
        np.testing.assert_allclose(np.std(draws[site], axis=0), reference.sd[site], rtol=0.12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gap"),
    [
        ("conjugate_gaussian", 1.0),
        ("toy_logistic", 0.02),
        ("ising", 0.9),
        ("hidden_markov", 0.8),
        ("eight_schools_noncentered", 0.6),
    ],
)
def test_the_elbo_lies_below_the_evidence_by_no_more_than_the_gap(name, gap):
    result, reference, elbo = relative(name)
    slack = 4 * elbo.standard_error + 1e-3
    assert result.status in ("converged", "max_steps")
    assert reference.log_evidence - gap - slack < elbo.value < reference.log_evidence + slack


@pytest.mark.usefixtures("optimized")
def test_mean_field_of_a_correlated_gaussian_is_the_one_of_theory():
    # The optimum has the exact means, and variances 1 / diag(precision).
    result, reference, elbo = relative("conjugate_gaussian")
    mean, covariance = models.conjugate_gaussian.posterior()
    precision = np.linalg.inv(covariance)
    loc, log_scale = result.params.guide.normal
    np.testing.assert_allclose(loc, mean, atol=0.03)
    np.testing.assert_allclose(jnp.exp(log_scale), np.diag(precision) ** -0.5, rtol=0.05)
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    exact = reference.log_evidence - gap
    assert elbo.value == pytest.approx(exact, abs=0.02 + 4 * elbo.standard_error)


def test_an_exception_of_a_callback_carries_the_result():
    def log_joint(x, z):
        return -0.5 * jnp.sum(z["w"] ** 2)

    def callback(progress):
        raise OSError("disk full")

    guide = bbvi.MeanField({"w": bbvi.Normal((2,))})
    options = {"num_steps": 200, "progress": False, "callbacks": [callback]}
    with pytest.raises(OSError, match="disk full") as caught:
        bbvi.fit(log_joint, guide, **options)
    assert caught.value.result.status == "failed"
    assert int(caught.value.result.state.step) == len(caught.value.result.history.loss) > 0
    result = bbvi.fit(log_joint, guide, throw=False, **options)
    assert result.status == "failed"
    assert "OSError: disk full" in repr(result)


def test_an_exception_of_the_model_leaves_the_state_before_it():
    calls = []

    def host(w):
        calls.append(None)
        if len(calls) > 250:
            raise OSError("simulator down")
        return np.float32(-0.5 * np.sum(w**2))

    def log_joint(x, z):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(host, shape, z["w"], vmap_method="sequential")

    guide = bbvi.MeanField({"w": bbvi.Normal((2,))})
    first = bbvi.fit(
        log_joint, guide, estimator=bbvi.ScoreFunction(2), num_steps=100, progress=False
    )
    with pytest.raises(Exception, match="simulator down") as caught:
        bbvi.fit(
            log_joint,
            guide,
            estimator=bbvi.ScoreFunction(2),
            num_steps=100,
            progress=False,
            init_state=first.state,
        )
    np.testing.assert_array_equal(
        caught.value.result.params.guide.normal, first.params.guide.normal
    )
