"""Pathwise gradients with a control variate from a Taylor expansion at the guide's mean."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._types import Data, Params, PyTree
from bbvi.estimators.base import Cost, Estimate, Estimator, check_elbo
from bbvi.guides.base import size
from bbvi.guides.gaussian import standard_normal_entropy
from bbvi.guides.mean_field import MeanField, MeanFieldParams
from bbvi.problem import Problem, over_draws


class TaylorState(NamedTuple):
    """Decayed averages over past steps, starting from zero.

    Attributes:
      weight: what the weights of the past add up to, ``1 - decay**t``.
      products: ``[2, sites]`` gradient times control, for locations and log scales.
      squares: ``[2, sites]`` squared controls.
      curvature: ``[2, D]`` the same two for the noise squared, of each entry of the log scales.
    """

    weight: Array
    products: Array
    squares: Array
    curvature: Array


@dataclasses.dataclass(frozen=True)
class TaylorControlVariate(Estimator):
    r"""Pathwise gradient minus what a Taylor expansion at the guide's mean predicts of its noise.

    For a ``MeanField`` guide of normal sites, :math:`u_s = m + \sigma \epsilon_s` is a draw before
    its bijector, f(u) the log joint there plus the bijector's log volume, H the Hessian of f. With
    bars for averages over the S draws and products entry by entry, the gradients of the ELBO with
    respect to m and :math:`\log \sigma` are estimated by

    .. math::
      \overline{\nabla f(u)} - a \, H(m)\,(\sigma \bar\epsilon), \qquad
      1 + \overline{\nabla f(u)\, \sigma \epsilon} - b\, \nabla f(m)\, \sigma \bar\epsilon
        - d\, (\overline{\epsilon^2} - 1)

    Unbiased: the first two controls are linear in :math:`\epsilon`, of mean 0; the third has mean
    0 for standard normals; and the coefficients come from earlier steps only. They are fitted by
    least squares to decayed moments, a and b one for each site and kept between 0 and 2, d one for
    each entry. All start at 0: the first step is plain ``Reparameterization``. Fixed at 1, a and b
    can raise the variance tenfold where the guide is wider than the region in which f is quadratic.

    With fitted coefficients no variance is left on a quadratic f whose Hessian is diagonal. Miller
    et al. carry the whole Hessian into the control of the scales, whose mean
    :math:`\mathrm{diag}(H)\, \sigma^2` then takes D more Hessian-vector products, and S for the
    draws. Here d stands for that diagonal, and what the off-diagonal entries do to the scales is
    left in.

    Cost: S + 1 gradients of ``log_joint`` and 1 Hessian-vector product.

    Args:
      num_samples: S, draws per step.
      decay: weight that the past keeps at each step, in [0, 1).

    Raises:
      ValueError: a guide other than a ``MeanField`` of normal sites; an objective other than the
        ELBO; a ``log_joint`` that is not twice differentiable; ``decay`` outside [0, 1).

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.MeanField({"tau": bbvi.LogNormal()})
      >>> result = bbvi.fit(
      ...     lambda x, z: 3.0 * jax.numpy.log(z["tau"]) - x * z["tau"],
      ...     guide,
      ...     2.0,
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.TaylorControlVariate(4),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> bool(abs(guide.site_params(result.params.guide)["tau"]["log_scale"] + 0.69) < 0.05)
      True

    References:
      Miller, Foti, D'Amour and Adams (2017), Reducing Reparameterization Gradient Variance;
      Geffner and Domke (2018), Using Large Ensembles of Control Variates for Variational
      Inference, for fitted coefficients.
    """

    num_samples: int = 8
    decay: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ValueError(f"TaylorControlVariate decay must be in [0, 1), got {self.decay}.")

    @property
    def cost(self) -> Cost:
        """A Hessian-vector product takes as long as two gradients."""
        return Cost(gradients=self.num_samples + 3)

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)
        normal_guide(problem)
        super().validate(problem, params, x)
        try:
            jax.eval_shape(
                lambda params, x: slope_and_bend(problem, params, x, params.guide.normal[0]),
                params,
                x,
            )
        except (TypeError, NotImplementedError, ValueError) as error:
            raise ValueError(
                f"TaylorControlVariate needs a Hessian-vector product of log_joint, which JAX "
                f"could not form ({error}); use Reparameterization."
            ) from error

    def init(self, problem: Problem, params: Params, x: Data) -> TaylorState:
        loc = params.guide.normal[0]
        by_site = jnp.zeros((2, len(normal_guide(problem).layout.sites)), loc.dtype)
        by_entry = jnp.zeros((2, loc.size), loc.dtype)
        return TaylorState(jnp.zeros((), loc.dtype), by_site, by_site, by_entry)

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: TaylorState
    ) -> tuple[Estimate, TaylorState]:
        (loc, log_scale), epsilon = params.guide.normal, noise[0]
        deviations = jnp.exp(log_scale)[None] * epsilon  # [S, D]
        mean_deviation = jnp.mean(deviations, axis=0)

        def total(u: Array, model: PyTree) -> tuple[Array, Array]:
            at = params._replace(model=model)
            values = over_draws(lambda draw: log_density(problem, at, x, draw), u)
            return jnp.sum(values), values

        (_, values), (slopes, by_model) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
            loc[None] + deviations, params.model
        )
        slope, bend = slope_and_bend(problem, params, x, mean_deviation)

        sites = normal_guide(problem).layout.sites
        sizes = [size(site.unconstrained_shape) for _, site in sites]
        site_of = np.repeat(np.arange(len(sizes)), sizes)  # [D]
        linear, curvature = coefficients(state)
        linear = linear[:, site_of]  # [2, D]
        controls = jnp.stack([bend, slope * mean_deviation])
        plain = jnp.stack([jnp.mean(slopes, axis=0), jnp.mean(slopes * deviations, axis=0)])
        bowl = epsilon**2 - 1
        ascent = plain - linear * controls
        ascent = ascent.at[1].add(1 - curvature * jnp.mean(bowl, axis=0))

        # Moments for later steps. The gradient enters less what is known of its mean and of the
        # other control, neither of which correlates with this one: that lowers their noise.
        centred = plain - jnp.stack([slope, curvature * jnp.mean(epsilon**2, axis=0)])
        rest = (slopes - (linear[1] * slope)[None]) * deviations - curvature[None]
        current = TaylorState(
            jnp.ones_like(state.weight),
            jax.ops.segment_sum((centred * controls).T, site_of, len(sizes)).T,
            jax.ops.segment_sum((controls**2).T, site_of, len(sizes)).T,
            jnp.stack([jnp.mean(rest * bowl, axis=0), jnp.mean(bowl**2, axis=0)]),
        )
        state = jax.tree.map(lambda a, b: self.decay * a + (1 - self.decay) * b, state, current)

        log_weights = values + jnp.sum(log_scale) + standard_normal_entropy(loc.size)
        num_samples = len(epsilon)
        grads = Params(
            MeanFieldParams(-ascent, {}),
            jax.tree.map(lambda leaf: -leaf / num_samples, by_model),
        )
        return Estimate(problem.objective(log_weights), grads, log_weights), state


def coefficients(state: TaylorState) -> tuple[Array, Array]:
    """Least squares: a and b ``[2, sites]``, and d ``[D]``; shrunk while the past is short.

    A ratio of few terms can be anything. So a and b stay between 0 and 2, where none does worse
    than 0 if f is quadratic; and the squares below d, whose mean is 2, count for at least 1.
    """
    squares = jnp.where(state.squares > 0, state.squares, 1)
    by_site = state.weight * jnp.clip(state.products / squares, 0, 2)
    products, squares = state.curvature
    seen = jnp.maximum(squares, state.weight)
    return by_site, state.weight * products / jnp.where(seen > 0, seen, 1)


def normal_guide(problem: Problem) -> MeanField:
    """The guide of a problem; raise unless it is a mean field of normal sites."""
    guide = problem.guide
    if not isinstance(guide, MeanField):
        raise ValueError(
            "TaylorControlVariate needs a bbvi.MeanField of bbvi.Normal sites, got a "
            f"{type(guide).__name__}; use Reparameterization(sampling=bbvi.ScrambledSobol())."
        )
    for name, family in guide.others.items():
        raise ValueError(
            f"TaylorControlVariate needs bbvi.Normal sites (with any support), but site '{name}' "
            f"is {family!r}: change the family, or use Reparameterization."
        )
    return guide


def log_density(problem: Problem, params: Params, x: Data, u: Array) -> Array:
    """Log joint of one draw as a density of u, what is left of it before the bijectors."""
    guide = normal_guide(problem)
    values, log_det = guide.layout.constrain(u)
    return problem.log_joint(x, guide.pack(values), *problem.model_args(params)) + log_det


def slope_and_bend(
    problem: Problem, params: Params, x: Data, direction: Array
) -> tuple[Array, Array]:
    """Gradient of the log density at the guide's mean, and the Hessian there times a direction."""
    gradient = jax.grad(lambda u: log_density(problem, params, x, u))
    return jax.jvp(gradient, (params.guide.normal[0],), (direction,))
