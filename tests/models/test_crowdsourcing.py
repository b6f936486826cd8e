import jax
import numpy as np
import pytest
from scipy import special, stats

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop(draw):
    x, z = models.crowdsourcing.data(), draw("crowdsourcing")
    label, skill = np.asarray(z["label"]), np.asarray(z["skill"])
    expected = stats.bernoulli.logpmf(label, 0.4).sum() + stats.norm.logpdf(skill, 1.0).sum()
    for task, worker, answer in zip(x["task"], x["worker"], x["answer"], strict=True):
        correct = special.expit(skill[worker])
        expected += np.log(correct if answer == label[task] else 1.0 - correct)
    actual = jax.jit(models.crowdsourcing.log_joint)(x, z)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_no_worker_answers_twice():
    x = models.crowdsourcing.data(num_tasks=50, num_workers=9, answers_per_task=7)
    pairs = np.stack([x["task"], x["worker"]], axis=1)
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 350
