"""Methods of the suite on accuracy: bbvi, its peers as their users run them, and a yardstick.

Every ``prepare`` returns ``run(key) -> Approximation`` from a fresh start, without compiling
anything yet: imports are outside the clock, compilation is inside. All methods but bbvi see the
posterior as a density on the reals, through the same bijectors.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import bbvi
import models
from bbvi.infer import automatic
from models import posteriors

PEER_RATE = 1e-2
BLACKJAX_SAMPLES = 5
PEER_STEPS = 20_000
BEST_RATE, BEST_SAMPLES, BEST_STEPS = 5e-3, 16, 4000

Key = jax.Array


class Approximation(NamedTuple):
    """What a method returns.

    Attributes:
        sample: Draws of the latents, from a key and their number.
        log_weights: log p(x, z) - log q(z) at fresh draws, likewise.
        gradients: Evaluations of the gradient of log_joint, where they are known, or what counts
            them, outside the clock.
    """

    sample: Callable[[Key, int], dict[str, jax.Array]]
    log_weights: Callable[[Key, int], jax.Array]
    gradients: int | Callable[[], int] | None


Run = Callable[[Key], Approximation]


@dataclasses.dataclass(frozen=True)
class Posterior:
    """A registered target as a density on the reals.

    Attributes:
        target: The target, with a guide named "full_rank" that has its supports.
        x: Its data.
    """

    target: models.Target
    x: Any

    @classmethod
    def of(cls, name: str) -> "Posterior":
        target = models.get(name)
        return cls(target, target.data())

    @functools.cached_property
    def layout(self) -> Any:
        """How the latents lie side by side on the reals."""
        return self.target.guides["full_rank"]().layout

    def constrain(self, u: jax.Array) -> dict[str, jax.Array]:
        return self.layout.constrain(u)[0]

    def log_density(self, u: jax.Array) -> jax.Array:
        """Log joint with the Jacobian of the bijectors, at one point (D,)."""
        z, log_det = self.layout.constrain(u)
        return self.target.log_joint(self.x, z) + log_det

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean (D,) and covariance (D, D) of the reference draws on the reals."""
        draws = jax.tree.map(jnp.asarray, posteriors.draws(self.target.name))
        u = jax.vmap(self.layout.unconstrain)(draws)
        return u.mean(axis=0), jnp.cov(u, rowvar=False)

    def approximation(
        self, draw: Callable[[Key, int], tuple[jax.Array, jax.Array]], gradients: int | None
    ) -> Approximation:
        """From draws (S, D) on the reals with their log densities (S,)."""

        def log_weights(key: Key, num_draws: int) -> jax.Array:
            u, log_q = draw(key, num_draws)
            log_p = jax.jit(lambda u: jax.lax.map(self.log_density, u, batch_size=250))
            return log_p(u) - log_q

        def sample(key: Key, num_draws: int) -> dict[str, jax.Array]:
            return jax.jit(jax.vmap(self.constrain))(draw(key, num_draws)[0])

        return Approximation(sample, log_weights, gradients)

    def gaussian(
        self, loc: jax.Array, scale_tril: jax.Array, gradients: int | None
    ) -> Approximation:
        """From mean (D,) and Cholesky factor (D, D) of the covariance."""

        def draw(key: Key, num_draws: int) -> tuple[jax.Array, jax.Array]:
            noise = jax.random.normal(key, (num_draws, loc.size))
            log_det = jnp.log(jnp.diagonal(scale_tril)).sum()
            log_q = jax.scipy.stats.norm.logpdf(noise).sum(axis=1) - log_det
            return loc[None] + noise @ scale_tril.T, log_q

        return self.approximation(draw, gradients)


def bbvi_fit(family: str, posterior: Posterior, num_steps: int | None) -> Run:
    """``bbvi.fit`` as it is called with nothing else given, unless steps are."""
    guide = posterior.target.guides[family]()

    def run(key: Key) -> Approximation:
        key, init_key, scout_key = jax.random.split(key, 3)
        steps = {} if num_steps is None else {"num_steps": num_steps}
        result = bbvi.fit(
            posterior.target.log_joint, guide, posterior.x, key=key, progress=False, **steps
        )
        _, each = result.estimator.cost_for(result.problem, result.params, posterior.x)
        num_taken = int(result.state.step)

        def gradients() -> int:
            """Those of the steps and, as many as from another key, of the search for a start."""
            own = result.problem.init(init_key, posterior.x)
            found = automatic.scout(result.problem, scout_key, own, posterior.x)
            return num_taken * each + int(found.num_steps) * automatic.NUM_SAMPLES

        return Approximation(result.sample, result.log_weights, gradients)

    return run


