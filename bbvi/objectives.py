"""Objectives: scalars of log weights log p(x, z) - log q(z), always minimised."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr

from bbvi._checks import is_number


class Objective(abc.ABC):
    """A loss as a function of the log weights of S independent draws.

    Latents of different components of a model, such as the data of a batch, are independent under
    the posterior. Each component then has weights of its own, ``[S, C]`` in all, and the loss is
    the sum of the components' losses. A bound of several draws is then closer to its limit than
    from the weights ``[S]`` of all latents together, whose variance grows with their number.

    Attributes:
      group_size: how many draws one evaluation of the bound takes.
      is_mean: whether the loss is minus the mean of the log weights (the ELBO), which is what
        the score-function estimators and closed-form entropies need.

    Example:
      >>> import dataclasses, bbvi, jax.numpy as jnp
      >>> @dataclasses.dataclass(frozen=True)
      ... class Worst(bbvi.Objective):
      ...     def __call__(self, log_weights):
      ...         return -jnp.sum(jnp.min(log_weights, axis=0))
      >>> float(Worst()(jnp.array([-1.0, -3.0])))
      3.0
    """

    is_mean: ClassVar[bool] = False
    group_size: int = 1

    @abc.abstractmethod
    def __call__(self, log_weights: Array) -> Array:
        """The loss, a scalar, from log weights ``[S]``, or ``[S, C]`` for each component."""


@dataclasses.dataclass(frozen=True)
class Elbo(Objective):
    r"""Minus the evidence lower bound, :math:`-\frac1S \sum_s \log p(x, z_s) - \log q(z_s)`.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> float(bbvi.Elbo()(jnp.array([-1.0, -3.0])))
      2.0

    References:
      Jordan, Ghahramani, Jaakkola and Saul (1999), An Introduction to Variational Methods for
      Graphical Models.
    """

    is_mean: ClassVar[bool] = True

    def __call__(self, log_weights: Array) -> Array:
        return -jnp.sum(jnp.mean(log_weights, axis=0))


class PowerMean(Objective):
    r"""A bound that is the log of a power mean of the weights of K draws,
    :math:`B = \frac1r \log \frac1K \sum_k w_k^r`.

    What :class:`Iwae` (r = 1), :class:`Renyi` and :class:`Chi` have in common; their gradient
    estimators need to know no more than r. With more than K draws, the mean over groups of K.

    Attributes:
      sign: -1 where B is maximised, 1 where it is minimised.
      power: r, not 0.
    """

    sign: ClassVar[int] = -1

    @property
    @abc.abstractmethod
    def power(self) -> float:
        """The exponent r."""

    def __call__(self, log_weights: Array) -> Array:
        groups = self.power * in_groups(self, log_weights)
        bounds = (jax.nn.logsumexp(groups, axis=1) - math.log(self.group_size)) / self.power
        return self.sign * jnp.sum(jnp.mean(bounds, axis=0))


@dataclasses.dataclass(frozen=True)
class Iwae(PowerMean):
    r"""Minus the importance-weighted bound, :math:`-\log \frac1K \sum_k e^{\log w_k}`.

    With more than K draws, the mean over groups of K. ``Iwae(1)`` is ``Elbo()``.

    Args:
      group_size: K, draws per bound; the estimator's ``num_samples`` is a multiple of it.

    Raises:
      ValueError: K below 1, or a number of log weights that K does not divide.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> round(float(bbvi.Iwae(2)(jnp.log(jnp.array([0.5, 1.5])))), 6)
      0.0

    References:
      Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """

    group_size: int = 8

    def __post_init__(self) -> None:
        check_group_size(self, 1)

    @property
    def power(self) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Renyi(PowerMean):
    r"""Minus the variational Renyi bound of K draws,
    :math:`-\frac{1}{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}`.

    As K grows it tends to :math:`D_\alpha(q \| p) - \log p(x)` with the Renyi divergence from q to
    the posterior. The bound falls with :math:`\alpha`: from ``Iwae`` at 0, which is what it is
    for that value, through the ELBO at 1, towards the worst of the K draws as
    :math:`\alpha \to \infty`. Small values cover mass, large ones seek modes.

    For :math:`\alpha \ge 0` it is a lower bound on log p(x) in expectation. For :math:`\alpha < 0`
    it is not: the limit lies ABOVE log p(x), and is still maximised. The exact posterior is a local
    minimum of the expected loss if and only if :math:`(1 - \alpha)(K - 1) < K`; beyond that, a fit
    moves away from it. ``Chi`` minimises such upper bounds instead.

    Args:
      alpha: order, any real number but 1.
      group_size: K, at least 2; the estimator's ``num_samples`` is a multiple of it.

    Raises:
      ValueError: ``alpha`` is 1 or not finite; K below 2, where every order gives the ELBO; a
        number of log weights that K does not divide.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> round(float(bbvi.Renyi(0.5, 2)(jnp.log(jnp.array([1.0, 9.0])))), 6)  # -2 log 2
      -1.386294

    References:
      Li and Turner (2016), Renyi Divergence Variational Inference.
    """

    alpha: float
    group_size: int = 8

    def __post_init__(self) -> None:
        if self.alpha == 1:
            raise ValueError("Renyi of order alpha=1 is the ELBO: use Elbo().")
        if not is_number(self.alpha):
            raise ValueError(f"Renyi alpha must be a finite number, got {self.alpha!r}.")
        check_group_size(self, 2, "with one draw every order is the ELBO: use Elbo()")

    @property
    def power(self) -> float:
        return 1.0 - self.alpha


@dataclasses.dataclass(frozen=True)
class Chi(PowerMean):
    r"""The chi upper bound of K draws, :math:`\frac1n \log \frac1K \sum_k w_k^n`, minimised.

    As K grows it tends to :math:`\mathrm{CUBO}_n = \frac1n \log E_q[w^n] \ge \log p(x)`, which has
    its minimum at the posterior and punishes a q that misses mass: fits come out wide rather than
    narrow.

    With K draws the expected loss is BELOW :math:`\mathrm{CUBO}_n`, for the log of a mean is
    concave, and it need not be an upper bound. Its gradient is estimated without bias; as a
    gradient of :math:`\mathrm{CUBO}_n` that is biased by O(1/K). Two things follow. The posterior
    is a local minimum of the expected loss if and only if :math:`n (K - 1) > K`, which K must
    satisfy. And the minimum is local only: with all K draws far from the posterior's mass the loss
    falls without bound, so start where q covers it, and take many draws. Where q has lighter tails
    than :math:`p^{n/(n-1)}`, :math:`\mathrm{CUBO}_n` is infinite.

    Args:
      order: n, above 1; 2 for the chi-square divergence.
      group_size: K, above n / (n - 1); the estimator's ``num_samples`` is a multiple of it.

    Raises:
      ValueError: an order of at most 1, too few draws for it, or a number of log weights that K
        does not divide.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> round(float(bbvi.Chi(2, 4)(jnp.log(jnp.array([0.0, 0.0, 1.0, 1.0]))) * 2), 6)  # log 1/2
      -0.693147

    References:
      Dieng, Tran, Ranganath, Paisley and Blei (2017), Variational Inference via Chi Upper Bound
      Minimization.
    """

    order: float = 2.0
    group_size: int = 32

    sign: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 1 < self.order < math.inf:
            raise ValueError(
                f"Chi order must be a number above 1, got {self.order!r}: of order 1 the bound is "
                "log p(x) for every guide."
            )
        fewest = math.floor(self.order / (self.order - 1)) + 1
        why = f"with fewer draws the posterior is no minimum of the loss of order {self.order}"
        check_group_size(self, fewest, why)

    @property
    def power(self) -> float:
        return float(self.order)


@dataclasses.dataclass(frozen=True)
class ForwardKl(Objective):
    r"""The forward (inclusive) divergence :math:`KL(p(z \mid x) \| q)`, estimated with K draws.

    .. math::
      \sum_k \tilde w_k \log w_k - \log \frac1K \sum_k w_k = \sum_k \tilde w_k \log(K \tilde w_k),
      \qquad \tilde w_k = w_k / \textstyle\sum_j w_j

    It covers mass: a mean-field fit gets the posterior's marginals, where the ELBO's gets its
    conditionals. The self-normalised estimate is consistent and biased by O(1/K): it lies between 0
    and log K, so it cannot tell a divergence much above log K. With more than K draws, the mean
    over groups of K. ``ReweightedWakeSleep`` estimates its gradient; those of the other estimators
    would be of the estimate, which also falls where no draw meets the posterior's mass.

    Args:
      group_size: K, at least 2; the estimator's ``num_samples`` is a multiple of it.

    Raises:
      ValueError: K below 2, where the estimate is always 0; a number of log weights that K does
        not divide.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> round(float(bbvi.ForwardKl(2)(jnp.log(jnp.array([1.0, 0.0])))), 6)  # log 2
      0.693147

    References:
      Bornschein and Bengio (2015), Reweighted Wake-Sleep.
    """

    group_size: int = 32

    def __post_init__(self) -> None:
        check_group_size(self, 2, "with one draw the estimate is always 0")

    def __call__(self, log_weights: Array) -> Array:
        weights = jax.nn.softmax(in_groups(self, log_weights), axis=1)
        divergences = math.log(self.group_size) - jnp.sum(entr(weights), axis=1)
        return jnp.sum(jnp.mean(divergences, axis=0))


def in_groups(objective: Objective, log_weights: Array) -> Array:
    """Log weights ``[S, ...]`` as ``[G, K, ...]``: G groups, each for one evaluation."""
    size = objective.group_size
    if log_weights.shape[0] % size:
        raise ValueError(
            f"{objective!r} needs a multiple of {size} draws, got {log_weights.shape[0]}: set the "
            "estimator's num_samples."
        )
    return log_weights.reshape(-1, size, *log_weights.shape[1:])


def check_group_size(objective: Objective, fewest: int, why: str = "") -> None:
    """Raise unless the group size is an int of at least ``fewest``."""
    size = objective.group_size
    if not isinstance(size, int) or size < fewest:
        name = type(objective).__name__
        reason = f"; {why}" if why else ""
        raise ValueError(f"{name} group_size must be an int >= {fewest}, got {size!r}{reason}.")
