"""The exact self-check of the analysis: right analyses pass, broken ones are named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import bbvi
from bbvi.dependence import blankets
from bbvi.dependence.analysis import RULES

GROUP = np.array([0, 2, 2, 1, 0, 1])
Y = np.linspace(-1.0, 1.0, 6)
X = {"y": Y, "group": GROUP}
Z = {"a": np.array([0.3, -0.8, 1.1]), "m": np.array(0.4)}


def log_joint(x, z):
    log_prior = norm.logpdf(z["a"], z["m"]).sum() + norm.logpdf(z["m"])
    return log_prior + norm.logpdf(x["y"], z["a"][x["group"]]).sum()


def anew():
    """The same log joint as a new function, so that no analysis made before is used."""
    return lambda x, z: log_joint(x, z)


def test_a_right_analysis_passes():
    report = bbvi.check_blankets(log_joint, X, Z)
    assert report.checked == report.sizes == {"a": 3, "m": 1}
    assert report.worst_error < 1e-13
    assert report.tolerance == 1e-8
    assert "worst relative error" in repr(report)
    assert "a: 3 of 3 entries checked" in repr(report)


def test_integers_take_all_their_values():
    table = np.array([[0.1, -2.0, 0.7], [1.5, 0.0, -0.4], [0.2, 0.9, -1.0]])

    def chain(x, z):
        return jnp.asarray(table)[z[:-1], z[1:]].sum() + x @ (z == 2)

    report = bbvi.check_blankets(
        chain, np.linspace(0.0, 1.0, 8), np.array([0, 2, 1, 1, 0, 2, 2, 0])
    )
    assert report.checked == {"latents": 8}
    assert report.worst_error < 1e-13


def test_learned_parameters_are_passed_on():
    def with_theta(x, z, theta):
        return theta * norm.logpdf(z).sum() + norm.logpdf(x, z, jnp.exp(theta)).sum()

    report = bbvi.check_blankets(with_theta, np.ones(4), np.arange(4.0), 0.3)
    assert report.checked == {"latents": 4}


def test_large_latents_are_checked_at_some_entries():
    report = bbvi.check_blankets(
        lambda x, z: norm.logpdf(z).sum(), None, np.linspace(-1.0, 2.0, 5000), max_entries=40
    )
    assert (report.checked, report.sizes) == ({"latents": 40}, {"latents": 5000})
    with pytest.raises(ValueError, match="max_entries must be at least 1, got 0"):
        bbvi.check_blankets(log_joint, X, Z, max_entries=0)


@pytest.mark.parametrize(
    "guide",
    [
        bbvi.MeanField({"p": bbvi.Dirichlet((2, 3)), "c": bbvi.Categorical(3, (4,))}),
        bbvi.Product(
            bbvi.FullRank({"p": bbvi.Normal((2, 3))}),
            bbvi.MeanField({"c": bbvi.Categorical(3, (4,))}),
        ),
    ],
    ids=["rows", "one block"],
)
def test_a_guide_in_place_of_a_draw_gives_its_blocks(guide):
    def mixture(x, z):
        p = z["p"]
        return (p[x, z["c"]] ** 2).sum() + jnp.cos(p).sum()

    report = bbvi.check_blankets(mixture, np.array([0, 1, 1, 0]), guide)
    assert report.checked == {"c": 4, "p": 6}


def test_entries_that_leave_the_support_do_not_count():
    def on_simplex(x, z):
        return jnp.where(jnp.abs(z["p"].sum() - 1) < 1e-6, jnp.log(z["p"]) @ x, -jnp.inf) + z["m"]

    z = {"p": np.array([0.2, 0.8]), "m": np.array(1.0)}
    report = bbvi.check_blankets(on_simplex, np.array([3.0, 4.0]), z)
    assert report.checked == {"m": 1, "p": 0}


def test_the_function_is_left_as_it_was():
    function = jax.jit(log_joint)
    before = function(X, Z)
    is_double = jax.config.jax_enable_x64
    bbvi.check_blankets(function, X, Z)
    assert jax.config.jax_enable_x64 == is_double
    assert function(X, Z).dtype == before.dtype
    assert float(function(X, Z)) == float(before)


def test_a_function_in_single_precision_by_name():
    carry = jnp.zeros((), jnp.float32)

    def loop(x, z):  # with a carry of 64 bits it cannot be traced
        return jax.lax.scan(lambda c, value: (value, jnp.sin(value - c)), carry, z)[1].sum()

    z = jnp.linspace(-1.0, 2.0, 5, dtype=jnp.float32)
    report = bbvi.check_blankets(loop, None, z)
    assert report.checked == {"latents": 5}
    assert report.tolerance == 1e-5
    if not jax.config.jax_enable_x64:
        assert 0 < report.worst_error < 1e-6


def test_constants_in_single_precision_are_allowed_for():
    table = jnp.asarray([0.1, 1.7, -0.3], jnp.float32)
    report = bbvi.check_blankets(lambda x, z: table[z].sum() + x[0], Y, np.array([0, 2, 1, 2]))
    assert report.checked == {"latents": 4}
    assert report.tolerance == 1e-5
    assert 1e-12 < report.worst_error < 1e-6


def test_a_rule_that_loses_a_pointer_is_found(monkeypatch):
    monkeypatch.setitem(RULES, "gather", lambda analysis, equation, operands: [[]])
    with pytest.raises(
        ValueError, match=r"read latent 'a' entry \[\d\] are not the ones"
    ) as caught:
        bbvi.check_blankets(anew(), X, Z)
    assert "square at test_check.py:" in str(caught.value)
    assert "of which 0 counted" in str(caught.value)
    assert "signal='full'" in str(caught.value)


def break_graph(monkeypatch, change):
    """Let every graph be ``change(graph)``."""
    right = blankets.factor_graph

    def broken(*args, **options):
        graph, program = right(*args, **options)
        return change(graph), program

    monkeypatch.setattr(blankets, "factor_graph", broken)


def with_plan(graph, number, name, plan):
    terms = list(graph.terms)
    plans = {**terms[number].plans, name: plan}
    plans = {site: found for site, found in plans.items() if found is not None}
    terms[number] = dataclasses.replace(terms[number], plans=plans)
    return dataclasses.replace(graph, terms=tuple(terms))


def number_of(graph, shape, name):
    (number,) = (k for k, t in enumerate(graph.terms) if t.shape == shape and name in t.plans)
    return number


def test_a_lost_plan_is_found(monkeypatch):
    break_graph(monkeypatch, lambda g: with_plan(g, number_of(g, (3,), "m"), "m", None))
    with pytest.raises(ValueError, match=r"read latent 'm' are not the ones") as caught:
        bbvi.check_blankets(anew(), X, Z)
    assert "of which 0 counted" in str(caught.value)


def test_a_term_counted_twice_is_found(monkeypatch):
    def twice(graph):
        number = number_of(graph, (6,), "a")
        plan = graph.terms[number].plans["a"]
        doubled = dataclasses.replace(plan, accumulate=lambda f: 2 * plan.accumulate(f))
        return with_plan(graph, number, "a", doubled)

    break_graph(monkeypatch, twice)
    with pytest.raises(ValueError, match=r"read latent 'a' entry \[\d\]") as caught:
        bbvi.check_blankets(anew(), X, Z)
    (changed, counted) = str(caught.value).split("changed by ")[1].split(", of which ")
    assert float(counted.split(" ")[0]) == pytest.approx(2 * float(changed), rel=1e-4)


def test_terms_that_do_not_add_up_are_found(monkeypatch):
    right = blankets.additive_factors

    def shifted(*args, **kwargs):
        factors = right(*args, **kwargs)
        return factors._replace(arrays=[factors.arrays[0] + 1.0, *factors.arrays[1:]])

    monkeypatch.setattr(blankets, "additive_factors", shifted)
    with pytest.raises(ValueError, match="all terms together differ from log_joint by 3"):
        bbvi.check_blankets(anew(), X, Z)


def test_the_log_joint_must_be_finite():
    with pytest.raises(ValueError, match="log_joint is -inf at z; check it at latents where"):
        bbvi.check_blankets(lambda x, z: jnp.log(z).sum(), None, np.array([0.0, 1.0]))


def test_python_control_flow_is_refused():
    def decides(x, z):
        return z if z > 0 else -z

    with pytest.raises(ValueError, match=r"in Python at test_check\.py:\d+ (.|\n)*jnp.where"):
        bbvi.check_blankets(decides, None, 1.0)
