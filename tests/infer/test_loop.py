"""Chunks, stopping, callbacks and progress, as seen from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.infer.loop import final_status

GUIDE = bbvi.MeanField({"mu": bbvi.Normal()})


def log_joint(x, z):
    return norm.logpdf(z["mu"], 3.0, 0.5)


def fit(**options):
    settings = {"progress": False, "optimizer": optax.adam(1e-2)}
    return bbvi.fit(log_joint, GUIDE, **(settings | options))


def test_callbacks_see_every_loss_once():
    seen = []
    result = fit(num_steps=500, callbacks=[lambda info: seen.append(info)])
    np.testing.assert_array_equal(np.concatenate([i.loss for i in seen]), result.history.loss)
    assert seen[-1].step == seen[-1].num_steps == 500
    assert int(seen[-1].state.step) == 500


def test_a_callback_stops_the_run():
    result = fit(callbacks=[lambda info: None, lambda info: True])
    assert result.status == "stopped"
    assert len(result.history.loss) == int(result.state.step) >= 1
    assert "a callback stopped the run" in repr(result)


def test_an_interrupt_keeps_what_there_is():
    def interrupt(info):
        raise KeyboardInterrupt

    result = fit(num_steps=300, callbacks=[interrupt])
    assert result.status == "interrupted"
    taken = int(result.state.step)
    assert 0 < taken <= 300
    assert len(result.history.loss) == taken
    assert int(fit(num_steps=10, init_state=result.state).state.step) == taken + 10


def test_a_run_stops_by_itself_on_an_easy_model():
    result = fit(optimizer=None)
    assert result.status == "converged"
    assert int(result.state.step) < 20_000
    assert float(result.state.rate) < 1.0


def test_a_run_that_is_too_short_says_so():
    result = fit(num_steps=200, optimizer=optax.sgd(1e-3))
    assert result.status == "max_steps"
    assert "continue with" in repr(result)


def test_an_optimizer_that_was_named_keeps_its_rate():
    assert float(fit(num_steps=100).state.rate) == 1.0
    assert float(fit(num_steps=100, optimizer=None).state.rate) == pytest.approx(0.25**3)


def test_a_stopping_rule_ends_a_run_of_given_length():
    result = fit(num_steps=50_000, stopping=bbvi.Plateau(tolerance=0.5), optimizer=optax.adam(0.1))
    assert result.status == "converged"
    assert int(result.state.step) < 50_000


def test_a_run_that_got_worse_has_diverged():
    # From the optimum, a step of 2.5 times the curvature's inverse doubles the distance.
    start = GUIDE.params_at({"mu": 3.0}, 0.5)
    result = fit(num_steps=200, optimizer=optax.sgd(0.51), init_params=start, throw=False)
    assert result.status == "diverged"
    assert "lower the learning rate" in repr(result)


def judged(status, losses):
    return final_status(status, losses, losses)


@pytest.mark.parametrize("status", ["stopped", "interrupted", "nonfinite"])
def test_only_runs_that_ran_out_are_judged(status):
    assert judged(status, np.arange(1000.0)) == status


def test_final_status():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=8000)
    assert judged("max_steps", noise) == "converged"
    assert judged("max_steps", noise - 1e-2 * np.arange(8000)) == "max_steps"
    assert judged("max_steps", noise + 1e-2 * np.arange(8000)) == "diverged"
    assert judged("max_steps", noise[:50]) == "max_steps"


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 4, "x": jnp.arange(12.0)}, {"num_restarts": 3}]
)
def test_a_callback_can_ask_for_the_norm_of_the_gradient(options):
    # Where the parameters stay, it is that of the last step.
    norms = []

    def last_norm(info):
        norms.append(info.gradient_norm())

    def log_joint(x, z):
        return norm.logpdf(z["mu"], 3.0, 0.5) + (0.0 if x is None else jnp.sum(z["mu"] * x))

    still = {"optimizer": optax.sgd(0.0), "num_steps": 50, "progress": False}
    result = bbvi.fit(
        log_joint,
        GUIDE,
        trace_fn=lambda info: info.gradient_norm,
        callbacks=[last_norm],
        **(still | options),
    )
    assert norms[-1].shape == ((3,) if "num_restarts" in options else ())
    best = result.restarts.best if result.restarts else ...
    assert norms[-1][best] == pytest.approx(result.history.trace[-1], rel=1e-5)


def test_a_logger_gets_what_happened(tmp_path):
    tensorboard = pytest.importorskip("tensorboardX")

    seen = []
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:

        def log(info):
            seen.append((info.step, -info.loss.mean()))
            writer.add_scalar("elbo", -info.loss.mean(), info.step)

        fit(num_steps=100, callbacks=[log])
    (file,) = tmp_path.iterdir()
    content, logged = file.read_bytes(), []
    while content:  # each record is its length, 4 bytes, the event, 4 bytes
        length = int.from_bytes(content[:8], "little")
        event = tensorboard.proto.event_pb2.Event.FromString(content[12 : 12 + length])
        logged += [(event.step, value.simple_value) for value in event.summary.value]
        content = content[16 + length :]
    np.testing.assert_allclose(logged, seen, rtol=1e-6)


def test_records_of_restarts():
    seen = []
    result = fit(num_steps=150, num_restarts=3, callbacks=[lambda info: seen.append(info.loss)])
    assert seen[0].shape[0] == 3
    assert result.history.loss.shape == (150,)
    assert jax.tree.leaves(result.restarts.states.params)[0].shape[0] == 3
    assert jnp.ndim(result.state.step) == 0
