"""What ``fit`` says of options that are wrong."""

import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import bbvi


def log_joint(x, z):
    return norm.logpdf(z["mu"])


def fit(joint=log_joint, family=None, **options):
    settings = {"num_steps": 200, "progress": False, "optimizer": optax.adam(1e-2)}
    return bbvi.fit(joint, family or bbvi.MeanField({"mu": bbvi.Normal()}), **(settings | options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be an int >= 1, got 0"),
        ({"num_steps": -1}, ValueError, "num_steps must be an int >= 1, got -1"),
        ({"num_steps": 1.5}, ValueError, "num_steps must be an int >= 1, got 1.5"),
        ({"num_restarts": 0}, ValueError, "num_restarts must be an int >= 1, got 0"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite must be one of .*got 'ignore'"),
        ({"trace_fn": 3}, TypeError, "trace_fn must be a function of StepInfo, got 3"),
        ({"stopping": "plateau"}, TypeError, "stopping must be a bbvi.Plateau, got 'plateau'"),
        ({"callbacks": [3]}, TypeError, "callbacks must be functions of Progress, got 3"),
        ({"callbacks": print}, TypeError, "callbacks must be a sequence of functions"),
        ({"init_state": {"mu": 0.0}}, TypeError, "init_state must be the .state of a result"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",  # the message; no address in memory
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)


def test_a_state_of_another_run_is_refused():
    other = bbvi.FullRank({"mu": bbvi.Normal(), "nu": bbvi.Normal()})
    state = fit(lambda x, z: norm.logpdf(z["mu"]) + norm.logpdf(z["nu"]), other, num_steps=1).state
    with pytest.raises(ValueError, match="init_state does not fit this call"):
        fit(init_state=state)
    with pytest.raises(ValueError, match="init_state does not fit this call"):
        fit(init_state=fit(num_steps=1, optimizer=optax.sgd(0.1)).state)


@pytest.mark.parametrize("num_steps", [True, 10.0, "10"])
def test_num_steps_is_a_count(num_steps):
    with pytest.raises(ValueError, match="num_steps must be an int >= 1"):
        bbvi.fit(lambda x, z: -0.5 * z**2, bbvi.MeanField(bbvi.Normal()), num_steps=num_steps)


def test_num_steps_may_be_a_numpy_integer():
    guide = bbvi.MeanField(bbvi.Normal())
    result = bbvi.fit(lambda x, z: -0.5 * z**2, guide, num_steps=np.int64(30), progress=False)
    assert len(result.history.loss) == 30
