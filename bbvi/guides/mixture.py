"""Mixtures of normals as the family of one latent, reparameterized in all their parameters."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr, ndtri
from jax.scipy.stats import norm

from bbvi import supports
from bbvi._random import draw_flat
from bbvi._types import Key, PyTree
from bbvi.guides.families.base import Family, check_support
from bbvi.supports import Support


@dataclasses.dataclass(frozen=True, init=False)
class NormalMixture(Family):
    r"""Independent entries, each a mixture of K normals on any elementwise support.

    .. math:: u \sim \sum_k w_k N(m_k, s_k^2), \qquad z = T(u)

    for posteriors with several modes, skew or heavy shoulders. A draw selects a component; its
    gradient is that of implicit reparameterization, with F the distribution function of u and q
    its density,

    .. math:: \frac{du}{d\phi} = -\frac{\partial F(u; \phi) / \partial \phi}{q(u; \phi)}

    which is right in the weights too, where a gradient through the selected component alone would
    miss how mass moves from one mode to another. It moves along the line: in the weights of modes
    that are d deviations apart its variance comes from rare draws between them and grows like
    :math:`e^{d^2/8}`. From d of about 7 on a fit does not meet them, and weights do not settle
    where they should: give the site ``ScoreFunction`` then. The entropy has no closed form; minus
    log q at the draws stands for it.

    Args:
      num_components: K.
      shape: shape of the latent. Parameters are the ``logits`` of the weights, ``loc`` and
        ``log_scale``, all of shape ``(*shape, K)``.
      support: where the latent lives, entry by entry.

    Raises:
      ValueError: fewer than one component; a support that is not elementwise.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):
      ...     return jnp.logaddexp(norm.logpdf(z["mu"], -2.0), norm.logpdf(z["mu"], 2.0))
      >>> guide = bbvi.MeanField({"mu": bbvi.NormalMixture(2)})
      >>> result = bbvi.fit(log_joint, guide, key=jax.random.key(0), progress=False)
      >>> [round(float(m)) for m in jnp.sort(result.params.guide.families["mu"]["loc"])]
      [-2, 2]

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients; Graves (2016),
      Stochastic Backpropagation through Mixture Density Distributions.
    """

    num_components: int = dataclasses.field(kw_only=True)
    support: Support = dataclasses.field(default=supports.real, kw_only=True)

    reparameterized: ClassVar[bool] = True

    def __init__(
        self,
        num_components: int,
        shape: tuple[int, ...] = (),
        support: Support = supports.real,
    ):
        object.__setattr__(self, "num_components", num_components)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "support", support)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.num_components, int) or self.num_components < 1:
            raise ValueError(
                f"NormalMixture needs num_components >= 1 as an int, got {self.num_components!r}."
            )
        check_support(self.support, "NormalMixture")
        if self.support.event_ndims:
            raise ValueError(
                f"NormalMixture has independent entries, and support '{self.support!r}' constrains "
                "several together; use bbvi.Normal on it."
            )

    @property
    def domain(self) -> Support:
        return self.support

    def __repr__(self) -> str:
        return (
            f"NormalMixture(num_components={self.num_components}, shape={self.shape}, "
            f"support={self.support!r})"
        )

    def init(self, key: Key) -> PyTree:
        return self._spread_at(0.1 * jax.random.normal(key, self.shape), 1.0)

    def params_at(self, z: Array, scale: float) -> PyTree:
        return self._spread_at(self.support.unconstrain(jnp.asarray(z, jnp.zeros(()).dtype)), scale)

    def _spread_at(self, u: Array, scale: float) -> PyTree:
        """Equal weights at quantiles of a normal: equal components would stay equal for ever."""
        offsets = ndtri((jnp.arange(self.num_components) + 0.5) / self.num_components)
        within = jnp.sqrt(1 - jnp.mean(offsets**2))
        loc = jnp.expand_dims(u, -1) + scale * offsets.reshape((1,) * u.ndim + (-1,))
        return {
            "logits": jnp.zeros_like(loc),
            "loc": loc,
            "log_scale": jnp.full_like(loc, jnp.log(scale * within)),
        }

    def distribution(self, params: PyTree) -> Any:
        raise NotImplementedError("a NormalMixture samples and scores by itself")

    def base_noise(self, key: Key) -> tuple[Array, Array]:
        selection, deviation = jax.random.split(key)
        return (
            draw_flat(jax.random.uniform, selection, self.shape),
            draw_flat(jax.random.normal, deviation, self.shape),
        )

    def sample(self, noise: tuple[Array, Array], params: PyTree) -> Array:
        u = _draw(*noise, params["logits"], params["loc"], params["log_scale"])
        return self.support.constrain(u)

    def log_probs(self, params: PyTree, z: Array) -> Array:
        u = self.support.unconstrain(z)
        log_q = jax.nn.logsumexp(_log_joint(u, **params), axis=-1)
        log_det = self.support.log_det
        for _ in self.shape:
            log_det = jax.vmap(log_det)
        return log_q - log_det(u)

    def entropy(self, params: PyTree, z: Array) -> Array:
        return -self.log_prob(params, z)


def _log_joint(u: Array, logits: Array, loc: Array, log_scale: Array) -> Array:
    """Log of weight times density of every component, ``[..., K]`` at u ``[...]``."""
    log_density = norm.logpdf((u[..., None] - loc) * jnp.exp(-log_scale)) - log_scale
    return jax.nn.log_softmax(logits) + log_density


@jax.custom_jvp
def _draw(uniform: Array, normal: Array, logits: Array, loc: Array, log_scale: Array) -> Array:
    """Draws ``[...]`` from mixtures with parameters ``[..., K]``."""
    cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    # Scaled by the sum, which may be rounded, so that no component without weight is selected.
    threshold = (uniform * cumulative[..., -1])[..., None]
    selected = jnp.sum(threshold >= cumulative[..., :-1], axis=-1, keepdims=True)
    loc, log_scale = (
        jnp.take_along_axis(leaf, selected, axis=-1)[..., 0] for leaf in (loc, log_scale)
    )
    return loc + jnp.exp(log_scale) * normal


@_draw.defjvp
def _draw_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    _, _, logits, loc, log_scale = primals
    _, _, logits_dot, loc_dot, log_scale_dot = tangents
    u = _draw(*primals)
    log_joint = _log_joint(u, logits, loc, log_scale)
    log_q = jax.nn.logsumexp(log_joint, axis=-1, keepdims=True)
    # Components: a mean of the derivatives of u = m_k + s_k e, by responsibility.
    deviation = u[..., None] - loc
    moved = jnp.exp(log_joint - log_q) * (loc_dot + deviation * log_scale_dot)
    # Weights: -w_k (F_k - F) / q. All are taken from the tail that u lies in, as logarithms: in
    # the upper one F_k - F is lost to rounding, and equals the tails' difference the other way.
    standardized, weights = deviation * jnp.exp(-log_scale), jax.nn.softmax(logits)
    below = jnp.sum(weights * jax.scipy.special.ndtr(standardized), axis=-1, keepdims=True) < 0.5
    sign = jnp.where(below, 1, -1).astype(u.dtype)
    tails = jnp.exp(jax.nn.log_softmax(logits) + log_ndtr(sign * standardized) - log_q)
    by_logits = -sign * (tails - weights * jnp.sum(tails, axis=-1, keepdims=True))
    return u, jnp.sum(moved + by_logits * logits_dot, axis=-1)
