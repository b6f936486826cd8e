"""The factor graph as it is explained: tables in plain data, and advice tied to findings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import bbvi

N = 12
Y = np.linspace(-1.0, 1.0, N)
GROUP = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 1, 1])


def prior(z):
    return norm.logpdf(z).sum()


def reads_of(explanation, shape):
    """What the terms of a shape read, as ``{latent: (entries, how many, kind)}``."""
    return [
        {read.latent: (read.entries, read.count, read.kind) for read in term.reads}
        for term in explanation.terms
        if term.shape == shape
    ]


def mixture(x, z):
    c = z["c"]
    return prior(z["means"]) + jnp.log(z["p"])[c].sum() + norm.logpdf(x, z["means"][c]).sum()


GUIDE = bbvi.MeanField(
    {
        "c": bbvi.Categorical(3, (N,)),
        "means": bbvi.Normal((3,)),
        "p": bbvi.Dirichlet((3,)),
    }
)


def test_terms_of_a_mixture():
    explanation = bbvi.explain(mixture, Y, GUIDE)
    assert reads_of(explanation, (3,)) == [{"means": ("[i]", 1, "aligned")}]
    assert reads_of(explanation, (N,)) == [
        {"p": ("[:]", 3, "dense"), "c": ("[i]", 1, "aligned")},
        {"means": ("[:]", 3, "dense"), "c": ("[i]", 1, "aligned")},
    ]
    assert all("test_explain.py:" in term.label for term in explanation.terms)


def test_latents_of_a_mixture():
    c, means, p = bbvi.explain(mixture, Y, GUIDE).latents
    assert (c.name, c.shape, c.dtype, c.num_colours) == ("c", (N,), np.int32, 1)
    # An assignment meets all means and weights; a mean all assignments and the other means.
    assert (c.mean_blanket, c.max_blanket, c.num_measured) == (6, 6, N)
    assert (means.mean_blanket, p.max_blanket) == (N + 2, N + 2)
    assert (means.num_colours, means.num_unread, p.num_unread) == (None, 0, 0)
    num_factors = 3 + 2 * N
    assert c.share == pytest.approx(2 / num_factors)
    assert means.share == pytest.approx((1 + N) / num_factors)


def test_blankets_that_differ_from_entry_to_entry():
    def chain(x, z):
        return prior(z[1:] - z[:-1])

    (latent,) = bbvi.explain(chain, None, np.zeros(5)).latents
    assert latent.max_blanket == 2
    assert latent.mean_blanket == pytest.approx(8 / 5)


def test_data_indices_are_followed_at_their_values():
    """The analysis is one of traced x; the numbers are those of this x."""
    group = np.array([0, 0, 0, 1])

    def by_group(x, z):
        return norm.logpdf(z["a"][x] - z["b"]).sum()

    explanation = bbvi.explain(by_group, group, {"a": np.zeros(3), "b": np.zeros(4)})
    assert reads_of(explanation, (4,)) == [
        {"a": ("[idx(i)]", 1, "aligned"), "b": ("[i]", 1, "aligned")}
    ]
    a, b = explanation.latents
    assert (a.max_blanket, a.num_unread, b.max_blanket) == (3, 1, 1)
    assert a.mean_blanket == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "z",
    [
        {"c": np.zeros(N, int), "means": np.zeros(3), "p": np.ones(3) / 3},
        {
            "c": jax.ShapeDtypeStruct((N,), jnp.int32),
            "means": jax.ShapeDtypeStruct((3,), jnp.float32),
            "p": jax.ShapeDtypeStruct((3,), jnp.float32),
        },
    ],
    ids=["draw", "shapes"],
)
def test_a_draw_or_shapes_do_as_well_as_a_guide(z):
    expected, found = bbvi.explain(mixture, Y, GUIDE), bbvi.explain(mixture, Y, z)
    assert [term.reads for term in found.terms] == [term.reads for term in expected.terms]
    assert found.advice == expected.advice


def test_learned_parameters():
    def with_theta(x, z, theta):
        return prior(z * theta)

    explanation = bbvi.explain(with_theta, None, np.zeros(3), np.array(2.0))
    assert reads_of(explanation, (3,)) == [{"latents": ("[i]", 1, "aligned")}]


def test_the_table():
    text = repr(bbvi.explain(mixture, Y, GUIDE))
    assert "3 terms with 27 entries, 3 latent leaves with 18 entries" in text
    assert "This is what fit uses. It traces x" in text
    (row,) = (line for line in text.splitlines() if "means[i]" in line)
    assert row.split()[-3:] == ["means[i]", "1", "aligned"]
    (row,) = (line for line in text.splitlines() if line.startswith("c "))
    assert row.split() == ["c", "int32[12]", "6,", "6", "of", "17", "others", "7.41%", "of",
                           "entries", "1"]  # fmt: skip
    assert text.splitlines()[-1].startswith("- Latent 'c' holds integers")


def advice(log_joint, x, z):
    return bbvi.explain(log_joint, x, z).advice


def test_nothing_to_say():
    assert advice(lambda x, z: prior(z["a"]) + prior(x - z["a"]), Y, {"a": np.zeros(N)}) == ()
    assert advice(lambda x, z: prior(z), None, 1.0) == ()

    def pairs(x, z):  # every two entries share a term, yet most terms do not read a given entry
        return jnp.square(z[:, None] - z[None]).sum()

    assert advice(pairs, None, np.zeros(N)) == ()


def callback(v):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(v.shape, v.dtype), v)


@jax.custom_vjp
def likelihood(y, z):
    return norm.logpdf(y, z).sum()


likelihood.defvjp(lambda y, z: (likelihood(y, z), y - z), lambda r, g: (-g * r, g * r))


@jax.custom_jvp
def positive(v):
    return jnp.maximum(v, 0)


positive.defjvp(lambda v, t: (positive(*v), t[0] * (v[0] > 0)))


def smoothed(x, z):
    def step(state, innovation):
        state = 0.9 * state + innovation
        return state, norm.logpdf(state)

    return jax.lax.scan(step, jnp.zeros(()), z)[1].sum() + prior(z)


def determinant(x, z):
    factor = jnp.linalg.cholesky(jnp.eye(3) + z @ z.T)
    return prior(z) - jnp.log(jnp.diagonal(factor)).sum()


@pytest.mark.parametrize(
    ("log_joint", "x", "size", "message"),
    [
        (
            lambda x, z: prior(z) + norm.logpdf(x, callback(z)).sum(),
            Y,
            N,
            r"reads latents\[:\] because of `pure_callback at test_explain.py:\d+`: there is no "
            r"rule.*bbvi.FactorizedLogJoint",
        ),
        (
            lambda x, z: prior(z) + likelihood(x, z),
            Y,
            N,
            r"'custom_vjp_call at test_explain.py:\d+' is one number that reads latents\[:\].*"
            "return its terms as an array",
        ),
        (
            lambda x, z: prior(z) + norm.logpdf(x, jnp.cumsum(z)).sum(),
            Y,
            N,
            r"because of `cumsum at test_explain.py:\d+`.*Make the running total itself the latent",
        ),
        (
            smoothed,
            None,
            20,
            r"because of `scan at test_explain.py:\d+`.*make the state itself the latent",
        ),
        (
            determinant,
            None,
            (3, 3),
            r"because of `cholesky at test_explain.py:\d+`.*give the blocks a leading axis",
        ),
        (
            lambda x, z: prior(z) + prior(jnp.sort(z)),
            None,
            N,
            r"because of `sort at test_explain.py:\d+`: it mixes all entries",
        ),
        (
            lambda x, z: jnp.log1p(jnp.sum(z**2)),
            None,
            N,
            r"a single term, 'log1p at test_explain.py:\d+', .*bbvi.FactorizedLogJoint",
        ),
        (
            lambda x, z: prior(z) + jax.nn.log_sigmoid(x @ z).sum(),
            np.ones((5, N)),
            N,
            r"nothing to gain: every term that is shared reads everything, as '.*' reads latents",
        ),
    ],
    ids=["unknown", "custom_vjp", "cumsum", "scan", "cholesky", "sort", "one term", "dense"],
)
def test_advice_on_terms_that_read_everything(log_joint, x, size, message):
    (sentence,) = advice(log_joint, x, np.zeros(size))
    assert_matches(sentence, message)


def assert_matches(sentence, message):
    with pytest.raises(ValueError, match=message):
        raise ValueError(sentence)


def test_elementwise_functions_with_a_rule_of_their_own_are_no_trouble():
    assert advice(lambda x, z: prior(z) + norm.logpdf(x, positive(z)).sum(), Y, np.zeros(N)) == ()


COUPLING = np.eye(N, k=1) + np.eye(N, k=-1)


@pytest.mark.parametrize(
    ("log_joint", "x", "size", "message"),
    [
        (
            lambda x, z: prior(z) + prior(jnp.tanh(x["coupling"] @ z)),
            {"coupling": COUPLING},
            N,
            "reads entries of 'latents' 144 times; with the values of data 'coupling' known it "
            "would 22 times, but fit traces x.*close over it as a constant.*pairs of indices",
        ),
        (
            lambda x, z: prior(z) + norm.logpdf(x["y"], x["one_hot"] @ z).sum(),
            {"y": Y, "one_hot": np.eye(4)[GROUP]},
            4,
            r"48 times; .*data 'one_hot' known it would 12 times.*z\['latents'\]\[index\]",
        ),
        (
            lambda x, z: prior(z) + norm.logpdf(x["y"], jax.nn.one_hot(x["group"], 4) @ z).sum(),
            {"y": Y, "group": GROUP},
            4,
            r"48 times; .*data 'group' known it would 12 times.*z\['latents'\]\[index\]",
        ),
        (
            lambda x, z: prior(z) + norm.logpdf(x["y"], z[0] + x["treated"] * z[1]).sum(),
            {"y": Y, "treated": 1.0 * (np.arange(N) < 5)},
            2,
            "'latents' 24 times; .*data 'treated' known it would 17 times.*close over it",
        ),
    ],
    ids=["coupling", "one-hot data", "one-hot of indices", "zeros"],
)
def test_advice_on_data_that_fit_does_not_look_at(log_joint, x, size, message):
    (sentence,) = advice(log_joint, x, np.zeros(size))
    assert_matches(sentence, message)


def test_terms_that_a_mask_sets_to_zero_are_harmless():
    def log_joint(x, z):
        return prior(z) + (x["mask"] * norm.logpdf(x["y"], z[0])).sum()

    assert advice(log_joint, {"y": Y, "mask": 1.0 * (np.arange(N) < 5)}, np.zeros(2)) == ()


def test_advice_names_all_latents_of_a_term_once():
    def log_joint(x, z):
        looked_up = jax.nn.one_hot(x, 4) @ z["a"] * jnp.exp(jax.nn.one_hot(x, 4) @ z["b"])
        return prior(z["a"]) + prior(z["b"]) + prior(looked_up)

    (sentence,) = advice(log_joint, GROUP, {"a": np.zeros(4), "b": np.zeros(4)})
    assert "reads entries of 'a', 'b' 96 times; with the values of data 'x' known" in sentence


def test_constants_that_are_closed_over_are_used():
    def log_joint(x, z):
        return prior(z) + prior(jnp.tanh(COUPLING @ z))

    assert advice(log_joint, None, np.zeros(N)) == ()
    assert bbvi.explain(log_joint, None, np.zeros(N)).latents[0].max_blanket == 2


def test_advice_on_latents_that_are_not_read():
    z = {"a": np.zeros(2), "b": np.zeros(5), "c": np.zeros(3)}
    partly, never = advice(lambda x, z: prior(z["a"]) + prior(z["b"][2:]), None, z)
    assert "2 of 5 entries of latent 'b' are never read" in partly
    assert "Latent 'c' is never read" in never
    assert "fit refuses it" in never


def test_advice_on_integers():
    def grid(x, z):
        return 1.0 * (z[:, 1:] * z[:, :-1]).sum() + 1.0 * (z[1:] * z[:-1]).sum()

    (sentence,) = advice(grid, None, np.zeros((4, 5), int))
    assert "Latent 'latents' holds integers" in sentence
    assert "LocalExpectation sums its entries out exactly, in 2 groups" in sentence

    def complete(x, z):
        return -jnp.square(1.0 * z.sum())

    *_, sentence = advice(complete, None, np.zeros(9, int))
    assert "LocalExpectation would need 9 evaluations" in sentence

    def by_data(x, z):
        return 1.0 * (z[x] * z[x[::-1]]).sum()

    (sentence,) = advice(by_data, GROUP, np.zeros(4, int))
    assert "depends on data, so that LocalExpectation cannot" in sentence


def test_bad_log_joints_are_refused():
    with pytest.raises(ValueError, match=r"in Python at test_explain\.py:\d+"):
        bbvi.explain(lambda x, z: z if z > 0 else -z, None, 1.0)
    with pytest.raises(ValueError, match=r"must return a scalar for ONE draw.*got shape \(2,\)"):
        bbvi.explain(lambda x, z: z, None, np.zeros(2))
    with pytest.raises(ValueError, match="looks up 'b', which there is not"):
        bbvi.explain(lambda x, z: z["b"], None, {"a": 1.0})
