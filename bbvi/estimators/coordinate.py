"""Score-function gradients with one fitted control variate per variational parameter."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Latents, Params, PyTree
from bbvi.estimators.base import Estimate, Estimator, check_elbo
from bbvi.estimators.score_function import ScoreFunction, evaluate, per_draw
from bbvi.problem import Problem, over_draws

Signal = Literal["blanket", "full"]


@dataclasses.dataclass(frozen=True)
class CoordinateControlVariate(Estimator):
    r"""Score-function gradient with the score itself as control variate, coordinate by coordinate.

    With :math:`h_{sd} = \partial \log q(z_s; \phi) / \partial \phi_d` and the learning signal
    :math:`f_{sd}` of the block that :math:`\phi_d` belongs to,

    .. math::
      g_d = -\frac1S \sum_s h_{sd} \big(f_{sd} - a_{sd}\big), \qquad
      a_{sd} = \frac{\sum_{j \ne s} f_{jd} h_{jd}^2}{\sum_{j \ne s} h_{jd}^2}

    The best constant is :math:`a_d^* = \mathrm{Cov}(f h_d, h_d) / \mathrm{Var}(h_d) =
    E[f h_d^2] / E[h_d^2]`: an average of the signal that counts a draw by how much it moves
    :math:`\phi_d`, where ``LeaveOneOut`` counts all alike. It differs between the parameters of one
    block, such as location and scale.

    Estimated from all draws, as it was proposed, the coefficient depends on :math:`z_s`, and
    :math:`E[h_{sd}\, a_d] = E[(f - a_d^*) h_d^3] / (S\, E[h_d^2]) + O(S^{-2})` is a bias. Here
    the coefficient of draw s leaves it out. Draws are independent, so :math:`E[h_{sd}\, a_{sd}] =
    E[h_{sd}]\, E[a_{sd}] = 0`: unbiased. With two draws it is ``ScoreFunction`` with
    ``LeaveOneOut``, draw for draw. ``log_joint`` need not be differentiable in z.

    A coefficient from few draws is noisy, the more so the heavier the tails of the score (gammas):
    with too few, ``LeaveOneOut`` has the lower variance.

    Cost: ``num_samples`` values of ``log_joint``, and memory for S gradients of log q.

    Args:
      num_samples: S, draws per step, at least 2.
      signal: ``"blanket"`` (default), the terms of ``log_joint`` that read the block minus its own
        log q, or ``"full"``, log p - log q, the better one close to the posterior.

    Raises:
      ValueError: fewer than two draws; an objective other than the ELBO; an unknown signal.

    Example:
      >>> import bbvi, jax
      >>> result = bbvi.fit(
      ...     lambda x, z: -0.5 * (z["mu"] - x) ** 2,
      ...     bbvi.MeanField({"mu": bbvi.Normal()}),
      ...     1.5,
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.CoordinateControlVariate(16),
      ...     num_steps=1000,
      ...     progress=False,
      ... )
      >>> round(float(result.params.guide.normal[0, 0]), 1)
      1.5

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference, section 3.2.
    """

    num_samples: int = 32
    signal: Signal = "blanket"

    is_pathwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2:
            raise ValueError(
                "CoordinateControlVariate estimates the coefficient of a draw from the others and "
                f"needs num_samples >= 2, got {self.num_samples}."
            )
        if self.signal not in get_args(Signal):
            raise ValueError(f"signal must be one of {get_args(Signal)}, got {self.signal!r}.")

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        z = problem.sample(noise, params, x)
        signal = ScoreFunction(self.num_samples, signal=self.signal)
        at_every_site = {site.name: signal for site in problem.guide.sites()}

        # The draws are held fixed, so log_joint is differentiated in the model parameters only.
        def mean_log_p(model: PyTree) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            log_p, blankets = evaluate(at_every_site, problem, params._replace(model=model), x, z)
            return -jnp.mean(per_draw(log_p)), (per_draw(log_p), blankets)

        model_grads, (log_p, blankets) = jax.grad(mean_log_p, has_aux=True)(params.model)

        def of_one_draw(
            inputs: tuple[Latents, Array, dict[str, Array]],
        ) -> tuple[Array, PyTree, PyTree]:
            """Log weight, and the pullbacks of the signals (f h) and of ones (h)."""
            draw, log_p, blankets = inputs
            log_q, pullback = jax.vjp(
                lambda phi: problem.guide.site_log_probs(phi, x, draw), params.guide
            )
            log_weight = log_p - sum(jnp.sum(leaf) for leaf in log_q.values())
            signals = {
                name: blankets[name] - leaf if name in blankets else jnp.full_like(leaf, log_weight)
                for name, leaf in log_q.items()
            }
            (weighted,), (score,) = pullback(signals), pullback(jax.tree.map(jnp.ones_like, log_q))
            return log_weight, weighted, score

        log_weights, *products = stop_gradient(over_draws(of_one_draw, (z, log_p, blankets)))
        grads = jax.tree.map(_controlled_mean, *products)
        loss = problem.objective(log_weights)
        return Estimate(loss, Params(grads, model_grads), log_weights), state


def _controlled_mean(weighted: Array, score: Array) -> Array:
    """Minus the mean over draws of f h - a h, for ``[S, ...]`` products f h and scores h."""
    squares = sum_of_others(score**2)
    coefficient = sum_of_others(weighted * score) / jnp.where(squares > 0, squares, 1)
    return -jnp.mean(weighted - coefficient * score, axis=0)


def sum_of_others(values: Array) -> Array:
    """For each draw the sum over the other draws, which lie along the first axis."""
    # Not the total minus the draw's own: where its square dominates, that leaves rounding errors
    # that depend on the draw.
    none = jnp.zeros_like(values[:1])
    before = jax.lax.cumsum(jnp.concatenate([none, values[:-1]]))
    after = jax.lax.cumsum(jnp.concatenate([values[1:], none]), reverse=True)
    return before + after
