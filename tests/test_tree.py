"""How leaves are called in messages."""

import jax
import jax.numpy as jnp
import pytest

from bbvi import _tree


def test_leaves_are_named_by_path():
    tree = {"a": 1, "b": [2, {"c": 3}], "d": (4,)}
    assert _tree.named_leaves(tree, "x") == {"a": 1, "b.0": 2, "b.1.c": 3, "d.0": 4}
    assert _tree.named_leaves(5, "x") == {"x": 5}
    assert _tree.named_leaves(None, "x") == {}


def test_shapes_describe_a_tree():
    tree = {"w": jnp.zeros((2, 3)), "c": jnp.zeros((4,), jnp.int32)}
    assert _tree.shapes(tree, "latents") == "{c: int32[4], w: float32[2, 3]}"


@pytest.mark.parametrize(
    ("dtype", "answer"),
    [(jnp.float32, True), (jnp.bfloat16, True), (jnp.int32, False), (bool, False)],
)
def test_is_floating(dtype, answer):
    assert _tree.is_floating(jnp.zeros(2, dtype)) == answer


def test_abstract_is_hashable_and_invertible():
    tree = {"w": jnp.zeros((2, 3)), "key": jax.random.key(0)}
    treedef, leaves = _tree.abstract(tree)
    assert hash((treedef, leaves)) == hash(_tree.abstract(tree))
    again = jax.tree.unflatten(treedef, leaves)
    assert again["w"].shape == (2, 3)
    assert _tree.abstract({"w": jnp.zeros((2, 4)), "key": jax.random.key(0)}) != (treedef, leaves)
