"""Measure-valued (weak) derivatives: differences of the log joint at shifted draws."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bbvi import supports
from bbvi._random import draw_flat
from bbvi._tree import named_leaves, with_leaf
from bbvi._types import Data, Key, Latents, Params, PyTree
from bbvi.estimators.base import Cost, Estimate, Estimator, check_elbo
from bbvi.guides.families import Bernoulli, Family, Gamma, Normal
from bbvi.guides.mean_field import MeanField
from bbvi.problem import Problem
from bbvi.supports import Support

# Numbers (data and latents) that are worked on at once: what fits a processor's cache. With 30
# times as many a step of 1000 coordinates took five times as long, and memory grew with it.
BLOCK_ENTRIES = 1 << 17
# Shape of the gamma that small jumps of a gamma process are drawn from. At 1 no variance is left
# where f is linear, but it is infinite where f jumps; 1/2 is the best there; this is half way.
JUMP_SHAPE = 0.75


class WeakDerivative(NamedTuple):
    r"""The derivative of :math:`E[f]` in the parameters of every entry, one entry at a time.

    It is the mean of :math:`\sum_k w_k (f(z \text{ with entry } i \text{ at } p_k) - f(z))`.

    Attributes:
      points: ``[K, *entries]`` in unconstrained space, where the family has one.
      weights: for each parameter of the family ``[K, *entries]``.
    """

    points: Array
    weights: dict[str, Array]


class Rule(NamedTuple):
    """What is known of a family: its extra noise, and its weak derivative at a draw."""

    noise: Callable[[Key, tuple[int, ...]], Any]
    derivative: Callable[[Any, PyTree, Array], WeakDerivative]


def normal_derivative(noise: Array, params: PyTree, u: Array) -> WeakDerivative:
    r"""Location: Rayleigh-distributed steps R to both sides. Scale: double Maxwell minus normal.

    .. math::
      \partial_m E f = \frac{E f(m + sR) - E f(m - sR)}{s \sqrt{2\pi}}, \qquad
      \partial_{\log s} E f = E f(m + sM) - E f(m + s\epsilon)

    |M| is the length of a normal vector of which :math:`\epsilon` is one of three components:
    :math:`M = \mathrm{sign}(\epsilon) \sqrt{\epsilon^2 + R^2}` couples the two as
    :math:`\epsilon = M U`, U uniform, does, and the negative part is the guide's own draw.
    """
    scale = jnp.exp(params["log_scale"])
    epsilon, rayleigh = (u - params["loc"]) / scale, jnp.sqrt(2 * noise)
    maxwell = jnp.where(epsilon < 0, -1, 1) * jnp.sqrt(epsilon**2 + 2 * noise)
    steps = jnp.stack([rayleigh, -rayleigh, maxwell])
    slope, zero, one = 1 / (scale * math.sqrt(2 * math.pi)), jnp.zeros_like(u), jnp.ones_like(u)
    return WeakDerivative(
        params["loc"][None] + scale[None] * steps,
        {"loc": jnp.stack([slope, -slope, zero]), "log_scale": jnp.stack([zero, zero, one])},
    )


def gamma_noise(key: Key, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Two exponentials per entry, and a gamma of shape ``JUMP_SHAPE``."""
    exponential, gamma = jax.random.split(key)
    return (
        draw_flat(jax.random.exponential, exponential, (2, *shape)),
        jax.random.gamma(gamma, JUMP_SHAPE, shape),
    )


def gamma_derivative(noise: tuple[Array, Array], params: PyTree, z: Array) -> WeakDerivative:
    r"""Rate: a gamma minus one of shape a + 1. Concentration: two parts, one for either factor.

    .. math:: \partial_{\log b} E f(z) = a E[f(z) - f(z + X / b)]

    with X exponential. Further :math:`z = Y V / b` with independent :math:`Y \sim
    \mathrm{Gamma}(a + 1)` and :math:`V = U^{1/a}`, U uniform. Y is a gamma process at time a + 1,
    whose jumps J come at rate :math:`e^{-j} / j`; and :math:`-\log V` is exponential with rate a,
    whose derivative is an exponential minus a sum of two:

    .. math::
      \partial_a E f = \int_0^\infty E\big[f((Y + j) V / b) - f(z)\big] \frac{e^{-j}}{j} dj
        + \frac1a E\big[f(z) - f(z V')\big]

    The first factor keeps the variance finite as :math:`a \to 0`, where a jump of the process
    would dwarf z.
    """
    (boost, step), jump = noise
    shape, rate = jnp.exp(params["log_concentration"]), jnp.exp(params["log_rate"])
    # Given z, the Y behind it is b z plus an exponential.
    points = [z + boost / rate, z * (1 + jump / (rate * z + boost)), z * jnp.exp(-step / shape)]
    density = math.gamma(JUMP_SHAPE) * jump**-JUMP_SHAPE  # of jumps, over that they are drawn from
    zero = jnp.zeros_like(z)
    weights = {
        "log_concentration": [zero, shape * density, -jnp.ones_like(z)],
        "log_rate": [-shape, zero, zero],
    }
    return WeakDerivative(jnp.stack(points), {k: jnp.stack(w) for k, w in weights.items()})


