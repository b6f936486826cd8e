"""Minibatches: exact identities with all data, order, rows that stay, and errors."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm
from scipy import special, stats

import bbvi
from bbvi._optimizers import Optimizer
from bbvi.infer.batching import Feed, Resident, minibatches
from bbvi.infer.step import Algorithm

N, B = 12, 4
RNG = np.random.default_rng(0)
X = {"y": jnp.asarray(RNG.normal(size=N)), "f": jnp.asarray(RNG.normal(size=(N, 2)))}


class Encoder(nn.Module):
    """Parameters of one local latent from a row."""

    kind: str = "normal"

    @nn.compact
    def __call__(self, x):
        rows = jnp.concatenate([x["y"][:, None], x["f"]], axis=1)
        hidden = nn.tanh(nn.Dense(5, param_dtype=rows.dtype)(rows))
        if self.kind == "bernoulli":
            return {"u": {"logits": nn.Dense(1, param_dtype=rows.dtype)(hidden)[:, 0]}}
        out = nn.Dense(2, param_dtype=rows.dtype)(hidden)
        return {"u": {"loc": out[:, 0], "log_scale": out[:, 1]}}


def log_joint(x, z, theta=0.4):
    """A regression with shared weights w and an effect u of each row, where they are there."""
    loc, total = theta * x["f"][:, 0], norm.logpdf(theta, 0.0, 2.0)
    if "w" in z:
        total += norm.logpdf(z["w"], 0.5).sum()
        loc += x["f"] @ z["w"]
    if "u" in z:
        u = z["u"].astype(loc.dtype)
        total += jnp.sum(-0.3 * u**2 - 0.7 * u)
        loc += jnp.sin(u)
    return total + norm.logpdf(x["y"], loc, 0.5).sum()


SHARED = bbvi.MeanField({"w": bbvi.Normal((2,))})
LOCALS = {
    "free": bbvi.Local({"u": bbvi.Normal((N,))}),
    "free discrete": bbvi.Local({"u": bbvi.Bernoulli((N,))}),
    "amortized": bbvi.Amortized({"u": bbvi.Normal((N,))}, Encoder()),
    "amortized discrete": bbvi.Amortized({"u": bbvi.Bernoulli((N,))}, Encoder("bernoulli")),
}
GUIDES = {
    "global": SHARED,
    **LOCALS,
    **{f"global, {name}": bbvi.Product(SHARED, guide) for name, guide in LOCALS.items()},
}
DISCRETE = {
    "score": bbvi.ScoreFunction(3),
    "blanket": bbvi.ScoreFunction(3, signal="blanket"),
    "expectation": bbvi.LocalExpectation(3),
}
PATHWISE = {
    "entropy": bbvi.Reparameterization(3),
    "monte carlo": bbvi.Reparameterization(3, entropy="monte_carlo"),
    "landing": bbvi.Reparameterization(3, entropy="stick_the_landing"),
    "score": bbvi.ScoreFunction(3),
}


def cases():
    for name, guide in GUIDES.items():
        sites = guide.sites()
        if all(site.reparameterized for site in sites):
            yield from (pytest.param(guide, e, id=f"{name}: {k}") for k, e in PATHWISE.items())
        elif len(sites) == 1:
            yield from (pytest.param(guide, e, id=f"{name}: {k}") for k, e in DISCRETE.items())
        else:
            for k, e in DISCRETE.items():
                both = bbvi.PerSite({"w": bbvi.Reparameterization(3), "u": e})
                yield pytest.param(guide, both, id=f"{name}: pathwise and {k}")


def algorithm_of(guide, estimator, batch_size=B, optimizer=None, objective=None):
    problem = bbvi.Problem(log_joint, guide, objective or bbvi.Elbo())
    small, batching = minibatches(problem, X, batch_size)
    chosen = Optimizer.of(optimizer or optax.sgd(0.1))
    return problem, Algorithm(small, estimator, chosen, batching=batching)


def rows_of_noise(guide, noise, rows):
    """The noise of all data, cut to that of some rows: of local latents only those."""
    if isinstance(guide, bbvi.Product):
        return tuple(
            rows_of_noise(g, part, rows) for g, part in zip(guide.guides, noise, strict=True)
        )
    if not guide.sites()[0].is_local:
        return noise
    return jax.tree.map(lambda leaf: leaf[:, rows] if leaf.shape[1] else leaf, noise)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("guide", "estimator"), list(cases()))
def test_mean_over_batches_is_the_gradient_of_all_data(guide, estimator, key):
    """Loss and gradient, draw for draw under common noise: N/B is there once."""
    x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), X)
    problem, algorithm = algorithm_of(guide, estimator)
    init_key, noise_key = jax.random.split(key)
    params = problem.init(init_key, x, jnp.array(0.7))
    noise = estimator.draw(noise_key, problem)
    order = jnp.asarray(np.random.default_rng(1).permutation(N))
    feed = Feed(x, order, jnp.int32(0))
    state = algorithm.init(key, feed, params)

    @jax.jit
    def estimate_of_all_data(noise):
        start = estimator.init(problem, params, x)
        return estimator.estimate(noise, problem, params, x, start)[0]

    @jax.jit
    def estimate_of_a_batch(step, noise):
        """Its loss, and its gradient with zeros for the rows of others."""
        view, batch, rows = algorithm.view(state._replace(step=step), feed)
        estimate, _ = algorithm.estimate(view, batch, noise)
        shared, by_row = guide.split_rows(estimate.grads.guide)
        zeros = jax.tree.map(jnp.zeros_like, guide.split_rows(params.guide)[1])
        by_row = jax.tree.map(lambda z, g: z.at[rows].set(g), zeros, by_row)
        return estimate.loss, bbvi.Params(guide.join_rows(shared, by_row), estimate.grads.model)

    whole = estimate_of_all_data(noise)
    losses, total = [], 0.0
    for step in range(N // B):
        own = rows_of_noise(guide, noise, order[step * B : (step + 1) * B])
        loss, grads = estimate_of_a_batch(jnp.int32(step), own)
        losses.append(loss)
        total += np.asarray(ravel_pytree(grads)[0]) * B / N
    assert float(jnp.abs(ravel_pytree(whole.grads)[0]).max()) > 0.1
    np.testing.assert_allclose(np.mean(losses), whole.loss, rtol=1e-10)
    np.testing.assert_allclose(total, ravel_pytree(whole.grads)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_bounds_of_several_draws_are_those_of_each_datum(key):
    """Per datum log-mean-exp of the weights, summed and scaled."""
    guide = LOCALS["free"]
    x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), X)
    estimator = bbvi.Reparameterization(5)
    problem, algorithm = algorithm_of(guide, estimator, objective=bbvi.Iwae(5))
    keys = jax.random.split(key)
    params = problem.init(keys[0], x)
    feed = Feed(x, jnp.arange(N)[::-1], jnp.int32(0))
    state = algorithm.init(keys[1], feed, params)
    noise = algorithm.draw(state, state.step, feed)
    view, batch, rows = algorithm.view(state, feed)
    loss = jax.jit(lambda noise: algorithm.estimate(view, batch, noise)[0].loss)(noise)

    phi = {name: np.asarray(leaf)[rows] for name, leaf in params.guide["u"].items()}
    batch, scale = jax.tree.map(np.asarray, batch), np.exp(phi["log_scale"])
    u = phi["loc"] + scale * np.asarray(noise[0])
    log_p = -0.3 * u**2 - 0.7 * u
    log_p += stats.norm.logpdf(batch["y"], 0.4 * batch["f"][:, 0] + np.sin(u), 0.5)
    log_weights = log_p - stats.norm.logpdf(u, phi["loc"], scale)
    each = special.logsumexp(log_weights, axis=0) - np.log(5)
    constant = stats.norm.logpdf(0.4, 0.0, 2.0)
    np.testing.assert_allclose(loss, -(N / B * each.sum() + constant), rtol=1e-10)


def test_every_row_once_an_epoch_in_an_order_of_its_own(key):
    problem = bbvi.Problem(log_joint, LOCALS["free"])
    _, batching = minibatches(problem, X, 5)  # two rows are left over
    source = Resident(batching, X, key)
    epochs = []
    for epoch in range(200):
        feed, count = source.feed(2 * epoch, 2)
        assert count == 2
        rows = [batching.take(feed, 2 * epoch + i) for i in range(2)]
        for batch, numbers in rows:
            np.testing.assert_array_equal(batch["f"], X["f"][numbers])
        epochs.append(np.concatenate([numbers for _, numbers in rows]))
    epochs = np.array(epochs)
    assert (np.diff(np.sort(epochs, axis=1), axis=1) > 0).all()
    assert len({tuple(row) for row in epochs}) == 200
    # Each row is left out by a sixth of the epochs: 4.9 standard errors of a binomial share.
    seen = np.array([(epochs == row).any(axis=1).mean() for row in range(N)])
    np.testing.assert_allclose(seen, 10 / 12, atol=4.9 * np.sqrt(10 / 12 * 2 / 12 / 200))
    again = Resident(batching, X, jax.random.clone(key))
    feed, _ = again.feed(301, 1)  # in the middle of an epoch, out of order
    np.testing.assert_array_equal(batching.take(feed, 301)[1], epochs[150][5:])


def run(guide=GUIDES["global, free"], **options):
    chosen = {"batch_size": B, "num_steps": 20, "progress": False} | options
    return bbvi.fit(log_joint, guide, X, key=jax.random.key(3), **chosen)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["global", "global, free", "amortized"])
def test_resumed_in_the_middle_of_an_epoch_is_uninterrupted(name):
    whole = run(GUIDES[name], optimizer=optax.adam(0.1), num_steps=20)
    first = run(GUIDES[name], optimizer=optax.adam(0.1), num_steps=7)
    rest = run(GUIDES[name], optimizer=optax.adam(0.1), num_steps=13, init_state=first.state)
    assert_same(rest.params, whole.params)
    np.testing.assert_array_equal(
        np.concatenate([first.history.loss, rest.history.loss]), whole.history.loss
    )


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_rows_outside_the_batch_do_not_move(nonfinite):
    """Nor do their moments: a datum's optimizer goes on from where it last saw it."""
    before = run(optimizer=optax.adam(0.1), num_steps=5, nonfinite=nonfinite)
    after = run(
        optimizer=optax.adam(0.1), num_steps=1, init_state=before.state, nonfinite=nonfinite
    )
    moved = before.params.guide[1]["u"]["loc"] != after.params.guide[1]["u"]["loc"]
    assert moved.sum() == B
    old, new = (jax.tree.leaves(s.opt_state[1]) for s in (before.state, after.state))
    assert len(old) > 2
    for a, b in zip(old, new, strict=True):
        changed = (a != b).reshape(N, -1).any(axis=1)
        np.testing.assert_array_equal(changed, moved)
    counts = after.state.opt_state[1][0].count
    np.testing.assert_array_equal(counts.sum(), 6 * B)
    assert int(after.state.opt_state[0][0].count) == 6


