"""What estimators of jointly drawn samples share; each has its own file of tests as well."""

import jax
import jax.numpy as jnp

import bbvi
from bbvi.estimators.coupled import has_several_blocks
from bbvi.estimators.discrete import DiscreteModel

X = jnp.array([0.5, -1.0, 2.0])


def discrete_model(log_joint, site):
    problem = bbvi.Problem(log_joint, bbvi.MeanField({"b": site}))
    shapes = problem.draw_shapes(problem.init(jax.random.key(0), X), X)
    return DiscreteModel(log_joint, problem.guide.sites(), shapes, X, (), is_relaxed=False)


def test_several_blocks():
    """Entries that are all on their own have no others in their component."""
    three = bbvi.Bernoulli((3,))
    assert has_several_blocks(discrete_model(lambda x, z: 0.5 * z["b"].sum() ** 2, three))
    pairs = bbvi.Bernoulli((3, 2))
    assert has_several_blocks(discrete_model(lambda x, z: x @ z["b"].prod(1), pairs))
    assert not has_several_blocks(discrete_model(lambda x, z: x @ z["b"], three))
    assert not has_several_blocks(discrete_model(lambda x, z: 1.0 * z["b"], bbvi.Bernoulli()))