def bernoulli_derivative(noise: Any, params: PyTree, z: Array) -> WeakDerivative:
    """The exact difference of the two values: the draw, and the other one."""
    del noise
    variance = jax.nn.sigmoid(params["logits"]) * jax.nn.sigmoid(-params["logits"])
    return WeakDerivative((1 - z)[None], {"logits": ((1 - 2 * z) * variance)[None]})


RULES: dict[type[Family], Rule] = {
    Normal: Rule(functools.partial(draw_flat, jax.random.exponential), normal_derivative),
    Gamma: Rule(gamma_noise, gamma_derivative),
    Bernoulli: Rule(lambda key, shape: (), bernoulli_derivative),
}


@dataclasses.dataclass(frozen=True)
class MeasureValued(Estimator):
    r"""Measure-valued gradient of the ELBO: differences of values, for any log joint.

    The derivative of a density in one of its parameters is, up to a constant, the difference of
    two densities, :math:`\partial_{\phi_i} q = c_i (q_i^+ - q_i^-)`. Hence

    .. math::
      g_i = -\frac1S \sum_s c_i \big[f(z_s \text{ with } z^+_{si} \text{ for } z_{si})
            - f(z_s \text{ with } z^-_{si} \text{ for } z_{si})\big],
      \qquad f = \log p(x, z) - \log q(z)

    with q in f held fixed, as its derivative has mean zero: so nothing is left of the gradient's
    noise where q is the posterior. The two draws are coupled, and wherever it can be one of them
    is the guide's own:

    - normal location: steps of a Rayleigh distribution to both sides; log scale: double-sided
      Maxwell minus normal; on other supports through their bijector;
    - gamma rate: gammas of shapes a and a + 1; concentration: jumps of a gamma process;
    - Bernoulli logit: the two values, which is ``LocalExpectation`` one entry at a time.

    Unbiased, and ``log_joint`` need not be differentiable, not even continuous, in z. It changes
    one coordinate at a time: much less noise than the score function in many dimensions, at a
    price that grows with their number. On a smooth ``log_joint`` pathwise gradients cost far less.

    Cost: per draw, one value of ``log_joint``, three for each entry of a normal or gamma site, one
    for each Bernoulli; a few coordinates at a time, so that memory does not grow with theirs.

    Args:
      num_samples: S, draws per step.

    Raises:
      ValueError: a guide other than ``MeanField``; a site that is not ``Normal``, ``LogNormal``,
        ``Gamma`` or ``Bernoulli``; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):  # rounded: no derivative
      ...     return -0.5 * jnp.sum((jnp.round(10 * z["mu"]) / 10 - x) ** 2)
      >>> guide = bbvi.MeanField({"mu": bbvi.Normal((2,))})
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     guide,
      ...     jnp.array([1.5, -0.5]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.MeasureValued(4),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> [round(float(m), 1) for m in result.params.guide.normal[0]]
      [1.5, -0.5]

    References:
      Pflug (1989), Sampling Derivatives of Probabilities; Rosca, Figurnov, Mohamed and Mnih (2019),
      Measure-Valued Derivatives for Approximate Bayesian Inference; Mohamed, Rosca, Figurnov and
      Mnih (2020), Monte Carlo Gradient Estimation in Machine Learning, section 6.
    """

    num_samples: int = 1

    is_pathwise: ClassVar[bool] = False

    @property
    def cost(self) -> Cost:
        """At the draws as they are: with an entry moved there are as many as the guide has."""
        return Cost(self.num_samples)

    def cost_for(self, problem: Problem, params: Params, x: Data) -> Cost:
        moved = 0
        for family in _guide(problem).named_families.values():
            num_points = 1 if isinstance(family, Bernoulli) else 3
            moved += num_points * math.prod(_unconstrained_shape(family))
        return Cost(self.num_samples * (1 + moved))

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)
        for name, family in _guide(problem).named_families.items():
            if type(family) not in RULES:
                raise ValueError(
                    f"site '{name}' is {family!r}, and MeasureValued has derivatives for Normal "
                    "(on any support), Gamma and Bernoulli only; use ScoreFunction, or change the "
                    "family."
                )

    def draw(self, key: Key, problem: Problem) -> PyTree:
        families = _guide(problem).named_families
        base_key, *keys = jax.random.split(key, 1 + len(families))
        extra = {
            name: jax.vmap(RULES[type(family)].noise, in_axes=(0, None))(
                jax.random.split(site_key, self.num_samples), _unconstrained_shape(family)
            )
            for (name, family), site_key in zip(families.items(), keys, strict=True)
        }
        return problem.base_noise(base_key, self.num_samples), extra

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        base, extra = noise
        z, log_q = problem.sample_and_log_q(base, params, x)

        # The draws are held fixed, so log_joint is differentiated in the model parameters only.
        def mean_log_p(model: PyTree) -> tuple[Array, Array]:
            log_p = problem.log_p(params._replace(model=model), x, z)
            return -jnp.mean(log_p), log_p

        model_grads, log_p = jax.grad(mean_log_p, has_aux=True)(params.model)
        log_weights = log_p - log_q
        guide = _guide(problem)
        grads = guide.from_site_params(
            {
                name: _site_gradient(name, extra[name], problem, params, x, z, log_weights)
                for name in guide.named_families
            }
        )
        loss = problem.objective(log_weights)
        return Estimate(loss, Params(grads, model_grads), log_weights), state