def test_free_rows_move_as_if_they_were_fitted_alone():
    """Adam of a row counts its own visits."""
    guide = bbvi.Local({"u": bbvi.Normal((N,))})
    optimizer = optax.adam(0.1)
    result = run(guide, optimizer=optimizer, num_epochs=4, num_steps=None)
    problem, algorithm = algorithm_of(guide, result.estimator)
    start = problem.init(jax.random.split(jax.random.key(3), 3)[0], X)
    source = Resident(algorithm.batching, X, result.state.key)

    @jax.jit
    def of_the_batch(own, step, feed):
        """The gradients of a batch's rows, and their numbers."""
        fresh = result.state._replace(params=bbvi.Params(own), step=step, estimator_state=())
        view, batch, rows = algorithm.view(fresh, feed)
        noise = algorithm.draw(fresh, step, feed)
        return algorithm.estimate(view, batch, noise)[0].grads.guide, rows

    @jax.jit
    def visit(own, states, row, grads):
        """One step of one row, by the state that is its own."""
        state = jax.tree.map(lambda leaf: leaf[row], states)
        updates, state = optimizer.update(grads, state)
        own = jax.tree.map(lambda leaf, u: leaf.at[row].add(u), own, updates)
        return own, jax.tree.map(lambda leaf, s: leaf.at[row].set(s), states, state)

    own, states = start.guide, jax.vmap(optimizer.init)(start.guide)
    for step in range(12):
        feed, _ = source.feed(step, 1)
        with jax.debug_key_reuse(False):
            grads, rows = of_the_batch(own, jnp.int32(step), feed)
        grads = jax.tree.map(np.asarray, grads)
        for i, row in enumerate(np.asarray(rows)):
            one = jax.tree.map(lambda leaf: leaf[i], grads)  # noqa: B023
            own, states = visit(own, states, row, one)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        result.params.guide,
        own,
    )


