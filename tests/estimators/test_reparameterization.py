import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.special import betaln, digamma, gammaln, i0e, i1e
from scipy import stats

import bbvi
from bbvi.testing import check_estimator, check_mean, normal_problem, replicate_gradients
from tests.estimators.oracles import (
    LOG_Z,
    MU,
    M,
    S,
    T,
    check_variance,
    estimate,
    gauss_hermite,
    gaussian_problem,
    normal_signal_problem,
)

ENTROPIES = ["closed_form", "monte_carlo", "stick_the_landing"]
REPLICATES = 100_000


# Identities.

SITES = {
    "normal": bbvi.MeanField({"z": bbvi.Normal((2,))}),
    "log-normal": bbvi.MeanField({"z": bbvi.LogNormal((2,))}),
    "full rank": bbvi.FullRank({"z": bbvi.LogNormal((2,))}),
}


@pytest.mark.parametrize("guide", SITES.values(), ids=list(SITES))
def test_monte_carlo_entropy_is_closed_form_draw_for_draw(guide, key):
    """log q at loc + scale e, differentiated in full, depends on the draw by a constant only."""
    problem = bbvi.Problem(
        lambda x, z: -jnp.sum(z["z"]) + 2.0 * jnp.sum(jnp.log1p(z["z"] ** 2)), guide
    )
    params = problem.init(jax.random.key(1), None)
    noise = problem.base_noise(key, 4)
    exact, sampled = (
        estimate(bbvi.Reparameterization(4, entropy), problem, params, noise)
        for entropy in ("closed_form", "monte_carlo")
    )
    assert abs(float(exact.loss - sampled.loss)) > 1e-3
    assert float(jnp.abs(ravel_pytree(exact.grads)[0]).max()) > 0.1
    np.testing.assert_allclose(
        ravel_pytree(sampled.grads)[0], ravel_pytree(exact.grads)[0], rtol=1e-5, atol=1e-5
    )


def test_default_entropy():
    def gradient(estimator, objective):
        problem, params = gaussian_problem(objective=objective)
        noise = problem.base_noise(jax.random.key(0), 4)
        return estimate(estimator, problem, params, noise)

    for objective, entropy in ((bbvi.Elbo(), "closed_form"), (bbvi.Iwae(4), "monte_carlo")):
        chosen = gradient(bbvi.Reparameterization(4), objective)
        named = gradient(bbvi.Reparameterization(4, entropy=entropy), objective)
        jax.tree.map(np.testing.assert_array_equal, chosen, named)


def test_stick_the_landing_is_zero_at_the_posterior(key):
    problem, params = gaussian_problem(loc=M, scale=T)
    noise = problem.base_noise(key, 4)
    landed, plain = (
        estimate(bbvi.Reparameterization(4, e), problem, params, noise).grads
        for e in ("stick_the_landing", "monte_carlo")
    )
    np.testing.assert_allclose(landed.guide.normal, 0, atol=2e-6)
    assert float(jnp.abs(plain.guide.normal).max()) > 0.1


@pytest.mark.parametrize("num_samples", [1, 4])
def test_iwae_of_one_is_the_elbo(num_samples):
    estimator = bbvi.Reparameterization(num_samples, entropy="monte_carlo")
    estimates = []
    for objective in (bbvi.Elbo(), bbvi.Iwae(1)):
        problem, params = gaussian_problem(objective=objective)
        estimator.validate(problem, params, None)
        noise = problem.base_noise(jax.random.key(0), num_samples)
        estimates.append(estimate(estimator, problem, params, noise))
    elbo, iwae = estimates
    assert iwae.log_weights.shape == (num_samples, 1)  # one component
    for got, wanted in zip(jax.tree.leaves(iwae), jax.tree.leaves(elbo), strict=True):
        np.testing.assert_allclose(got.ravel(), wanted.ravel(), rtol=1e-5)


# Means.


def kl_to_gamma(phi, a0, b0):
    a, log_b = jnp.exp(phi["log_concentration"]), phi["log_rate"]
    mean = a * jnp.exp(-log_b)
    cross = a0 * jnp.log(b0) - gammaln(a0) + (a0 - 1) * (digamma(a) - log_b) - b0 * mean
    negative_entropy = log_b - gammaln(a) + (a - 1) * digamma(a) - a
    return jnp.sum(negative_entropy - cross)


