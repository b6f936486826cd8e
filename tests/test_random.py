import jax
import numpy as np
import pytest

from bbvi._random import draw_flat


@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2), (4, 0)])
@pytest.mark.parametrize("draw", [jax.random.uniform, jax.random.normal, jax.random.exponential])
def test_the_same_numbers_as_in_the_shape(draw, shape, key):
    drawn = draw_flat(draw, key, shape)
    assert drawn.shape == shape
    np.testing.assert_array_equal(drawn, draw(jax.random.clone(key), shape))


def test_options_reach_the_generator(key):
    drawn = draw_flat(jax.random.uniform, key, (100, 3), minval=2.0, maxval=3.0)
    whole = jax.random.uniform(jax.random.clone(key), (100, 3), minval=2.0, maxval=3.0)
    np.testing.assert_array_equal(drawn, whole)
    assert drawn.min() >= 2.0
