"""When has a loss levelled off?"""

import numpy as np
import pytest

import bbvi
from bbvi.infer.stopping import trend


def noise(size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def test_trend_of_a_line():
    change = trend(-0.5 * np.arange(400.0))
    assert change.gain == pytest.approx(50.0)
    assert change.num_steps == 100


def test_standard_error_of_the_trend_is_calibrated():
    changes = [trend(noise(4000, seed)) for seed in range(200)]
    scores = np.array([change.gain / change.standard_error for change in changes])
    assert 0.8 < scores.std() < 1.3
    assert abs(scores.mean()) < 0.3


def test_level_noise_is_level_and_a_slope_is_not():
    rule = bbvi.Plateau()
    assert rule.is_level(noise(8000))
    assert not rule.is_level(noise(8000) - 1e-3 * np.arange(8000))
    assert rule.is_level(noise(8000) + 1e-3 * np.arange(8000))  # getting worse is not progress


def test_a_constant_loss_is_level():
    assert bbvi.Plateau().is_level(np.full(1000, 3.0))


def test_a_short_record_is_never_level():
    assert not bbvi.Plateau(min_steps=2000).is_level(np.zeros(1999))
    assert bbvi.Plateau(min_steps=2000).is_level(np.zeros(2000))


def test_restarts_are_level_when_all_are():
    rule, level, falling = bbvi.Plateau(), noise(8000), noise(8000, 1) - 1e-3 * np.arange(8000)
    assert rule.is_level(np.stack([level, level]))
    assert not rule.is_level(np.stack([level, falling]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be a positive number, got 0.0"),
        ({"tolerance": -1.0}, "tolerance must be a positive number, got -1.0"),
        ({"min_steps": 99}, "min_steps must be an int >= 100, got 99"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bbvi.Plateau(**arguments)
