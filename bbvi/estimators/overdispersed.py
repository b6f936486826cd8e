"""Score-function gradients with draws from a wider version of the guide."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from bbvi._types import Data, Latents, Params, PyTree
from bbvi.baselines import minus_others
from bbvi.dependence.blankets import Evaluate, FactorGraph, local_program
from bbvi.estimators.base import Estimate, Estimator, check_elbo
from bbvi.estimators.score_function import per_draw
from bbvi.problem import Problem, over_draws


@dataclasses.dataclass(frozen=True)
class Overdispersed(Estimator):
    r"""Score-function gradient from draws of an overdispersed guide, weighted term by term.

    The draws come from :math:`r = \prod_i r_i`, the guide's families with their natural parameters
    divided by the dispersion :math:`\tau`: more often where the score is large, at the price of
    weights :math:`w_i = q_i(z_i) / r_i(z_i)`. ``log_joint`` is a sum of terms :math:`F_k`, each of
    which reads the blocks D(k) only (see ``bbvi.explain``), so it is weighted with those only:

    .. math::
      g = -\frac1S \sum_s \sum_i \nabla_\phi \log q_i(z_{si}; \phi) \Big[ \sum_{k : i \in D(k)}
          W_{sk} \big(F_{sk} - \bar F_{sk}\big) - w_{si} \big(\log q_i(z_{si}) - \bar l_{si}\big)
          \Big], \qquad W_{sk} = \prod_{j \in D(k)} w_{sj}

    The bars are means over the other draws. Unbiased: for i in D(k), and any function of the blocks
    in D(k), :math:`E_r[\nabla \log q_i\, F_k W_k] = E_q[\nabla \log q_i\, F_k]`, for the blocks are
    independent under r. The same with a constant for :math:`F_k` is
    :math:`E_q[\nabla \log q_i] = 0`, and :math:`\bar F_{sk}` is one given draw s; likewise for the
    entropy. A term that reads :math:`z_i` without depending on it does no harm:
    :math:`E_r[w_i] = 1`. With dispersion 1 it is ``ScoreFunction(signal="blanket")`` with
    ``LeaveOneOut``, draw for draw.

    The loss estimates minus the ELBO of the GUIDE, not of r. ``log_weights`` are its stand-ins, not
    log p - log q of each draw: :math:`\sum_k c_{sk} F_{sk} - \sum_i c_{si} \log q_i(z_{si})` with
    :math:`c_{sk} = 1 + W_{sk} - \bar W_{sk}`, whose mean over the draws is that of
    :math:`W_{sk} F_{sk} - (W_{sk} - 1) \bar F_{sk}`, a control variate of mean zero: unbiased, and
    a constant in a term adds no noise.

    Weights of one block are bounded, but a term that reads many blocks multiplies them: the second
    moment of W grows exponentially in their number (:math:`(\tau^2 / (2\tau - 1))^{1/2}` for each
    normal). For local terms, therefore, and not for a likelihood that reads a whole vector of
    weights. ``log_joint`` need not be differentiable in z. Cost: ``num_samples`` values of it.

    Args:
      num_samples: S, draws per step, at least 2.
      dispersion: :math:`\tau \ge 1`: normals keep their location and get :math:`\tau` times the
        variance, gammas and Dirichlets keep their mean, logits are divided by it.

    Raises:
      ValueError: fewer than two draws; a dispersion below 1; a guide with a site that is not of an
        exponential family; an objective other than the ELBO.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):
      ...     log_rate = jnp.log(z["rate"])
      ...     return jnp.sum(x * log_rate - z["rate"]) + jnp.sum(log_rate - z["rate"])
      >>> guide = bbvi.MeanField({"rate": bbvi.Gamma((2,))})
      >>> result = bbvi.fit(
      ...     log_joint,
      ...     guide,
      ...     jnp.array([3.0, 1.0]),
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.Overdispersed(32, dispersion=2.0),
      ...     num_steps=2000,
      ...     progress=False,
      ... )
      >>> gamma = result.params.guide.families["rate"]
      >>> [round(float(c)) for c in jnp.exp(gamma["log_concentration"])]  # the posterior's
      [5, 3]

    References:
      Ruiz, Titsias and Blei (2016), Overdispersed Black-Box Variational Inference.
    """

    num_samples: int = 32
    dispersion: float = 2.0

    is_pathwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2:
            raise ValueError(f"Overdispersed needs num_samples >= 2, got {self.num_samples}.")
        if not 1 <= self.dispersion < math.inf:
            raise ValueError(
                f"Overdispersed dispersion must be a number >= 1, got {self.dispersion!r}."
            )

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        check_elbo(self, problem)
        try:
            jax.eval_shape(lambda phi: self._wide(problem, phi), params)
        except NotImplementedError as error:
            raise ValueError(f"Overdispersed: {error} Use ScoreFunction.") from error

    def _wide(self, problem: Problem, params: Params) -> Params:
        return params._replace(guide=problem.guide.overdispersed(params.guide, self.dispersion))

    def estimate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        guide, wide = problem.guide, self._wide(problem, params)
        z = problem.sample(noise, wide, x)

        def log_probs(phi: PyTree) -> dict[str, Array]:
            return over_draws(lambda draw: guide.site_log_probs(phi, x, draw), z)

        log_q, pullback = jax.vjp(log_probs, params.guide)
        log_ratios = jax.tree.map(jnp.subtract, log_q, log_probs(wide.guide))

        # The draws are held fixed, so log_joint is differentiated in the model parameters only.
        def mean_log_p(model: PyTree) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            first = jax.tree.map(lambda leaf: leaf[0], z)
            args = problem.model_args(params._replace(model=model))
            log_p, signals = local_program(
                _weigh, problem.log_joint, guide.sites(), x, first, args, z, log_ratios
            )
            return -jnp.mean(log_p), (log_p, signals)

        model_grads, aux = jax.grad(mean_log_p, has_aux=True)(params.model)
        log_weights, signals = stop_gradient(aux)
        for name, leaf in log_q.items():
            weights = jnp.exp(log_ratios[name])
            signals[name] -= weights * minus_others(leaf)
            log_weights -= per_draw((1 + minus_others(weights)) * leaf)
        (grads,) = pullback(jax.tree.map(lambda leaf: -leaf / leaf.shape[0], signals))
        loss = problem.objective(log_weights)
        return Estimate(loss, Params(grads, model_grads), log_weights), state


def _weigh(
    graph: FactorGraph, evaluate: Evaluate, _: Latents, z: Latents, log_ratios: dict[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """Weighted log joint ``[S]``, and learning signals ``[S, *blocks]``, of draws ``[S, ...]``."""
    factors = jax.vmap(evaluate)(z)
    weights = [jnp.exp(sums) for sums in jax.vmap(graph.factor_sums)(log_ratios)]
    log_p = sum(
        (per_draw((1 + minus_others(w)) * f) for w, f in zip(weights, factors, strict=True)),
        jnp.zeros(()),
    )
    centred = [w * minus_others(f) for w, f in zip(weights, factors, strict=True)]
    return log_p, jax.vmap(graph.blanket_sums)(centred)
