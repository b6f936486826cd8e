"""``compare_estimators`` as a user calls it, against closed forms and exact gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi

THETA, T = 0.3, 0.45
LOGIT = float(np.log(THETA / (1 - THETA)))
ONE_COIN = bbvi.MeanField({"b": bbvi.Bernoulli()})


def coin(x, z):
    """The toy f(b) = (b - t)^2, whose bound has no entropy: log q is added back."""
    b = 1.0 * z["b"]
    return (b - T) ** 2 + b * LOGIT - jnp.logaddexp(0.0, LOGIT)


def at_theta():
    params = bbvi.Problem(coin, ONE_COIN).init(jax.random.key(0), None)
    return bbvi.Params(params.guide._replace(families={"b": {"logits": jnp.asarray(LOGIT)}}))


@pytest.fixture(scope="module")
def coins():
    return bbvi.compare_estimators(
        coin,
        ONE_COIN,
        estimators={
            "reinforce": bbvi.ScoreFunction(1, baseline=bbvi.NoBaseline(), signal="full"),
            "pairs": bbvi.ScoreFunction(2, signal="full"),
            "more": bbvi.ScoreFunction(6, signal="full"),
            "DisARM": bbvi.DisArm(2),
            "straight through": bbvi.StraightThrough(1),
            "exact": bbvi.Enumeration(),
        },
        points={"here": at_theta()},
        num_replicates=20_000,
        progress=False,
    )


def rows(comparison, **where):
    return [row for row in comparison.rows if all(getattr(row, k) == v for k, v in where.items())]


def test_variances_of_the_bernoulli_toy(coins):
    """In closed form: f1, f0 the two values, p = theta (1 - theta), m = min(theta, 1 - theta)."""
    p, f1, f0, slope = THETA * (1 - THETA), (1 - T) ** 2, T**2, 1 - 2 * T
    sample = lambda k: slope**2 / k * (p * (1 - 3 * p) - (k - 3) / (k - 1) * p**2)  # noqa: E731
    exact = {
        "reinforce": p * ((1 - THETA) * f1 + THETA * f0) ** 2,
        "pairs": slope**2 / 4 * 2 * p * (1 - 2 * p),
        "more": sample(6),
        "DisARM": slope**2 / 2 * 0.7**2 * 0.3 * 0.4,
        "straight through": 4 * p**3,
    }
    for name, variance in exact.items():
        (row,) = rows(coins, estimator=name, block="b.logits")
        assert row.trace == pytest.approx(variance, abs=4.5 * row.trace_error), name
        assert row.trace_error < 0.04 * variance, name
        assert row.median == row.max == pytest.approx(row.trace, rel=1e-3)
        np.testing.assert_allclose(row.snr, slope * p / variance**0.5, rtol=0.05)
        assert row.snr_error == pytest.approx(row.snr * row.trace_error / (2 * row.trace), rel=0.1)


def test_bias_of_straight_through(coins):
    """Its mean is 2 (theta - t) p instead of (1 - 2 t) p."""
    p, slope = THETA * (1 - THETA), 1 - 2 * T
    bias = p * abs(2 * (THETA - T) - slope)
    for row in rows(coins, estimator="straight through"):
        assert row.bias == pytest.approx(bias / (slope * p), abs=4.5 * row.bias_error)
        assert row.bias_error < 0.02 * row.bias
        assert row.bias_share == pytest.approx(bias**2 / (bias**2 + 4 * p**3), rel=0.15)
        assert row.is_biased
        assert row.passes is False
    for name in ("reinforce", "pairs", "more", "DisARM", "exact"):
        for row in rows(coins, estimator=name):
            assert row.passes is True
            assert row.bias < 3 * row.bias_error + 1e-4


def test_ratios_have_their_intervals(coins):
    p, slope = THETA * (1 - THETA), 1 - 2 * T
    exact = (slope**2 / 4 * 2 * p * (1 - 2 * p)) / (slope**2 / 2 * 0.7**2 * 0.3 * 0.4)
    ratio, low, high = coins.ratio("pairs", "DisARM", "here")
    error = np.log(high / low) / (2 * 1.96)
    assert abs(np.log(ratio / exact)) < 4 * error
    assert error < 0.04
    np.testing.assert_allclose(coins.ratio("DisARM", "pairs", "here")[0], 1 / ratio, rtol=1e-9)
    assert coins.ratio("exact", "pairs", "here") == (0.0, 0.0, 0.0)
    assert coins.ratio("pairs", "exact", "here") == (np.inf,) * 3
    assert np.isnan(coins.ratio("exact", "exact", "here")).all()


def test_costs_and_efficiency(coins):
    (row,) = rows(coins, estimator="straight through", block="all")
    assert (row.draws, row.values, row.gradients, row.evaluations) == (1, 0, 1, 3)
    value, error = row.per_evaluation
    assert value == pytest.approx(1 / (3 * row.trace))
    assert error / value == pytest.approx(row.trace_error / row.trace)
    value, error = row.per_second
    assert value == pytest.approx(1 / (row.seconds * row.trace))
    assert error / value >= row.trace_error / row.trace
    (exact,) = rows(coins, estimator="exact", block="all")
    assert (exact.values, exact.per_evaluation) == (2, (np.inf, 0.0))
    assert exact.per_second == (np.inf, 0.0)
    assert exact.tuning == row.tuning == 0  # nothing is learned


def test_recommendation_and_table(coins):
    assert coins.recommended == "exact"
    lines = coins.table("here").splitlines()
    assert lines[1].startswith("exact")
    assert lines[-1].startswith("straight through")  # biased ones come last
    assert "%" in lines[-1]
    assert "Recommended: exact" in repr(coins)
    assert "Enumeration(" in repr(coins)
    with pytest.raises(ValueError, match=r"points are \['here'\], blocks \['b.logits', 'all'\]"):
        coins.table("start")


def test_data_frame(coins):
    frame = coins.to_dataframe()
    assert len(frame) == len(coins.rows) == 12
    chosen = frame[(frame.estimator == "pairs") & (frame.block == "all")].iloc[0]
    (row,) = rows(coins, estimator="pairs", block="all")
    assert chosen.trace == row.trace
    assert chosen.per_second == row.per_second[0]


@dataclasses.dataclass(frozen=True)
class ShrunkGradient(bbvi.ScoreFunction):
    """Wrong by a factor of 0.9, and does not know."""

    def estimate(self, noise, problem, params, x, state):
        found, state = super().estimate(noise, problem, params, x, state)
        return found._replace(grads=jax.tree.map(lambda g: 0.9 * g, found.grads)), state


def test_a_wrong_estimator_is_found_out():
    comparison = bbvi.compare_estimators(
        coin,
        ONE_COIN,
        estimators=[ShrunkGradient(16), bbvi.ScoreFunction(16)],
        points={"here": at_theta()},
        num_replicates=4000,
        progress=False,
    )
    assert all(row.passes is False for row in rows(comparison, estimator="ShrunkGradient"))
    assert comparison.recommended == "ScoreFunction"
    assert "not the gradient" in comparison.table("here")
    alone = dataclasses.replace(
        comparison, rows=tuple(rows(comparison, estimator="ShrunkGradient"))
    )
    assert "no estimator can be recommended" in alone.recommendation()


def regression(x, z, theta):
    mean = x["u"] @ z["w"] + theta["bias"] * z["on"]
    return -0.5 * jnp.sum((x["y"] - mean) ** 2) - 0.5 * jnp.sum(z["w"] ** 2)


REGRESSION_GUIDE = bbvi.MeanField({"w": bbvi.Normal((2,)), "on": bbvi.Bernoulli()})
RNG = np.random.default_rng(0)
REGRESSION_DATA = {
    "u": jnp.asarray(RNG.normal(size=(20, 2))),
    "y": jnp.asarray(RNG.normal(size=20)),
}


@pytest.fixture(scope="module")
def regressions():
    return bbvi.compare_estimators(
        regression,
        REGRESSION_GUIDE,
        REGRESSION_DATA,
        num_samples=4,
        num_steps=200,
        num_replicates=400,
        model_params={"bias": jnp.array(0.5)},
        progress=False,
    )


def test_points_of_a_run_and_all_valid_estimators(regressions):
    """A guide of both kinds of latents, and a learned parameter."""
    assert list(regressions.points) == ["start", "1 %", "10 %", "100 %", "optimum"]
    names = set(regressions.estimators)
    assert names == {"ScoreFunction", "VarGrad", "CoordinateControlVariate", "Overdispersed",
                     "MeasureValued", "PerSite"}  # fmt: skip
    blocks = list(dict.fromkeys(row.block for row in regressions.rows))
    assert blocks == ["on.logits", "w.loc", "w.log_scale", "model.bias", "all"]
    assert all(row.passes is not False for row in regressions.rows)
    start = rows(regressions, point="start", estimator="PerSite")
    assert sum(row.trace for row in start[:-1]) == pytest.approx(start[-1].trace, rel=1e-5)
    (adaptive,) = rows(regressions, point="start", estimator="ScoreFunction", block="all")
    assert adaptive.tuning == 300 * 4
    # The optimum's gradient is the smallest.
    snr = [rows(regressions, point=p, estimator="PerSite", block="all")[0].snr for p in
           ("start", "optimum")]  # fmt: skip
    assert snr[1] < 0.3 * snr[0]


def test_plot(regressions, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "comparison.png"
    figure = regressions.plot(str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["on.logits", "w.loc", "w.log_scale", "model.bias", "all, optimum"]
    line = figure.axes[0].containers[0].lines[0]
    first = next(iter(regressions.estimators))
    drawn = [row.trace for row in rows(regressions, estimator=first, block="on.logits")]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), drawn)


@pytest.mark.parametrize(
    ("estimators", "error", "message"),
    [
        ([], ValueError, "estimators is empty"),
        ([bbvi.ScoreFunction(4)] * 2, ValueError, "ScoreFunction.*twice"),
        ([bbvi.Reparameterization(4)], ValueError, "site 'b' .* not reparameterizable"),
        ([None], TypeError, "estimators must hold estimators"),
        (["score"], TypeError, "must be a bbvi.Estimator"),
        (bbvi.ScoreFunction(4), TypeError, "must be a list or a dict"),
    ],
)
def test_errors(estimators, error, message):
    with pytest.raises(error, match=message):
        bbvi.compare_estimators(coin, ONE_COIN, estimators=estimators, progress=False)


@pytest.mark.parametrize("points", [{}, {"here": at_theta().guide}])
def test_points_that_are_no_parameters(points):
    with pytest.raises(TypeError, match="points must hold"):
        bbvi.compare_estimators(
            coin, ONE_COIN, estimators=[bbvi.DisArm(2)], points=points, progress=False
        )


def test_too_few_replicates():
    with pytest.raises(ValueError, match="num_replicates must be an int >= 100, got 10"):
        bbvi.compare_estimators(coin, ONE_COIN, num_replicates=10)


def test_names():
    comparison = bbvi.compare_estimators(
        coin,
        ONE_COIN,
        estimators=[bbvi.DisArm(2), bbvi.DisArm(4), {"b": bbvi.LocalExpectation(1)}],
        points={"here": at_theta()},
        num_replicates=100,
        truth=bbvi.Enumeration(),
        progress=False,
    )
    assert list(comparison.estimators) == [repr(bbvi.DisArm(2)), repr(bbvi.DisArm(4)), "PerSite"]


CALLS = []


def counted(x, z):
    """A log joint that tells how often it is evaluated, and cannot be taken apart."""

    def on_host(b):
        CALLS.append(b)
        return np.float32(b.sum() ** 2)

    value = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(on_host, value, 1.0 * z["b"], vmap_method="sequential")


@pytest.mark.parametrize(
    "estimator",
    [
        bbvi.ScoreFunction(4),
        bbvi.LocalExpectation(2),
        bbvi.Enumeration(),
        bbvi.MeasureValued(2),
        bbvi.DisArm(4),
        bbvi.PerSite({"b": bbvi.LocalExpectation(3)}),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_evaluations_are_as_many_as_log_joint_is_called(estimator):
    problem = bbvi.Problem(counted, bbvi.MeanField({"b": bbvi.Bernoulli((3,))}))
    params = problem.init(jax.random.key(0), None)
    state = estimator.init(problem, params, None)

    @jax.jit
    def gradient(key):
        noise = estimator.draw(key, problem)
        return estimator.estimate(noise, problem, params, None, state)[0]

    CALLS.clear()
    jax.block_until_ready(gradient(jax.random.key(1)))
    assert estimator.cost_for(problem, params, None) == bbvi.Cost(values=len(CALLS))


def test_evaluations_of_mixed_sites_and_of_expansions():
    def log_joint(x, z):
        return -0.5 * jnp.sum((z["w"] - z["b"]) ** 2)

    guide = bbvi.MeanField({"w": bbvi.Normal((3,)), "b": bbvi.Bernoulli((3,))})
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(0), None)

    def cost(estimator):
        return estimator.cost_for(problem, params, None)

    # All states of one coin, since each shares a term with its own w alone.
    mixed = bbvi.Mixed(bbvi.Reparameterization(4), bbvi.Enumeration())
    assert cost(mixed) == bbvi.Cost(gradients=4 * 2)
    both = {"w": bbvi.Reparameterization(4), "b": bbvi.LocalExpectation(4)}
    assert cost(bbvi.PerSite(both)) == bbvi.Cost(values=4 * 2, gradients=4)
    assert cost(bbvi.MeasureValued(2)) == bbvi.Cost(values=2 * (1 + 3 * 3 + 3))
    # A gradient at the mean and a Hessian-vector product, which is worth two, beside the draws.
    assert bbvi.TaylorControlVariate(5).cost == bbvi.Cost(gradients=8)