def kl_to_beta(phi, a0, b0):
    a, b = jnp.exp(phi["log_alpha"]), jnp.exp(phi["log_beta"])
    terms = (a - a0) * digamma(a) + (b - b0) * digamma(b) + (a0 + b0 - a - b) * digamma(a + b)
    return betaln(a0, b0) - betaln(a, b) + terms


def kl_to_dirichlet(phi, c0):
    c = jnp.exp(phi["log_concentration"])
    log_norms = gammaln(c.sum()) - gammaln(c).sum() - gammaln(c0.sum()) + gammaln(c0).sum()
    return log_norms + jnp.dot(c - c0, digamma(c) - digamma(c.sum()))


def kl_to_von_mises(phi, loc0, k0):
    k = jnp.exp(phi["log_concentration"])
    resultant = i1e(k) / i0e(k)
    log_norms = jnp.log(i0e(k0)) + k0 - jnp.log(i0e(k)) - k
    return log_norms + k * resultant - k0 * resultant * jnp.cos(phi["loc"] - loc0)


def implicit_problem():
    """Four independent sites with implicit reparameterization; its loss is a sum of KLs."""
    gamma0, beta0, dirichlet0, von_mises0 = (
        (3.0, 2.0),
        (1.5, 4.0),
        jnp.array([1.0, 3.0, 2.0]),
        (0.9, 2.0),
    )

    def log_joint(x, z):
        (a, b), (alpha, beta) = gamma0, beta0
        loc, k = von_mises0
        return (
            (a * jnp.log(b) - gammaln(a) + (a - 1) * jnp.log(z["gamma"]) - b * z["gamma"])
            + ((alpha - 1) * jnp.log(z["beta"]) + (beta - 1) * jnp.log1p(-z["beta"]))
            - betaln(alpha, beta)
            + jnp.dot(dirichlet0 - 1, jnp.log(z["dirichlet"]))
            + (gammaln(dirichlet0.sum()) - gammaln(dirichlet0).sum())
            + (k * (jnp.cos(z["circle"] - loc) - 1) - jnp.log(2 * jnp.pi * i0e(k)))
        )

    guide = bbvi.MeanField(
        {
            "gamma": bbvi.Gamma(),
            "beta": bbvi.Beta(),
            "dirichlet": bbvi.Dirichlet((3,)),
            "circle": bbvi.VonMises(),
        }
    )
    problem = bbvi.Problem(log_joint, guide)
    params = problem.init(jax.random.key(0), None)
    families = {
        "gamma": {"log_concentration": jnp.log(2.5), "log_rate": jnp.log(1.0)},
        "beta": {"log_alpha": jnp.log(2.0), "log_beta": jnp.log(2.5)},
        "dirichlet": {"log_concentration": jnp.log(jnp.array([2.0, 2.0, 1.5]))},
        "circle": {"loc": jnp.asarray(0.2), "log_concentration": jnp.log(3.0)},
    }
    params = params._replace(guide=params.guide._replace(families=families))

    def loss(params):
        phi = params.guide.families
        return (
            kl_to_gamma(phi["gamma"], *gamma0)
            + kl_to_beta(phi["beta"], *beta0)
            + kl_to_dirichlet(phi["dirichlet"], dirichlet0)
            + kl_to_von_mises(phi["circle"], *von_mises0)
        )

    return problem, params, loss


@jax.debug_key_reuse(False)  # it mistakes the loop of distrax's von Mises sampler for a reuse
@pytest.mark.parametrize("entropy", ENTROPIES)
def test_implicit_reparameterization_is_unbiased(entropy):
    problem, params, loss = implicit_problem()
    estimator = bbvi.Reparameterization(2, entropy=entropy)
    estimator.validate(problem, params, None)
    exact = jax.jit(jax.grad(loss))(params)
    replicates = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 5_000)
    start = 0
    for site in sorted(exact.guide.families):  # the order in which dicts are raveled
        wanted = ravel_pytree(exact.guide.families[site])[0]
        check_mean(replicates[:, start : start + wanted.size], wanted)
        start += wanted.size
    assert start == replicates.shape[1]


COUPLED = [bbvi.Antithetic(), bbvi.ScrambledSobol()]


@pytest.mark.parametrize("sampling", COUPLED, ids=repr)
def test_coupled_draws_are_unbiased(sampling):
    check_estimator(bbvi.Reparameterization(4, sampling=sampling))


