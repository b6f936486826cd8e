"""Declared terms equal the plain sum; data terms, declared or found, scale to those of all data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.dependence.blankets import blanket_sums, entry_sites, factor_graph

# Each model: N, a function (x, z) -> terms with those of the data last, x, z, latents by row.
RNG = np.random.default_rng(0)


def radon_terms(x, z):
    alpha = z["mu"] + z["tau"] * z["alpha"]
    return {
        "alpha": norm.logpdf(z["alpha"]),
        "rest": norm.logpdf(z["mu"], 0.0, 10.0) + norm.logpdf(z["tau"]) + norm.logpdf(z["sigma"]),
        "data": norm.logpdf(x["y"], alpha[x["county"]] + z["b"] * x["floor"], z["sigma"]),
        "b": norm.logpdf(z["b"], 0.0, 10.0),
    }


def radon(counties):
    x = {
        "y": RNG.normal(size=24),
        "county": RNG.integers(counties, size=24),
        "floor": RNG.normal(size=24),
    }
    z = {"alpha": RNG.normal(size=counties), "mu": 0.3, "tau": 0.7, "sigma": 1.3, "b": -0.4}
    return radon_terms, x, z, ()


def logistic_terms(x, z):
    logits = x["features"] @ z["w"]
    return {
        "w": norm.logpdf(z["w"]),
        "data": x["y"] * logits - jnp.logaddexp(0.0, logits),
    }


def logistic():
    x = {"features": RNG.normal(size=(24, 6)), "y": RNG.integers(2, size=24).astype(float)}
    return logistic_terms, x, {"w": RNG.normal(size=6)}, ()  # as many weights as rows in a batch


def mixture_terms(x, z):
    c = z["c"][x["index"]]
    return {
        "means": norm.logpdf(z["means"]),
        "data": jax.nn.log_softmax(z["logits"])[c] + norm.logpdf(x["y"], z["means"][c], 0.5),
        "logits": norm.logpdf(z["logits"]),
    }


def mixture_terms_of_all_rows(x, z):
    c = z["c"][x["index"]]
    return {
        "rest": norm.logpdf(z["means"]),
        "c": jax.nn.log_softmax(z["logits"])[z["c"]],
        "data": norm.logpdf(x["y"], z["means"][c], 0.5),
        "logits": norm.logpdf(z["logits"]),
    }


def mixture(terms):
    x = {"y": RNG.normal(size=24), "index": np.arange(24)}
    z = {"c": RNG.integers(3, size=24), "means": RNG.normal(size=3), "logits": RNG.normal(size=3)}
    return terms, x, z, ()


def panel_terms(x, z):
    mean = z["person"][x["person"]][:, None] + z["period"][None, :]
    log_density = norm.logpdf(jnp.where(x["observed"], x["y"], 0.0), mean, z["sigma"])
    return {
        "rest": norm.logpdf(z["person"]).sum() + norm.logpdf(z["period"]).sum(),
        "data": jnp.where(x["observed"], log_density, 0.0),
        "sigma": norm.logpdf(z["sigma"]),
    }


def panel():
    observed = RNG.random((24, 6)) < 0.7  # as many periods as rows in a batch
    y = np.where(observed, RNG.normal(size=(24, 6)), np.nan)
    z = {"person": RNG.normal(size=24), "period": RNG.normal(size=6), "sigma": 0.8}
    return panel_terms, {"y": y, "observed": observed, "person": np.arange(24)}, z, ()


def softmax_terms(x, z):
    """Each row looks its own label up, by its place; terms of all kinds are joined in one array."""
    log_probs = jax.nn.log_softmax(x["features"] @ z["w"])
    chosen = log_probs[jnp.arange(x["label"].shape[0]), x["label"]]
    joined = jnp.concatenate([norm.logpdf(z["w"]).reshape(-1), -z["scale"][None]])
    return {
        "rest": joined,
        "data": -0.5 * (x["y"] / z["scale"]) ** 2 + chosen - jnp.log(z["scale"]),
    }


def softmax():
    x = {
        "features": RNG.normal(size=(24, 4)),
        "label": RNG.integers(3, size=24),
        "y": RNG.normal(size=24),
    }
    return softmax_terms, x, {"w": RNG.normal(size=(4, 3)), "scale": 1.4}, ()


def local_terms(x, z):
    """Two layers of latents with one row for each row of x; the upper one never meets the data."""
    return {
        "scale": norm.logpdf(z["scale"]),
        "data": norm.logpdf(z["upper"])
        + norm.logpdf(z["lower"], z["upper"][:, None], z["scale"]).sum(axis=1)
        + norm.logpdf(x, z["lower"] @ z["w"], 0.5).sum(axis=1),
        "w": norm.logpdf(z["w"]),
    }


def local():
    z = {
        "upper": RNG.normal(size=24),
        "lower": RNG.normal(size=(24, 2)),
        "w": RNG.normal(size=(2, 6)),
        "scale": 0.6,
    }
    return local_terms, RNG.normal(size=(24, 6)), z, ("upper", "lower")


MODELS = {
    "radon": radon(5),
    "radon, as many counties as rows": radon(6),
    "logistic": logistic(),
    "softmax": softmax(),
    "mixture": mixture(mixture_terms),
    "mixture, prior of all rows": mixture(mixture_terms_of_all_rows),
    "panel": panel(),
    "local latents": local(),
}
NUM_DATA, SIZE = 24, 6
models = pytest.mark.parametrize("name", MODELS)


def summed(terms):
    return lambda x, z, *theta: sum(jnp.sum(term) for term in terms(x, z, *theta).values())


def declared(terms, **options):
    return bbvi.FactorizedLogJoint(terms, data_terms=("data",), num_data=NUM_DATA, **options)


SCALED = {
    "declared": declared,
    "found": lambda terms: bbvi.scale_data_terms(summed(terms), num_data=NUM_DATA),
}
both = pytest.mark.parametrize("way", SCALED)


def batches(x, z, by_row):
    """Data and latents of every batch of a partition."""
    for rows in np.random.default_rng(1).permutation(NUM_DATA).reshape(-1, SIZE):
        cut = {name: leaf[rows] if name in by_row else leaf for name, leaf in z.items()}
        yield jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), x), cut


def differentiable(z):
    return {name: leaf for name, leaf in z.items() if np.issubdtype(np.result_type(leaf), float)}


def value_and_grad(log_joint, x, z):
    return jax.value_and_grad(lambda part: log_joint(x, z | part))(differentiable(z))


def assert_close(got, expected, rtol=1e-10):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-10), got, expected
    )


@pytest.mark.usefixtures("x64")
@models
def test_declared_terms_give_the_plain_log_joint(name):
    terms, x, z, _ = MODELS[name]
    got = value_and_grad(bbvi.FactorizedLogJoint(terms), x, z)
    assert_close(got, value_and_grad(summed(terms), x, z))


@pytest.mark.usefixtures("x64")
@models
def test_declared_terms_give_the_plain_blankets(name):
    terms, x, z, _ = MODELS[name]
    sites = entry_sites(z)
    log_p, sums = blanket_sums(summed(terms), sites, x, z)
    declared_log_p, declared_sums = blanket_sums(bbvi.FactorizedLogJoint(terms), sites, x, z)
    assert_close((declared_log_p, declared_sums), (log_p, sums))


@pytest.mark.usefixtures("x64")
@both
@models
def test_mean_over_batches_is_the_log_joint_of_all_data(name, way):
    terms, x, z, by_row = MODELS[name]
    scaled = SCALED[way](terms)
    full_value, full_grad = value_and_grad(summed(terms), x, z)
    at_batch = jax.jit(functools.partial(value_and_grad, scaled))
    found = [at_batch(*batch) for batch in batches(x, z, by_row)]
    values, grads = jax.tree.map(lambda *leaves: np.array(leaves), *found)
    assert np.ptp(values) > 1.0  # a batch alone is not enough
    np.testing.assert_allclose(np.mean(values), full_value, rtol=1e-12)
    for latent in grads:
        if latent not in by_row:
            np.testing.assert_allclose(np.mean(grads[latent], axis=0), full_grad[latent], 1e-10)


@pytest.mark.usefixtures("x64")
@both
@pytest.mark.parametrize("name", [name for name in MODELS if name != "local latents"])
def test_mean_blanket_sums_over_batches_are_those_of_all_data(name, way):
    terms, x, z, by_row = MODELS[name]
    sites, scaled = entry_sites(z), SCALED[way](terms)
    full = blanket_sums(summed(terms), sites, x, z)[1]
    found = [blanket_sums(scaled, sites, *batch)[1] for batch in batches(x, z, by_row)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), mean, full)


@pytest.mark.usefixtures("x64")
@models
def test_found_and_declared_agree_on_a_batch(name):
    terms, x, z, by_row = MODELS[name]
    batch = next(batches(x, z, by_row))
    got, expected = (value_and_grad(SCALED[way](terms), *batch) for way in SCALED)
    assert_close(got, expected)


def test_declared_labels_start_with_their_term():
    terms, x, z, _ = MODELS["radon"]
    graph, _ = factor_graph(bbvi.FactorizedLogJoint(terms), x, z)
    assert {term.label.split(":")[0] for term in graph.terms} == {"alpha", "rest", "data", "b"}
    assert any("at test_factors.py" in term.label for term in graph.terms)


def test_found_data_terms_keep_the_lines_they_were_written_in():
    terms, x, z, _ = MODELS["radon"]
    log_joint = summed(terms)
    plain, _ = factor_graph(log_joint, x, z)
    scaled, _ = factor_graph(bbvi.scale_data_terms(log_joint, num_data=100), x, z)
    stripped = {term.label.removeprefix("data: ").removeprefix("rest: ") for term in scaled.terms}
    assert stripped == {term.label for term in plain.terms}


SCOPES = {"alpha": ("alpha",), "data": ("alpha", "mu", "tau", "b", "sigma")}
GUIDE = bbvi.MeanField(
    {
        "alpha": bbvi.Normal((5,)),
        "mu": bbvi.Normal(),
        "tau": bbvi.LogNormal(),
        "sigma": bbvi.LogNormal(),
        "b": bbvi.Normal(),
    }
)


def test_scopes_that_hold_are_accepted():
    terms, x, z, _ = MODELS["radon"]
    wider = SCOPES | {"alpha": ("alpha", "mu")}
    for scopes in (SCOPES, wider):
        bbvi.FactorizedLogJoint(terms, scopes=scopes).check_scopes(x, z)


@pytest.mark.parametrize(
    ("scopes", "message"),
    [
        ({"data": ("alpha", "mu", "tau", "sigma")}, "term 'data' reads latent 'b'.*biased"),
        ({"rest": ("mu", "tau", "sigma", "beta")}, r"scope of term 'rest' names \['beta'\]"),
        ({"prior": ("mu",)}, "there is no term 'prior'; the terms are"),
    ],
)
def test_wrong_scopes_are_refused_before_anything_is_compiled(scopes, message):
    terms, x, z, _ = MODELS["radon"]
    log_joint = bbvi.FactorizedLogJoint(terms, scopes=SCOPES | scopes)
    with pytest.raises(ValueError, match=message):
        bbvi.fit(log_joint, GUIDE, x, num_steps=2, progress=False)
    with pytest.raises(ValueError, match=message):
        factor_graph(log_joint, x, z)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"terms": {"a": norm.logpdf}}, TypeError, "terms must be one function"),
        ({"data_terms": ("data",)}, ValueError, r"give data_terms.*'data',\) and None"),
        ({"num_data": 24}, ValueError, "give data_terms"),
        ({"num_data": 0, "data_terms": ("data",)}, ValueError, "an int >= 1"),
        ({"num_data": 24, "data_terms": "data"}, TypeError, "data_terms must be a tuple"),
        ({"scopes": {"alpha": "alpha"}}, TypeError, "alpha must be a tuple of names"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        bbvi.FactorizedLogJoint(**({"terms": radon_terms} | options))


@pytest.mark.parametrize(
    ("terms", "x", "options", "error", "message"),
    [
        (lambda x, z: z.sum(), 1.0, {}, TypeError, "must return a dict of arrays"),
        (lambda x, z: {"a": 1}, 1.0, {}, TypeError, "term 'a' must hold real numbers, got int"),
        (
            lambda x, z: {"a": z},
            1.0,
            {"num_data": 9, "data_terms": ("b",)},
            ValueError,
            "no term 'b'",
        ),
        (
            lambda x, z: {"a": z},
            {"y": np.ones(3), "scale": np.ones(2)},
            {"num_data": 9, "data_terms": ("a",)},
            ValueError,
            r"share one leading axis.*sizes \{'scale': 2, 'y': 3\}.*batch=",
        ),
        (
            lambda x, z: {"a": z},
            {"y": np.ones(3)},
            {"num_data": 9, "data_terms": ("a",), "batch": ("x",)},
            ValueError,
            r"batch names \['x'\], but the leaves of x are \['y'\]",
        ),
    ],
)
def test_wrong_terms_are_refused_on_use(terms, x, options, error, message):
    with pytest.raises(error, match=message):
        bbvi.FactorizedLogJoint(terms, **options)(x, jnp.ones(2))


def test_batch_leaves_can_be_named():
    x = {"y": jnp.arange(3.0), "knots": jnp.ones(7)}
    terms = lambda x, z: {"data": -((x["y"] - z) ** 2), "rest": -(z**2) * x["knots"]}  # noqa: E731
    expected = -10.0 * 5.0 - 0.0
    options = {"num_data": 30, "batch": ("y",)}
    declared = bbvi.FactorizedLogJoint(terms, data_terms=("data",), **options)
    found = bbvi.scale_data_terms(summed(terms), **options)
    assert float(declared(x, 0.0)) == float(found(x, 0.0)) == expected


def test_equal_configurations_are_equal():
    def build(**scopes):
        return declared(radon_terms, scopes=scopes, batch=["y", "county"])

    assert build(alpha=("alpha",)) == build(alpha=["alpha"])
    assert hash(build(alpha=("alpha",))) == hash(build(alpha=("alpha",)))
    assert build(alpha=("alpha",)) != build(alpha=("alpha", "mu"))
    log_joint = summed(radon_terms)
    found = [bbvi.scale_data_terms(log_joint, num_data=n) for n in (9, 9, 10)]
    assert found[0] == found[1] != found[2]


@both
def test_second_fit_does_not_trace(way):
    terms, x, _, _ = MODELS["radon"]
    traces = []

    def counted(x, z):
        traces.append(None)
        return terms(x, z)

    log_joint = summed(counted)

    def fit(rows):
        scaled = {
            "declared": lambda: declared(counted, scopes=SCOPES),
            "found": lambda: bbvi.scale_data_terms(log_joint, num_data=NUM_DATA),
        }[way]()
        batch = jax.tree.map(lambda leaf: leaf[rows], x)
        return bbvi.fit(scaled, GUIDE, batch, num_steps=3, progress=False)

    first = fit(slice(0, 6))
    before = len(traces)
    assert before > 0
    second = fit(slice(6, 12))
    assert len(traces) == before
    assert not np.allclose(first.history.loss, second.history.loss)


@pytest.mark.usefixtures("x64")
@both
def test_learned_parameters(way):
    def terms(x, z, theta):
        return {
            "z": norm.logpdf(z["z"]),
            "data": norm.logpdf(x, z["z"] + theta["shift"], jnp.exp(theta["log_scale"])),
        }

    def scaled_by_hand(x, z, theta):
        parts = terms(x, z, theta)
        return parts["z"] + NUM_DATA / SIZE * jnp.sum(parts["data"])

    x = np.random.default_rng(2).normal(size=NUM_DATA)
    z, theta = {"z": 0.3}, {"shift": 1.0, "log_scale": -0.2}
    scaled = SCALED[way](terms)
    found = [jax.grad(scaled, argnums=2)(*batch, theta) for batch in batches(x, z, ())]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)
    full = jax.grad(summed(terms), argnums=2)(x, z, theta)
    assert_close(mean, full)
    assert abs(float(full["shift"])) > 1.0

    guide = bbvi.MeanField({"z": bbvi.Normal()})
    results = [
        bbvi.fit(log_joint, guide, x[:SIZE], num_steps=20, model_params=theta, progress=False)
        for log_joint in (scaled, scaled_by_hand)
    ]
    assert_close(*(result.params.model for result in results))
    assert float(results[0].params.model["shift"]) != 1.0


@pytest.mark.parametrize("name", ["mixture", "local latents"])
def test_jit_and_vmap_in_default_precision(name):
    terms, x, z, by_row = MODELS[name]
    x, z = next(batches(x, z, by_row))
    z = jax.tree.map(jnp.asarray, z)
    scaled, expected = SCALED["found"](terms), SCALED["declared"](terms)(x, z)
    assert expected.dtype == jnp.zeros(()).dtype
    draws = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), z)
    np.testing.assert_allclose(jax.jit(scaled)(x, z), expected, 1e-5)
    over_draws = jax.jit(jax.vmap(scaled, in_axes=(None, 0)))(x, draws)
    np.testing.assert_allclose(over_draws, [expected, expected], 1e-5)


def test_log_joint_may_close_over_traced_values():
    x, z = jnp.arange(6.0), {"mu": jnp.array(0.5)}

    def value(scale, z):
        def log_joint(x, z):
            return jnp.sum(-0.5 * (x - z["mu"]) ** 2 / scale**2) - 0.5 * z["mu"] ** 2

        return bbvi.scale_data_terms(log_joint, num_data=60)(x, z)

    plain = lambda s, z: -5.0 * jnp.sum((x - z["mu"]) ** 2) / s**2 - 0.5 * z["mu"] ** 2  # noqa: E731
    for scale in (1.0, 2.0):
        got = jax.jit(jax.value_and_grad(value))(scale, z)
        assert_close(got, jax.value_and_grad(plain)(scale, z), 1e-6)
    batch = jax.vmap(value, in_axes=(0, None))(jnp.array([1.0, 2.0]), z)
    np.testing.assert_allclose(batch, [plain(1.0, z), plain(2.0, z)], 1e-6)


def test_refusal_comes_through_fit_with_its_reason():
    scaled = bbvi.scale_data_terms(lambda x, z: jnp.mean(norm.logpdf(x, z["mu"])), num_data=24)
    guide = bbvi.MeanField({"mu": bbvi.Normal()})
    with pytest.raises(ValueError, match=r"failed on one draw.*such as by a mean"):
        bbvi.fit(scaled, guide, jnp.zeros(6), progress=False)


def test_unread_latents_are_still_named():
    scaled = bbvi.scale_data_terms(lambda x, z: norm.logpdf(x, z["mu"]).sum(), num_data=24)
    guide = bbvi.MeanField({"mu": bbvi.Normal(), "tau": bbvi.Normal()})
    with pytest.raises(ValueError, match="never reads latent 'tau'"):
        bbvi.fit(scaled, guide, jnp.zeros(6), progress=False)