def test_batches_reach_the_optimum_of_all_data():
    """A conjugate model: the posterior of the weights and of every effect in closed form."""

    def conjugate(x, z):
        fit = norm.logpdf(x["y"], x["f"] @ z["w"] + z["u"], 0.5).sum()
        return norm.logpdf(z["w"]).sum() + norm.logpdf(z["u"]).sum() + fit

    guide = GUIDES["global, free"]
    options = {"key": jax.random.key(0), "progress": False}
    batched = bbvi.fit(conjugate, guide, X, batch_size=B, num_steps=6000, **options)
    f, y = np.asarray(X["f"]), np.asarray(X["y"])
    # Coordinate ascent of the mean field to its fixed point.
    w, u = np.zeros(2), np.zeros(N)
    precision = 1 + (f**2).sum(axis=0) / 0.25
    for _ in range(500):
        u = (y - f @ w) / 0.25 / (1 + 1 / 0.25)
        for k in range(2):
            rest = y - u - f @ w + f[:, k] * w[k]
            w[k] = (f[:, k] @ rest) / 0.25 / precision[k]
    found = batched.problem.guide.site_params(batched.params.guide)
    np.testing.assert_allclose(found["w"]["loc"], w, atol=0.03)
    np.testing.assert_allclose(found["u"]["loc"], u, atol=0.1)
    np.testing.assert_allclose(found["w"]["log_scale"], -0.5 * np.log(precision), atol=0.05)
    np.testing.assert_allclose(found["u"]["log_scale"], -0.5 * np.log(5), atol=0.15)