@pytest.mark.parametrize("sampling", COUPLED, ids=repr)
def test_coupled_draws_are_unbiased_for_every_family(sampling):
    """Independent sites under -(u - 1)^2 / 2: E[-(u - 1)^2 / 2] has derivative -(m - 1) in the
    location and -s^2 v in the log scale, with v the variance of the standard form.
    """
    guide = bbvi.Product(
        bbvi.MeanField({"l": bbvi.Laplace(), "n": bbvi.Normal(), "t": bbvi.StudentT(df=30.0)}),
        bbvi.LowRank({"f": bbvi.Normal((2,))}, rank=1),
    )
    problem = bbvi.Problem(lambda x, z: -sum(jnp.sum((v - 1) ** 2) for v in z.values()) / 2, guide)
    mean_field = guide.guides[0]
    m, s = 0.4, 0.7
    at = {name: jnp.asarray(m) for name in ("l", "n", "t")}
    flat = {"loc": jnp.full(2, m), "log_scale": jnp.full(2, np.log(s)), "factor": jnp.zeros((2, 1))}
    params = bbvi.Params((mean_field.params_at(at, s), flat))

    def loss(params):
        first, second = params.guide
        by_site = mean_field.site_params(first)
        variances = {"l": 2.0, "n": 1.0, "t": 30 / 28}
        terms = [
            (by_site[k]["loc"] - 1) ** 2 / 2
            + v * jnp.exp(2 * by_site[k]["log_scale"]) / 2
            - by_site[k]["log_scale"]
            for k, v in variances.items()
        ]
        covariance = (
            jnp.diag(jnp.exp(2 * second["log_scale"])) + second["factor"] @ second["factor"].T
        )
        terms.append(jnp.sum((second["loc"] - 1) ** 2) / 2 + jnp.trace(covariance) / 2)
        return sum(terms) - jnp.linalg.slogdet(covariance)[1] / 2

    estimator = bbvi.Reparameterization(4, sampling=sampling)
    estimator.validate(problem, params, None)
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, 5_000)
    check_mean(gradients, ravel_pytree(jax.jit(jax.grad(loss))(params))[0], power=0.2)


def test_sobol_variance_falls_faster_than_one_over_the_draws():
    """A smooth, coupled integrand: from 4 to 64 draws by more than 16^2, where Monte Carlo has 16;
    and below a tenth of Monte Carlo's already at 8.
    """

    def log_joint(x, z):
        return -jnp.logaddexp(0.0, z["w"][0] - 2 * z["w"][1]) - 0.5 * jnp.sum(z["w"] ** 2)

    guide = bbvi.MeanField({"w": bbvi.Normal((2,))})
    problem = bbvi.Problem(log_joint, guide)
    params = bbvi.Params(guide.params_at({"w": jnp.array([0.5, -0.3])}, 0.5))

    def variance(num_samples, sampling):
        estimator = bbvi.Reparameterization(num_samples, sampling=sampling)
        key = jax.random.key(num_samples)
        return replicate_gradients(key, estimator, problem, params, None, 2000).var(axis=0)

    few, some, many = (variance(n, bbvi.ScrambledSobol()) for n in (4, 8, 64))
    assert (many < few / 16**2).all()
    assert (some[:2] < variance(8, bbvi.Independent())[:2] / 10).all()


# Exact variances.


@pytest.mark.parametrize("entropy", ENTROPIES)
def test_variance_of_the_elbo(entropy):
    """A Gaussian target: the gradient is linear and quadratic in the noise."""
    d, ratio = MU - M, S**2 / T**2
    if entropy == "stick_the_landing":
        exact = [(1 / S - S / T**2) ** 2, d**2 * S**2 / T**4 + 2 * (1 - ratio) ** 2]
        np.testing.assert_allclose(exact, [0.48225, 0.76852], rtol=1e-4)
    else:
        exact = [S**2 / T**4, S**2 * (d**2 + 2 * S**2) / T**4]
        np.testing.assert_allclose(exact, [0.30864, 0.54630], rtol=1e-4)
    problem, params = gaussian_problem()
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.Reparameterization(1, entropy), problem, params, None, REPLICATES
    )
    check_variance(gradients, exact)
    check_mean(gradients, np.array([d / T**2, ratio - 1]), power=0.05)


def test_variance_on_a_parabola():
    """f = (z - k)^2: 4 s^2 for the location and 4 d^2 + 8 s^2 for the scale."""
    mu, s, k = 1.0, 1.5, -0.7
    by_mu, by_s = 4 * s**2, 4 * (mu - k) ** 2 + 8 * s**2
    np.testing.assert_allclose([by_mu, by_s], [9, 29.56], rtol=1e-4)
    problem, params = normal_signal_problem(lambda z: (z - k) ** 2, mu, s)
    # The frozen log q in that problem cancels the one whose parameters are held fixed.
    estimator = bbvi.Reparameterization(1, entropy="stick_the_landing")
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, REPLICATES)
    check_variance(gradients, [by_mu, s**2 * by_s])


