import jax
import jax.numpy as jnp
import pytest

import bbvi


def mixture(x, z):
    return -0.5 * jnp.sum((x - z["mu"][z["c"]]) ** 2) - 0.5 * jnp.sum(z["mu"] ** 2)


GUIDE = bbvi.MeanField({"mu": bbvi.Normal((2,)), "c": bbvi.Categorical(2, (3,))})
X = jnp.array([-1.0, 0.5, 2.0])


@pytest.fixture(scope="module")
def choice():
    return bbvi.choose_estimator(mixture, GUIDE, X, key=jax.random.key(0), num_samples=4)


def test_measures_every_valid_estimator(choice):
    kinds = {}
    for m in choice.measurements:
        kinds.setdefault(m.site, set()).add(type(m.estimator).__name__)
    assert kinds == {
        "mu": {"ScoreFunction", "Reparameterization"},
        "c": {"ScoreFunction", "LocalExpectation"},
    }
    assert sum(m.site == "mu" for m in choice.measurements) == 4


def test_takes_the_least_product(choice):
    chosen = dict(choice.estimator.estimators)
    for site, estimator in chosen.items():
        rows = [m for m in choice.measurements if m.site == site]
        assert min(rows, key=lambda m: m.variance * m.seconds).estimator == estimator
        assert all(m.variance > 0 and m.seconds > 0 for m in rows)


def test_prefers_what_theory_does(choice):
    """Pathwise for the means of a quadratic, sums for labels, against the best of three signals.

    The variances' true ratios here are near 0.4 and 0.35.
    """
    variances = {}
    for m in choice.measurements:
        variances.setdefault((m.site, type(m.estimator).__name__), []).append(m.variance)
    [pathwise], [summed] = variances["mu", "Reparameterization"], variances["c", "LocalExpectation"]
    assert pathwise < 0.7 * min(variances["mu", "ScoreFunction"])
    assert summed < 0.6 * min(variances["c", "ScoreFunction"])


def test_table_names_every_site_and_estimator(choice):
    table = repr(choice)
    assert table.splitlines()[0].split() == ["site", "variance", "µs", "product", "estimator"]
    assert len(table.splitlines()) == 1 + len(choice.measurements)
    for m in choice.measurements:
        assert repr(m.estimator) in table


def test_fit_takes_the_choice(choice):
    result = bbvi.fit(
        mixture, GUIDE, X, key=jax.random.key(1), estimator=choice.estimator, progress=False
    )
    assert result.status == "converged"


def test_only_valid_estimators_are_measured():
    """Nothing pathwise where the derivative is zero everywhere."""
    choice = bbvi.choose_estimator(
        lambda x, z: -(jnp.round(z) ** 2),
        bbvi.MeanField(bbvi.Normal()),
        key=jax.random.key(0),
        num_samples=2,
        num_steps=0,
        num_replicates=10,
    )
    assert {type(m.estimator) for m in choice.measurements} == {bbvi.ScoreFunction}


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="num_samples must be an int >= 2, got 1"):
        bbvi.choose_estimator(mixture, GUIDE, X, key=jax.random.key(0), num_samples=1)
