"""Every estimator for discrete latents on every target that can be enumerated."""

import jax
import numpy as np
import pytest

import bbvi
import models
from bbvi.testing import check_mean, replicate_gradients
from tests.estimators.oracles import enumerated_gradient
from tests.estimators.test_score_function import with_coefficient

ESTIMATORS = [
    bbvi.ScoreFunction(8),
    bbvi.ScoreFunction(8, signal="blanket"),
    bbvi.ScoreFunction(8, bbvi.LearnedBaseline(), "blanket"),
    bbvi.ScoreFunction(8, signal="full"),
    bbvi.VarGrad(8),
    bbvi.LocalExpectation(2),
    bbvi.CoordinateControlVariate(8),
    bbvi.Overdispersed(8),
]


class HalfWay(bbvi.ScoreFunction):
    """Starts with a learned coefficient of one half."""

    def init(self, problem, params, x):
        return with_coefficient(super().init(problem, params, x), 0.5)


@pytest.fixture(scope="module", params=["gaussian_mixture_small", "hidden_markov", "ising"])
def enumerated(request):
    target = models.get(request.param)
    x, guide = target.data(), target.guides["mean_field"]()
    problem = bbvi.Problem(target.log_joint, guide)
    # Wider than at a start, where the gradient of the spins is small against its noise.
    params = jax.tree.map(lambda leaf: 5 * leaf, problem.init(jax.random.key(3), x))
    return problem, params, x, enumerated_gradient(problem, params, x)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, HalfWay(8)], ids=repr)
def test_unbiased_by_enumeration(enumerated, estimator):
    problem, params, x, exact = enumerated
    estimator.validate(problem, params, x)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, x, 20_000)
    check_mean(gradients, exact, power=0.2)
    # Along the exact gradient the test is sharper: a bias of 5 % of it could not pass.
    share = gradients @ exact / (exact @ exact)
    check_mean(share[:, None], np.ones(1), power=0.03)