def test_antithetic_variance_on_a_parabola():
    """A pair leaves nothing of the location's variance and 8 s^2 of the scale's."""
    mu, s, k = 1.0, 1.5, -0.7
    problem, params = normal_signal_problem(lambda z: (z - k) ** 2, mu, s)
    estimator = bbvi.Reparameterization(2, entropy="stick_the_landing", sampling=bbvi.Antithetic())
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, REPLICATES)
    exact = -2 * (mu - k), -2 * s**2
    np.testing.assert_allclose(gradients[:, 0], np.full(REPLICATES, exact[0]), rtol=1e-5)
    check_variance(gradients[:, 1], s**2 * 8 * s**2)
    check_mean(gradients, np.array(exact), power=0.05)


def test_variance_on_a_cosine():
    """f = cos(k z): an integrand on which the score function has the smaller variance."""
    mu, s, k = 1.0, 1.5, 2.0
    decay = np.exp(-(k**2) * s**2 / 2)
    mean = -k * decay * np.sin(k * mu)
    exact = k**2 * (1 - decay**4 * np.cos(2 * k * mu)) / 2 - mean**2
    np.testing.assert_allclose(exact, 1.9996, rtol=1e-4)
    problem, params = normal_signal_problem(lambda z: jnp.cos(k * z), mu, s)
    estimator = bbvi.Reparameterization(1, entropy="stick_the_landing")
    gradients = replicate_gradients(jax.random.key(1), estimator, problem, params, None, REPLICATES)
    check_variance(gradients[:, 0], exact)


@pytest.mark.parametrize("group_size", [1, 5])
def test_variance_at_the_posterior(group_size):
    """All weights are equal: the location's gradient is the mean of K draws of -e / t."""
    problem, params = gaussian_problem(loc=M, scale=T, objective=bbvi.Iwae(group_size))
    gradients = replicate_gradients(
        jax.random.key(1), bbvi.Reparameterization(group_size), problem, params, None, REPLICATES
    )
    check_variance(gradients[:, 0], 1 / (group_size * T**2))


def test_gamma_variance():
    """f = z under Gamma(a, b): a / b^4 for b; for a at b = 1, quadrature of (-F_a / q)^2."""
    a, b = 2.5, 1.7
    by_rate, by_shape = a / b**4, 0.107858
    np.testing.assert_allclose(by_rate, 0.29933, rtol=1e-4)
    guide = bbvi.MeanField({"z": bbvi.Gamma()})
    problem = bbvi.Problem(lambda x, z: z["z"], guide)
    params = problem.init(jax.random.key(0), None)
    for rate, column, exact in ((b, 1, b**2 * by_rate), (1.0, 0, a**2 * by_shape)):
        gamma = {"log_concentration": jnp.log(a), "log_rate": jnp.log(rate)}
        at = params._replace(guide=params.guide._replace(families={"z": gamma}))
        # The closed-form entropy adds a constant to the derivative of the draw.
        estimator = bbvi.Reparameterization(1, entropy="closed_form")
        gradients = replicate_gradients(jax.random.key(1), estimator, problem, at, None, REPLICATES)
        check_variance(gradients[:, column], exact)


def implicit_derivative(distribution, z, theta, step=1e-5):
    """-F_theta / q at z in the logarithm of theta, by central differences of SciPy's F."""
    up, down = (distribution.cdf(z, theta * np.exp(h)) for h in (step, -step))
    return -(up - down) / (2 * step) / distribution.pdf(z, theta)


def share_of_gammas(a, b, count=1000):
    """Derivatives of G / (G + R) in the log concentrations, at the middles of equal shares."""
    middles = (np.arange(count) + 0.5) / count
    g, r = stats.gamma.ppf(middles, a)[:, None], stats.gamma.ppf(middles, b)[None]
    by_a = r / (g + r) ** 2 * implicit_derivative(stats.gamma, g, a)
    by_b = -g / (g + r) ** 2 * implicit_derivative(stats.gamma, r, b)
    mass = np.full(count**2, 1 / count**2)
    return [(by_a.ravel(), mass), (by_b.ravel(), mass)]


