import itertools

import jax
import numpy as np
import pytest
from scipy import special, stats

import models


@pytest.mark.usefixtures("x64")
def test_log_joint_equals_a_loop(draw):
    z = draw("karate_club")
    b, c = np.asarray(z["b"]), np.asarray(z["c"])
    edges = {(i, j) for i, later in models.karate_club.FRIENDS.items() for j in later}
    expected = stats.norm.logpdf(b, 0.0, 2.0).sum() + 34 * np.log(0.5)
    for i, j in itertools.combinations(range(34), 2):
        friendly = special.expit((b[c[i], c[j]] + b[c[j], c[i]]) / 2.0)
        expected += np.log(friendly if (i + 1, j + 1) in edges else 1.0 - friendly)
    actual = jax.jit(models.karate_club.log_joint)(models.karate_club.data(), z)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_friends_are_counted_as_published():
    x = models.karate_club.data()
    friends = np.asarray(x["friends"]) == 1.0
    ends = np.concatenate([x["first"][friends], x["second"][friends]])
    degrees = np.bincount(ends, minlength=34).tolist()
    assert degrees == [
        *(16, 9, 10, 6, 3, 4, 4, 4, 5, 2, 3, 1, 2, 5, 2, 2, 2),
        *(2, 2, 3, 2, 2, 2, 5, 3, 3, 2, 4, 3, 4, 4, 6, 12, 17),
    ]


def test_simulated_members_do_not_befriend_themselves():
    x = models.karate_club.simulate(num_members=5, num_pairs=1000)
    assert not np.any(x["first"] == x["second"])
    assert np.max(x["second"]) == np.max(x["first"]) == 4
