"""Optax transformations compared by value."""

import chex
import optax
import pytest

import bbvi
from bbvi._optimizers import Optimizer

MAKERS = {
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9),
    "rmsprop": lambda: optax.rmsprop(1e-2),
    "adagrad": lambda: optax.adagrad(1e-2),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(1e-2), "b": optax.sgd(1e-3)}, {"x": "a", "y": "b"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "schedule": lambda: optax.adam(optax.exponential_decay(1e-2, 100, 0.5)),
    "alternating": lambda: bbvi.alternating(
        optax.adam(1e-2), optax.sgd(1e-3), num_guide_steps=5, num_model_steps=2
    ),
    "cosine": lambda: optax.sgd(optax.cosine_decay_schedule(1e-2, 100)),
}


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"inject_hyperparams"}))
def test_equal_transformations_are_equal(name):
    first, second = Optimizer.of(MAKERS[name]()), Optimizer.of(MAKERS[name]())
    assert first == second
    assert hash(first) == hash(second)


def test_one_transformation_is_equal_to_itself():
    optimizer = MAKERS["inject_hyperparams"]()
    assert Optimizer.of(optimizer) == Optimizer.of(optimizer)


def test_different_transformations_are_not_equal():
    different = [make() for make in MAKERS.values()] + [
        optax.adam(2e-2),
        optax.adam(1e-2, b1=0.8),
        optax.sgd(1e-2, momentum=0.9, nesterov=True),
        optax.chain(optax.clip_by_global_norm(2.0), optax.adam(1e-2)),
        optax.adam(optax.exponential_decay(1e-2, 100, 0.6)),
        optax.multi_transform({"a": optax.adam(1e-2), "b": optax.sgd(1e-3)}, {"x": "b", "y": "a"}),
        bbvi.alternating(optax.adam(1e-2), optax.sgd(1e-3), num_guide_steps=5, num_model_steps=3),
        bbvi.alternating(optax.adam(1e-2), optax.sgd(1e-3), num_guide_steps=4, num_model_steps=3),
        bbvi.alternating(optax.sgd(1e-3), optax.adam(1e-2), num_guide_steps=5, num_model_steps=2),
    ]
    assert len({Optimizer.of(optimizer) for optimizer in different}) == len(different)


def test_schedules_of_the_user_compare_by_identity():
    def schedule(count):
        return 1e-2 / (1 + count)

    def other(count):
        return 1e-2 / (1 + count)

    assert Optimizer.of(optax.adam(schedule)) == Optimizer.of(optax.adam(schedule))
    assert Optimizer.of(optax.adam(schedule)) != Optimizer.of(optax.adam(other))


@pytest.mark.parametrize("wrong", [optax.adam, 1e-2, "adam", MAKERS])
def test_anything_else_is_refused(wrong):
    with pytest.raises(TypeError, match=r"must be an optax.GradientTransformation such as optax.a"):
        Optimizer.of(wrong)


def test_extra_arguments_reach_the_transformation():
    chosen = Optimizer.of(optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    state = chosen.transformation.init({"x": 1.0})
    updates, _ = chosen.transformation.update({"x": 1.0}, state, {"x": 1.0}, value=2.0)
    chex.assert_trees_all_close(updates, {"x": 1.0})