def implicit_draws(name):
    """A family, parameters, and the derivatives of a draw's first entry in its parameters.

    At nodes and with weights of a quadrature.
    """
    if name == "beta":  # betas and Dirichlets are ratios of gammas, reparameterized one by one
        params = {"log_alpha": jnp.log(1.4), "log_beta": jnp.log(3.0)}
        return bbvi.Beta(), params, share_of_gammas(1.4, 3.0)
    if name == "dirichlet":
        params = {"log_concentration": jnp.log(jnp.array([0.8, 1.5, 2.5]))}
        return bbvi.Dirichlet((3,)), params, share_of_gammas(0.8, 1.5 + 2.5)[:1]
    angles = np.pi * (2 * (np.arange(100_000) + 0.5) / 100_000 - 1)
    mass = stats.vonmises.pdf(angles, 1.7) * (angles[1] - angles[0])
    by_concentration = implicit_derivative(stats.vonmises, angles, 1.7)
    params = {"loc": jnp.asarray(0.4), "log_concentration": jnp.log(1.7)}
    return bbvi.VonMises(), params, [(np.ones(mass.size), mass), (by_concentration, mass)]


@jax.debug_key_reuse(False)  # it mistakes the loop of distrax's von Mises sampler for a reuse
@pytest.mark.parametrize("name", ["beta", "dirichlet", "von_mises"])
@pytest.mark.usefixtures("optimized")
def test_implicit_mean_and_variance(name):
    """Of the derivative of a draw, against quadrature."""
    family, params, exact = implicit_draws(name)
    mean = np.array([mass @ derivative for derivative, mass in exact])
    variance = np.array([mass @ derivative**2 for derivative, mass in exact]) - mean**2

    def derivative(key):
        by = jax.grad(lambda p: jnp.ravel(family.sample(family.base_noise(key), p))[0])(params)
        return ravel_pytree(by)[0][: len(exact)]

    keys = jax.random.split(jax.random.key(1), 200_000)
    derivatives = jax.jit(lambda keys: jax.lax.map(derivative, keys, batch_size=10_000))(keys)
    check_mean(derivatives, mean, power=0.02)
    moving = variance > 1e-9  # a circle's location moves all draws alike
    check_variance(derivatives[:, moving], variance[moving])
    np.testing.assert_allclose(derivatives[:, ~moving], 1, rtol=1e-5)


# Multi-sample bounds.


def iwae_pair_gradients(params):
    """Gradients of the loss of ``normal_problem`` under Iwae(2) at every pair of nodes.

    Returns:
      Gradients [pairs, 3] in (location, log scale, theta) and the weights of the pairs.
    """
    nodes, weights = gauss_hermite(60)
    pairs = jnp.stack(jnp.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)

    def loss(flat, noise):
        loc, log_scale, theta = flat
        z = loc + jnp.exp(log_scale) * noise
        log_p = LOG_Z - 0.5 * ((z - theta) / T) ** 2 - jnp.log(T)
        log_q = -0.5 * noise**2 - log_scale - 0.5 * jnp.log(2 * jnp.pi)
        return -jax.nn.logsumexp(log_p - log_q) + jnp.log(2.0)

    flat = ravel_pytree(params)[0]
    gradients = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(flat, pairs)
    return np.asarray(gradients, np.float64), np.outer(weights, weights).ravel()


def test_iwae_mean_and_variance():
    """Two-draw bound against a product of Gauss-Hermite rules, with a learned parameter."""
    elbo, params, _ = normal_problem()
    problem = bbvi.Problem(elbo.log_joint, elbo.guide, bbvi.Iwae(2))
    gradients, weights = iwae_pair_gradients(params)
    mean = weights @ gradients
    variance = weights @ (gradients - mean) ** 2
    np.testing.assert_allclose(mean[0], 0.397459, rtol=1e-4)  # its sign is that of the loss
    np.testing.assert_allclose(variance[0], 0.248646, rtol=1e-4)
    estimator = bbvi.Reparameterization(2)
    estimator.validate(problem, params, None)
    replicates = replicate_gradients(
        jax.random.key(1), estimator, problem, params, None, REPLICATES
    )
    check_mean(replicates, mean, power=0.05)
    check_variance(replicates, variance)
    grouped = replicate_gradients(
        jax.random.key(2), bbvi.Reparameterization(6), problem, params, None, REPLICATES // 4
    )
    check_mean(grouped, mean, power=0.05)
    check_variance(grouped, variance / 3)


# Errors.