def bbvi_auto(posterior: Posterior, num_steps: int | None) -> Run:
    """``bbvi.fit`` with the guide left to it, and draws corrected by their weights where they can.

    Its evaluations are those of several guides and not counted.
    """
    full_rank = posterior.target.guides["full_rank"]()
    guide = bbvi.Auto(jax.tree.unflatten(full_rank.treedef, full_rank.families))

    def run(key: Key) -> Approximation:
        steps = {} if num_steps is None else {"num_steps": num_steps}
        result = bbvi.fit(
            posterior.target.log_joint, guide, posterior.x, key=key, progress=False, **steps
        )

        def sample(key: Key, num_draws: int) -> dict[str, jax.Array]:
            try:
                return result.resample(key, num_draws)
            except ValueError:  # k-hat is above 0.7
                return result.sample(key, num_draws)

        return Approximation(sample, result.log_weights, None)

    return run


def best(family: str, posterior: Posterior, num_steps: int) -> Run:
    """The best Gaussian of a family, as near as it can be had by starting from the answer.

    Coordinates are whitened by the covariance of the reference draws, or by the standard
    deviations given all others, in which the best mean field of a Gaussian has unit scale; then
    Adam with antithetic draws, the gradient that vanishes at an exact fit (sticking the landing),
    a rate that falls to zero along a cosine, and the mean of the last quarter of the path.
    """
    mean, covariance = posterior.moments()
    if family == "full_rank":
        whitener = jnp.linalg.cholesky(covariance)
    else:
        whitener = jnp.diag(jnp.diagonal(jnp.linalg.inv(covariance)) ** -0.5)
    size = mean.size
    start = {"loc": jnp.zeros(size), "log_scale": jnp.zeros(size), "lower": jnp.zeros((size, size))}
    optimizer = optax.adam(optax.cosine_decay_schedule(BEST_RATE, num_steps))

    def scale_tril(phi: dict[str, jax.Array]) -> jax.Array:
        lower = jnp.tril(phi["lower"], -1) if family == "full_rank" else jnp.zeros((size, size))
        return lower + jnp.diag(jnp.exp(phi["log_scale"]))

    def log_q(phi: dict[str, jax.Array], v: jax.Array) -> jax.Array:
        centred = v - phi["loc"]
        noise = jax.scipy.linalg.solve_triangular(scale_tril(phi), centred, lower=True)
        return jax.scipy.stats.norm.logpdf(noise).sum() - phi["log_scale"].sum()

    def loss(phi: dict[str, jax.Array], noise: jax.Array) -> jax.Array:
        v = phi["loc"][None] + noise @ scale_tril(phi).T
        log_p = jax.vmap(lambda v: posterior.log_density(mean + whitener @ v))(v)
        fixed = jax.lax.stop_gradient(phi)
        return (jax.vmap(functools.partial(log_q, fixed))(v) - log_p).mean()

    def step(carry: Any, key: Key) -> tuple[Any, None]:
        phi, state, total, number = carry
        half = jax.random.normal(key, (BEST_SAMPLES // 2, size))
        gradient = jax.grad(loss)(phi, jnp.concatenate([half, -half]))
        updates, state = optimizer.update(gradient, state)
        phi = optax.apply_updates(phi, updates)
        is_tail = number >= num_steps - num_steps // 4
        total = jax.tree.map(lambda t, p: t + jnp.where(is_tail, p, 0.0), total, phi)
        return (phi, state, total, number + 1), None

    @jax.jit
    def optimum(key: Key) -> tuple[jax.Array, jax.Array]:
        first = (start, optimizer.init(start), jax.tree.map(jnp.zeros_like, start), 0)
        (_, _, total, _), _ = jax.lax.scan(step, first, jax.random.split(key, num_steps))
        phi = jax.tree.map(lambda t: t / (num_steps // 4), total)
        return mean + whitener @ phi["loc"], whitener @ scale_tril(phi)

    def run(key: Key) -> Approximation:
        loc, tril = jax.block_until_ready(optimum(key))
        return posterior.gaussian(loc, tril, num_steps * BEST_SAMPLES)

    return run


def numpyro_guide(name: str, posterior: Posterior, num_steps: int) -> Run:
    """SVI of NumPyro with an automatic guide, one draw a step."""
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    flat = numpyro.distributions.constraints.real_vector
    size = posterior.layout.size

    def model() -> None:
        u = numpyro.sample("u", numpyro.distributions.ImproperUniform(flat, (), (size,)))
        numpyro.factor("log_density", posterior.log_density(u))

    def run(key: Key) -> Approximation:
        guide = getattr(autoguide, name)(model)
        svi = SVI(model, guide, numpyro.optim.Adam(PEER_RATE), Trace_ELBO())
        params = svi.run(key, num_steps, progress_bar=False).params
        if name == "AutoNormal":
            loc, tril = params["u_auto_loc"], jnp.diag(params["u_auto_scale"])
        else:
            fitted = guide.get_posterior(params)
            loc, tril = fitted.loc, fitted.scale_tril
        return posterior.gaussian(*jax.block_until_ready((loc, tril)), num_steps)

    return run


def blackjax_vi(name: str, posterior: Posterior, num_steps: int) -> Run:
    """``meanfield_vi`` or ``fullrank_vi`` of BlackJAX in a scan, from zero and unit scales."""
    import blackjax

    size = posterior.layout.size
    optimizer = optax.adam(PEER_RATE)
    method = getattr(blackjax, name)(posterior.log_density, optimizer, BLACKJAX_SAMPLES)

    @jax.jit
    def fitted(key: Key) -> tuple[jax.Array, jax.Array]:
        def step(state: Any, key: Key) -> tuple[Any, None]:
            return method.step(key, state)[0], None

        start = method.init(jnp.zeros(size))
        state, _ = jax.lax.scan(step, start, jax.random.split(key, num_steps))
        if name == "meanfield_vi":
            return state.mu, jnp.diag(jnp.exp(state.rho))
        lower = jnp.zeros((size, size)).at[jnp.tril_indices(size, -1)]
        tril = lower.set(state.chol_params[size:]) + jnp.diag(jnp.exp(state.chol_params[:size]))
        return state.mu, tril

    def run(key: Key) -> Approximation:
        loc, tril = jax.block_until_ready(fitted(key))
        return posterior.gaussian(loc, tril, num_steps * BLACKJAX_SAMPLES)

    return run


def blackjax_pathfinder(posterior: Posterior, num_steps: int) -> Run:
    """Pathfinder of BlackJAX with its defaults, from a uniform point of (-2, 2)."""
    from blackjax.vi import pathfinder

    del num_steps

    @jax.jit
    def fitted(key: Key) -> Any:
        start_key, key = jax.random.split(key)
        start = jax.random.uniform(start_key, (posterior.layout.size,), minval=-2.0, maxval=2.0)
        return pathfinder.approximate(key, posterior.log_density, start)[0]

    def run(key: Key) -> Approximation:
        state = jax.block_until_ready(fitted(key))
        return posterior.approximation(
            lambda key, num_draws: pathfinder.sample(key, state, num_draws), None
        )

    return run


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to a Gaussian.

    Attributes:
        family: The family whose best member it is compared with.
        prepare: `(posterior, num_steps) -> run`.
        how: Its settings, in words.
        num_steps: How many steps it takes; None where it decides for itself.
    """

    family: str
    prepare: Callable[[Posterior, Any], Run]
    how: str
    num_steps: int | None = None

    @classmethod
    def of_bbvi(cls, family: str) -> "Method":
        return cls(family, functools.partial(bbvi_fit, family), "no settings")

    @classmethod
    def of_numpyro(cls, family: str, guide: str) -> "Method":
        how = f"Adam at {PEER_RATE}, one draw a step, start uniform on (-2, 2)"
        return cls(family, functools.partial(numpyro_guide, guide), how, PEER_STEPS)

    @classmethod
    def of_blackjax(cls, family: str, name: str) -> "Method":
        how = f"Adam at {PEER_RATE}, {BLACKJAX_SAMPLES} draws a step, start at zero"
        return cls(family, functools.partial(blackjax_vi, name), how, PEER_STEPS)

    @classmethod
    def of_yardstick(cls, family: str) -> "Method":
        how = f"Adam from {BEST_RATE} along a cosine, {BEST_SAMPLES} draws, start at the answer"
        return cls(family, functools.partial(best, family), how, BEST_STEPS)


METHODS = {
    "bbvi_mean_field": Method.of_bbvi("mean_field"),
    "numpyro_AutoNormal": Method.of_numpyro("mean_field", "AutoNormal"),
    "blackjax_meanfield_vi": Method.of_blackjax("mean_field", "meanfield_vi"),
    "best_mean_field": Method.of_yardstick("mean_field"),
    "bbvi_full_rank": Method.of_bbvi("full_rank"),
    "numpyro_AutoMultivariateNormal": Method.of_numpyro("full_rank", "AutoMultivariateNormal"),
    "blackjax_fullrank_vi": Method.of_blackjax("full_rank", "fullrank_vi"),
    "numpyro_AutoLaplaceApproximation": Method.of_numpyro("full_rank", "AutoLaplaceApproximation"),
    "blackjax_pathfinder": Method("full_rank", blackjax_pathfinder, "defaults"),
    "bbvi_auto": Method("full_rank", bbvi_auto, "no settings; resampled where k-hat is below 0.7"),
    "best_full_rank": Method.of_yardstick("full_rank"),
}