def test_restarts_and_traces():
    result = run(num_restarts=3, trace_fn=lambda info: info.gradient_norm)
    assert result.restarts.states.params.guide[1]["u"]["loc"].shape == (3, N)
    assert result.history.trace.shape == (20,)
    assert len({float(e.value) for e in result.restarts.elbos}) == 3


def test_second_fit_compiles_nothing():
    def same():
        return run(bbvi.Product(SHARED, bbvi.Local({"u": bbvi.Normal((N,))})), num_steps=9)

    same()
    compiled = []

    def listen(event, duration, **_):
        if event.endswith(("backend_compile_duration", "jaxpr_to_mlir_module_duration")):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        same()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 13}, r"batch_size must be 2 to 12, the rows of x, got 13"),
        ({"batch_size": 1}, r"batch_size must be 2 to 12, the rows of x, got 1"),
        ({"batch_size": 0}, r"batch_size must be an int >= 1, got 0"),
        ({"batch_size": 2.0}, r"batch_size must be an int >= 1, got 2.0"),
        ({"batch_size": None, "num_epochs": 3}, r"num_epochs counts .* give batch_size"),
        ({"num_epochs": 3}, r"num_steps=20 and num_epochs=3 both say how long"),
        ({"guide": bbvi.Local({"u": bbvi.Normal((N + 1,))})}, r"'u' has shape \(13,\), but x has"),
        ({"objective": bbvi.Iwae(4)}, r"is not a bound where the data share latents, as \['w'\]"),
        (
            {"estimator": bbvi.VarGrad(4)},
            r"VarGrad does not take minibatches of a model with both shared and local latents",
        ),
    ],
)
def test_bad_calls(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_log_joint_that_scales_itself_is_refused():
    def scaled(x, z):
        fit = norm.logpdf(x["y"], x["f"] @ z["w"]).sum()
        return norm.logpdf(z["w"]).sum() + N / len(x["y"]) * fit

    with pytest.raises(ValueError, match=r"number of rows"):
        bbvi.fit(scaled, SHARED, X, batch_size=B, num_steps=3, progress=False)


def test_declared_terms_must_be_of_these_data():
    def terms(x, z):
        return {"prior": norm.logpdf(z["w"]), "fit": norm.logpdf(x["y"], x["f"] @ z["w"])}

    for options in ({}, {"data_terms": ("fit",), "num_data": 10}):
        declared = bbvi.FactorizedLogJoint(terms, **options)
        with pytest.raises(ValueError, match=r"rows of x, but it says num_data="):
            bbvi.fit(declared, SHARED, X, batch_size=B, num_steps=3, progress=False)
    right = bbvi.FactorizedLogJoint(terms, data_terms=("fit",), num_data=N)
    plain = bbvi.fit(
        lambda x, z: sum(term.sum() for term in terms(x, z).values()),
        SHARED,
        X,
        batch_size=B,
        num_steps=9,
        progress=False,
    )
    result = bbvi.fit(right, SHARED, X, batch_size=B, num_steps=9, progress=False)
    np.testing.assert_allclose(result.history.loss, plain.history.loss, rtol=1e-5)


def test_leaves_without_rows_are_shared():
    """Numbers without axes, and leaves that a declared log joint does not name as rows."""
    x = {"y": X["y"], "sd": jnp.array(0.5)}
    result = bbvi.fit(
        lambda x, z: norm.logpdf(z["m"]) + norm.logpdf(x["y"], z["m"], x["sd"]).sum(),
        bbvi.MeanField({"m": bbvi.Normal()}),
        x,
        batch_size=B,
        num_steps=5,
        progress=False,
    )
    assert result.batching.names == {"y"}
    declared = bbvi.FactorizedLogJoint(
        lambda x, z: {
            "prior": norm.logpdf(z["m"]),
            "fit": norm.logpdf(x["y"], z["m"]) + x["table"].sum(),
        },
        data_terms=("fit",),
        num_data=N,
        batch=("y",),
    )
    x = {"y": X["y"], "table": jnp.ones(3)}
    guide = bbvi.MeanField({"m": bbvi.Normal()})
    result = bbvi.fit(declared, guide, x, batch_size=B, num_steps=5, progress=False)
    assert result.batching.names == {"y"}


def test_a_step_that_is_not_finite_names_the_rows_data():
    y = X["y"].at[7].set(jnp.nan)
    with pytest.raises(bbvi.NonFiniteError, match=r"Data 'y' holds 1 entries that are NaN") as info:
        bbvi.fit(
            log_joint,
            GUIDES["global, free"],
            {**X, "y": y},
            batch_size=B,
            num_steps=10,
            progress=False,
        )
    assert int(info.value.result.state.step) < 3
    kept = bbvi.fit(
        log_joint,
        GUIDES["global, free"],
        {**X, "y": y},
        batch_size=B,
        num_steps=30,
        nonfinite="skip",
        progress=False,
    )
    assert int(kept.state.skipped) == 10
    assert bool(jnp.isfinite(ravel_pytree(kept.params)[0]).all())


def test_phases_of_free_rows_go_by_the_step_of_the_run():
    """A row's own optimizer counts its visits, which say nothing about the phase."""
    optimizer = bbvi.alternating(
        optax.adam(0.1), optax.adam(0.1), num_guide_steps=2, num_model_steps=3
    )
    options = {"optimizer": optimizer, "model_params": jnp.array(0.5)}
    states = [run(**options, num_steps=1).state]
    for _ in range(9):
        states.append(run(**options, num_steps=1, init_state=states[-1]).state)
    for step, (a, b) in enumerate(itertools.pairwise(states), start=1):
        rows = a.params.guide[1]["u"]["loc"] != b.params.guide[1]["u"]["loc"]
        is_guide = step % 5 < 2
        assert rows.sum() == (B if is_guide else 0)
        assert (a.params.model != b.params.model) == (not is_guide)