@pytest.mark.parametrize("sampling", COUPLED, ids=repr)
def test_coupled_draws_are_refused_with_iwae(sampling):
    """The expectation of a bound of several draws needs them to be independent."""
    problem, params = gaussian_problem(objective=bbvi.Iwae(2))
    with pytest.raises(ValueError, match=r"depend on each other: .* Iwae\(group_size=2\) does not"):
        bbvi.Reparameterization(4, sampling=sampling).validate(problem, params, None)


def test_sampling_is_checked():
    with pytest.raises(TypeError, match=r"sampling must be bbvi.Independent\(\), .* got 'sobol'"):
        bbvi.Reparameterization(4, sampling="sobol")
    guide = bbvi.MeanField({"z": bbvi.Gamma()})
    problem = bbvi.Problem(lambda x, z: -z["z"], guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=r"site 'z' \(Gamma\) has no map from them"):
        bbvi.Reparameterization(4, sampling=bbvi.Antithetic()).validate(problem, params, None)


def test_entropy_is_checked():
    with pytest.raises(ValueError, match=r"entropy must be one of \('closed_form', "):
        bbvi.Reparameterization(4, entropy="analytic")


@pytest.mark.parametrize(
    ("entropy", "message"),
    [
        ("stick_the_landing", r"entropy='stick_the_landing' needs bbvi.Elbo\(\), got Iwae"),
        ("closed_form", r"entropy='closed_form' needs bbvi.Elbo\(\), got Iwae"),
    ],
)
def test_entropies_refused_with_iwae(entropy, message):
    problem, params = gaussian_problem(objective=bbvi.Iwae(2))
    with pytest.raises(ValueError, match=message):
        bbvi.Reparameterization(4, entropy).validate(problem, params, None)


def test_forward_kl_is_refused():
    problem, params = gaussian_problem(objective=bbvi.ForwardKl(4))
    with pytest.raises(ValueError, match=r"Reparameterization would follow .* ReweightedWakeSleep"):
        bbvi.Reparameterization(4).validate(problem, params, None)


def test_closed_form_needs_a_guide_that_has_one():
    class Exponential(bbvi.Guide):
        reparameterized = True

        def init(self, key, x):
            return jnp.zeros(())

        def sample(self, key, params, x):
            return jax.random.exponential(key) * jnp.exp(params)

        def log_prob(self, params, x, z):
            return -params - z * jnp.exp(-params)

    problem = bbvi.Problem(lambda x, z: -z, Exponential())
    params = problem.init(jax.random.key(0), None)
    bbvi.Reparameterization(4).validate(problem, params, None)
    with pytest.raises(ValueError, match="Exponential has no closed-form entropy"):
        bbvi.Reparameterization(4, "closed_form").validate(problem, params, None)


def test_discrete_sites_are_refused():
    guide = bbvi.MeanField({"b": bbvi.Bernoulli(), "z": bbvi.Normal()})
    problem = bbvi.Problem(lambda x, z: z["b"] * z["z"], guide)
    params = problem.init(jax.random.key(0), None)
    with pytest.raises(ValueError, match=r"site 'b' \(Bernoulli\) is not reparameterizable"):
        bbvi.Reparameterization().validate(problem, params, None)


def callback(x, z):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(
        lambda z: -(np.asarray(z) ** 2), shape, z["z"], vmap_method="expand_dims"
    )


def rounded(x, z):
    return -(jnp.round(z["z"]) ** 2)


def compared(x, z):
    return jnp.where(z["z"] > 0.5, -1.0, -2.0)


def loop(x, z):
    return jax.lax.while_loop(lambda v: v < 3.0, lambda v: v + 1.0, z["z"])


@pytest.mark.parametrize("log_joint", [callback, rounded, compared, loop])
def test_log_joints_without_a_derivative_are_refused(log_joint):
    problem = bbvi.Problem(log_joint, bbvi.MeanField({"z": bbvi.Normal()}))
    params = problem.init(jax.random.key(0), None)
    for estimator in (bbvi.Reparameterization(), bbvi.PerSite({"z": bbvi.Reparameterization()})):
        with pytest.raises(ValueError, match="log_joint is not differentiable in latent 'z'"):
            estimator.validate(problem, params, None)
    default = bbvi.estimators.default_estimator(problem, params, None)
    assert isinstance(default, bbvi.ScoreFunction)
    default.validate(problem, params, None)
    noise = default.draw(jax.random.key(1), problem)
    grads = estimate(default, problem, params, noise).grads
    assert float(jnp.abs(grads.guide.normal).max()) > 0
