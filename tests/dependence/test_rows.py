"""What is a sum over rows is taken apart exactly, and what is none is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm

from bbvi.dependence.rows import data_and_rest

X = np.random.default_rng(0).normal(size=(6, 3))
W = np.random.default_rng(1).normal(size=3)
U = np.random.default_rng(2).normal(size=6)


# log joint, z, and by hand what each row and the rest of it are.
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("log_joint", "z", "rows", "rest"),
    [
        pytest.param(
            lambda x, w: jnp.sum(norm.logpdf(x, w[None, :], 2.0)) + jnp.sum(w**2),
            W,
            lambda x, w: norm.logpdf(x, w[None, :], 2.0),
            lambda w: w**2,
            id="normaliser goes with the rows",
        ),
        pytest.param(
            lambda x, w: jnp.sum(x.sum(axis=0) * w) - jnp.sum(w**2),
            W,
            lambda x, w: x * w,
            lambda w: -(w**2),
            id="sufficient statistic",
        ),
        pytest.param(
            lambda x, w: jnp.sum((x + jnp.sum(w)).reshape(-1)[::-1]),
            W,
            lambda x, w: x + np.sum(w),
            lambda w: 0.0,
            id="what stands in every row is there once for each",
        ),
        pytest.param(
            lambda x, w: jnp.sum(jnp.concatenate([w, jnp.cos(x @ w)])),
            W,
            lambda x, w: np.cos(x @ w),
            lambda w: w,
            id="joined in one array",
        ),
        pytest.param(
            lambda x, w: jax.lax.map(lambda row: norm.logpdf(row @ w), x).sum() + w[0],
            W,
            lambda x, w: norm.logpdf(x @ w),
            lambda w: w[0],
            id="mapped",
        ),
        pytest.param(
            lambda x, u: jnp.sum(norm.logpdf(x[:, 0], u)) + jnp.sum(u**2),
            U,
            lambda x, u: norm.logpdf(x[:, 0], u) + u**2,
            lambda u: 0.0,
            id="one latent for each row",
        ),
        pytest.param(
            lambda x, u: jnp.sum(norm.logpdf(x[:, :1] * u[None, :])) + jnp.sum(u**2),
            U,
            lambda x, u: norm.logpdf(x[:, :1] * u[None, :]),
            lambda u: u**2,
            id="as many latents as rows",
        ),
    ],
)
def test_both_sums_are_those_by_hand(log_joint, z, rows, rest):
    got = data_and_rest(log_joint, None, jnp.asarray(X), jnp.asarray(z))
    np.testing.assert_allclose(got["data"], np.sum(rows(X, z)), rtol=1e-12)
    np.testing.assert_allclose(got["rest"], np.sum(rest(z)), rtol=1e-12)


def covariance_of_rows(x):
    return jnp.exp(-((x[:, None] - x[None, :]) ** 2)) + jnp.eye(x.shape[0])


MU = {"mu": 0.5}
PLACES = {"mu": np.zeros(24)}


@pytest.mark.parametrize(
    ("log_joint", "z", "message"),
    [
        pytest.param(
            lambda x, z: jnp.mean(norm.logpdf(x, z["mu"])) + norm.logpdf(z["mu"]),
            MU,
            "other than by a sum over them, such as by a mean",
            id="mean",
        ),
        pytest.param(
            lambda x, z: jnp.asarray(x.shape[0]) * jnp.sum(norm.logpdf(x, z["mu"])),
            MU,
            "other than by a sum",
            id="sum times size",
        ),
        pytest.param(
            lambda x, z: 24.0 / x.shape[0] * jnp.sum(norm.logpdf(x, z["mu"])),
            MU,
            "a factor N/B",
            id="scaled already",
        ),
        pytest.param(
            lambda x, z: -0.5 * jnp.sum((x / z["mu"]) ** 2) - x.shape[0] * jnp.log(z["mu"]),
            MU,
            "a normaliser times x.shape",
            id="normaliser",
        ),
        pytest.param(
            lambda x, z: jnp.sum(norm.logpdf(x, z["mu"])) + z["mu"] * x[0],
            MU,
            "does not have entries for each row",
            id="first row",
        ),
        pytest.param(
            lambda x, z: (
                multivariate_normal.logpdf(x, jnp.zeros(x.shape), covariance_of_rows(x))
                + norm.logpdf(z["mu"])
            ),
            MU,
            "does not have entries for each row",
            id="Gaussian process",
        ),
        pytest.param(
            lambda x, z: norm.logpdf(x[1:], z["mu"] * x[:-1]).sum(),
            MU,
            "does not have entries for each row.*or declare which terms",
            id="autoregression",
        ),
        pytest.param(
            lambda x, z: norm.logpdf(jnp.sum(x), z["mu"]),
            MU,
            "'.* at test_rows.py.*' of shape .* does not have entries",
            id="function of the sum",
        ),
        pytest.param(
            lambda x, z: norm.logpdf(x, z["mu"]).sum() + norm.logpdf(jnp.diff(z["mu"])).sum(),
            {"mu": np.zeros(6)},
            "does not have entries for each row",
            id="chain of local latents",
        ),
        pytest.param(
            lambda x, z: norm.logpdf(x, z["mu"][: x.shape[0]]).sum(),
            PLACES,
            "latent 'mu' of shape .24,. is read by the place of a row",
            id="by place",
        ),
        pytest.param(
            lambda x, z: norm.logpdf(jnp.arange(6.0), z["mu"]).sum(),
            MU,
            "no term of log_joint reads a row of x",
            id="data closed over",
        ),
        pytest.param(
            lambda x, z: norm.logpdf(x * jnp.ones(6), z["mu"]).sum(),
            MU,
            "takes 6 rows but not 12",
            id="one size",
        ),
        pytest.param(
            lambda x, z: norm.logpdf(x, z["mu"]), MU, "must return one real scalar", id="not summed"
        ),
    ],
)
def test_what_is_no_sum_over_rows_is_refused(log_joint, z, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(data_and_rest, log_joint, None), jnp.zeros(6), z)


def test_one_row_is_refused():
    log_joint = lambda x, z: norm.logpdf(x, z).sum()  # noqa: E731
    with pytest.raises(ValueError, match="batch of one row"):
        data_and_rest(log_joint, None, jnp.zeros(1), 0.0)