def _guide(problem: Problem) -> MeanField:
    guide = problem.guide
    if not isinstance(guide, MeanField):
        raise ValueError(
            "MeasureValued moves one entry at a time and needs a bbvi.MeanField guide, got a "
            f"{type(guide).__name__}; use ScoreFunction."
        )
    return guide


def _support(family: Family) -> Support:
    return family.support if isinstance(family, Normal) else supports.real


def _unconstrained_shape(family: Family) -> tuple[int, ...]:
    return _support(family).unconstrained_shape(family.shape)


def _site_gradient(
    name: str,
    noise: PyTree,
    problem: Problem,
    params: Params,
    x: Data,
    z: Latents,
    log_weights: Array,
) -> dict[str, Array]:
    """Gradient of the loss in the parameters of one site, from draws ``[S, ...]``."""
    guide = _guide(problem)
    family = guide.named_families[name]
    support, site_params = _support(family), guide.site_params(params.guide)[name]

    def at_draw(noise: PyTree, draw: Latents) -> WeakDerivative:
        u = support.unconstrain(named_leaves(draw, "latents")[name])
        return RULES[type(family)].derivative(noise, site_params, u)

    def log_weight(draw: Latents, index: Array, point: Array) -> Array:
        """Log weight of a draw with one entry of the site moved."""
        u = support.unconstrain(named_leaves(draw, "latents")[name])
        moved = support.constrain(u.ravel().at[index].set(point).reshape(u.shape))
        draw = with_leaf(draw, "latents", name, moved)
        log_p = problem.log_joint(x, draw, *problem.model_args(params))
        return log_p - guide.log_prob(params.guide, x, draw)

    def at_entry(inputs: tuple[Array, WeakDerivative]) -> dict[str, Array]:
        index, (points, weights) = inputs  # [S, K]
        over_points = jax.vmap(log_weight, in_axes=(None, None, 0))
        changes = jax.vmap(over_points, in_axes=(0, None, 0))(z, index, points)
        changes -= log_weights[:, None]
        return {key: -jnp.mean(jnp.sum(w * changes, axis=1)) for key, w in weights.items()}

    derivative = jax.vmap(at_draw)(noise, z)  # leaves [S, K, *entries]
    num_samples, num_points, *entries = derivative.points.shape
    flat = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf.reshape(num_samples, num_points, -1), 2, 0), derivative
    )
    data = num_samples * sum(jnp.size(leaf) for leaf in jax.tree.leaves(x))
    per_entry = num_points * (data + sum(leaf.size for leaf in jax.tree.leaves(z)))
    grads = jax.lax.map(
        at_entry,
        (jnp.arange(len(flat.points)), flat),
        batch_size=max(1, BLOCK_ENTRIES // per_entry),
    )
    return {key: leaf.reshape(entries) for key, leaf in grads.items()}
