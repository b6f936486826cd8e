"""Reparameterization (pathwise) gradients."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, get_args

import jax
from jax import Array

from bbvi._types import Data, Key, Params, PyTree
from bbvi.estimators.analytic_kl import Prior, check_prior, entropy_by_prior
from bbvi.estimators.base import Estimator, SurrogateEstimator, check_elbo
from bbvi.objectives import ForwardKl
from bbvi.problem import Problem
from bbvi.sampling import Independent, Sampling

Entropy = Literal["closed_form", "monte_carlo", "stick_the_landing"]


def check_entropy(estimator: Reparameterization, problem: Problem) -> None:
    """Raise unless the entropy term fits the objective and the guide."""
    if estimator.entropy in ("closed_form", "stick_the_landing") and not problem.objective.is_mean:
        raise ValueError(
            f"entropy='{estimator.entropy}' needs bbvi.Elbo(), got {problem.objective!r}, whose "
            "gradient it would bias; use entropy='monte_carlo' or DoublyReparameterized."
        )
    if estimator.entropy == "closed_form" and not problem.guide.has_entropy:
        raise ValueError(
            f"{type(problem.guide).__name__} has no closed-form entropy; use "
            "entropy='monte_carlo' or 'stick_the_landing'."
        )


def check_not_forward_kl(estimator: Estimator, problem: Problem) -> None:
    """Raise if the objective is an estimate whose own gradient is not the one to follow."""
    if isinstance(problem.objective, ForwardKl):
        raise ValueError(
            f"{type(estimator).__name__} would follow the gradient of {problem.objective!r} as an "
            "estimate, which also falls where no draw meets the posterior's mass: use "
            "ReweightedWakeSleep."
        )


@dataclasses.dataclass(frozen=True)
class Reparameterization(SurrogateEstimator):
    r"""Pathwise gradient: differentiate the loss through the draw :math:`z = T(\epsilon; \phi)`.

    .. math::
      g = \nabla_\phi \, \ell\big(\log p(x, z) - \log q(z; \phi)\big), \quad z = T(\epsilon; \phi)

    Unbiased. Requires reparameterized sites and a log joint differentiable (almost everywhere,
    without jumps) in z. For a bound of several draws each component of the model has its own
    weights, and ``DoublyReparameterized`` has the smaller variance close to the posterior. Cost:
    ``num_samples`` gradients of ``log_joint``.

    Args:
      num_samples: S, draws per step.
      entropy: how the entropy of q enters. ``"closed_form"``: its exact value where one exists.
        ``"monte_carlo"``: minus log q at the draws, differentiated in full (the same gradient as
        the closed form for location-scale families). ``"stick_the_landing"``: log q with its
        parameters held fixed; zero variance at q = p, larger than the others' when q is much
        narrower than p; biased, hence refused, for multi-sample bounds. None (default): the
        closed form for the ELBO of a guide that has one, else Monte Carlo.
      sampling: where base noise comes from: ``Independent()``, ``Antithetic()`` (pairs) or
        ``ScrambledSobol()`` (S a power of two). The last two cost no more, usually have far less
        variance, and need the ELBO and sites whose noise is a function of uniforms.
      prior: function of what ``log_joint`` is a function of, ``(x, z) -> {site: distribution of
        distrax}``, or ``(x, z, theta)``. The entropy of such a site is replaced by minus
        :math:`\log p_i(z_i) + KL(q_i \| p_i)`, the divergence in closed form. With the priors that
        are in ``log_joint`` this leaves the reconstruction term minus divergences, without noise
        from priors; with any others it is as unbiased, and of no use. A prior may depend on other
        sites; sites that are left out keep their entropy.

    Raises:
      ValueError: a site is not reparameterizable, ``log_joint`` is not differentiable, or the
        entropy term or the sampling is invalid for the objective, guide or ``num_samples``; a
        divergence from a site to its prior has no closed form, or the prior depends on the site.
      TypeError: ``sampling`` is not a ``Sampling``, or ``prior`` not such a function.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.MeanField({"z": bbvi.Normal()})
      >>> result = bbvi.fit(
      ...     lambda x, z: -0.5 * (z["z"] - x) ** 2,
      ...     guide,
      ...     2.0,
      ...     key=jax.random.key(0),
      ...     estimator=bbvi.Reparameterization(4),
      ...     num_steps=2000,
      ...     progress=False,
      ... )
      >>> bool(abs(guide.site_params(result.params.guide)["z"]["loc"] - 2.0) < 0.1)
      True

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes; Roeder, Wu and Duvenaud (2017),
      Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference;
      Buchholz, Wenzel and Mandt (2018), Quasi-Monte Carlo Variational Inference.
    """

    takes_site_weights: ClassVar[bool] = True

    num_samples: int = 8
    entropy: Entropy | None = None
    sampling: Sampling = dataclasses.field(default_factory=Independent)
    prior: Prior | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entropy is not None and self.entropy not in get_args(Entropy):
            raise ValueError(
                f"entropy must be one of {get_args(Entropy)} or None, got {self.entropy!r}."
            )
        if not isinstance(self.sampling, Sampling):
            raise TypeError(
                "sampling must be bbvi.Independent(), bbvi.Antithetic() or bbvi.ScrambledSobol(), "
                f"got {self.sampling!r}."
            )
        self.sampling.check_num_samples(self.num_samples)
        if self.prior is not None and not callable(self.prior):
            raise TypeError(
                f"prior must be a function (x, z) -> {{site: ...}}, got {self.prior!r}."
            )
        if self.prior is not None and self.entropy not in (None, "closed_form"):
            raise ValueError(
                f"prior replaces entropies in closed form, got entropy={self.entropy!r}: leave out "
                "one of them."
            )

    def validate(self, problem: Problem, params: Params, x: Data) -> None:
        super().validate(problem, params, x)
        check_not_forward_kl(self, problem)
        check_entropy(self, problem)
        self.sampling.validate(problem.guide, problem.objective)
        if self.prior is not None:
            check_elbo(self, problem)
            check_prior(self.prior, problem, params, x)

    def draw(self, key: Key, problem: Problem) -> PyTree:
        return self.sampling.draw(key, problem.guide, self.num_samples)

    def surrogate(
        self, noise: PyTree, problem: Problem, params: Params, x: Data, state: PyTree
    ) -> tuple[Array, tuple[Array, PyTree]]:
        if not problem.objective.is_mean:
            log_p, log_q = problem.by_component(params, x, problem.sample(noise, params, x))
            return problem.objective(log_p - log_q), (log_p - log_q, state)
        entropy = self.entropy
        if entropy is None:
            entropy = "closed_form" if problem.guide.has_entropy else "monte_carlo"
        if self.prior is not None:
            z = problem.sample(noise, params, x)
            minus_log_q = entropy_by_prior(self.prior, problem, params, x, z)
        elif entropy == "closed_form":
            z, minus_log_q = problem.sample_and_entropy(noise, params, x)
        elif entropy == "monte_carlo":
            z, log_q = problem.sample_and_log_q(noise, params, x)
            minus_log_q = -log_q
        else:
            z = problem.sample(noise, params, x)
            minus_log_q = -problem.log_q(jax.lax.stop_gradient(params), x, z)
        log_weights = problem.log_p(params, x, z) + minus_log_q
        return problem.objective(log_weights), (log_weights, state)
