"""Families of one latent: the sites a mean-field guide is built from, on distrax distributions."""

from __future__ import annotations

import abc
import copy
import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import distrax
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betaln, digamma, ndtri
from tensorflow_probability.substrates.jax.math import betaincinv

from bbvi import supports
from bbvi._checks import check_positive
from bbvi._random import draw_flat
from bbvi._types import Key, PyTree
from bbvi.guides.base import check_shape, size
from bbvi.supports import Support


def _floating() -> Any:
    return jnp.zeros(()).dtype  # float32, or float64 when x64 is on


@dataclasses.dataclass(frozen=True)
class Family(abc.ABC):
    """The variational family of one latent array with independent entries (or rows).

    Args:
      shape: shape of the latent, event axes included.
    """

    shape: tuple[int, ...] = ()
    reparameterized: ClassVar[bool] = False
    num_values: ClassVar[int | None] = None  # K, where an entry takes the values 0..K-1

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", check_shape(self.shape, type(self).__name__))

    @abc.abstractmethod
    def init(self, key: Key) -> PyTree:
        """Initial parameters."""

    @abc.abstractmethod
    def distribution(self, params: PyTree) -> Any:
        """The distrax distribution of the latent; its batch axes are independent entries."""

    @property
    def domain(self) -> Support:
        """Where values of a latent that is not discrete are."""
        return supports.real

    @property
    def values(self) -> str:
        """What a latent can be, in words."""
        if self.num_values is not None:
            kind = "one-hot rows of" if self.event_ndims else "the ints from 0 to"
            return f"{kind} {self.num_values if self.event_ndims else self.num_values - 1}"
        return f"finite and in support '{self.domain!r}'"

    def contains(self, z: Array) -> Array:
        """Whether q can be placed at a value."""
        if self.num_values is None:
            return self.domain.contains(z)
        if self.event_ndims:
            return jnp.all((z == 0) | (z == 1)) & jnp.all(jnp.sum(z, axis=-1) == 1)
        return jnp.all(jnp.isin(z, jnp.arange(self.num_values)))

    def params_at(self, z: Array, scale: float) -> PyTree:
        """Parameters centred at ``z`` with standard deviation about ``scale``, where it has one."""
        raise NotImplementedError(f"{type(self).__name__} cannot be placed at a value.")

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        """Parameters of the member whose natural parameters are divided by ``dispersion``.

        With respect to a base measure for which the density is bounded, so that importance
        weights are: dz / z for gammas, which so keep their mean, and likewise for betas and
        Dirichlets.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is not an exponential family, so it has no overdispersed form."
        )

    def resized(self, num_rows: int) -> Self:
        """The family with another length of its first axis."""
        resized = copy.copy(self)
        object.__setattr__(resized, "shape", (num_rows, *self.shape[1:]))
        return resized

    def base_noise(self, key: Key) -> PyTree:
        return key

    @property
    def noise_size(self) -> int | None:
        """How many uniforms the base noise is a function of, or None where it is not one."""
        return None

    def noise_from_uniform(self, u: Array) -> PyTree:
        """Base noise from independent uniforms ``[noise_size]`` on (0, 1)."""
        raise NotImplementedError(f"{type(self).__name__} has no map from uniforms to base noise.")

    def sample(self, noise: PyTree, params: PyTree) -> Array:
        with jax.numpy_rank_promotion("allow"):  # distrax relies on it
            return self.distribution(params).sample(seed=noise)

    @property
    def event_ndims(self) -> int:
        """Trailing axes of the latent that are drawn jointly."""
        return 0

    def log_probs(self, params: PyTree, z: Array) -> Array:
        """Log density of every independent entry (or row)."""
        with jax.numpy_rank_promotion("allow"):
            return self.distribution(params).log_prob(z)

    def log_prob(self, params: PyTree, z: Array) -> Array:
        return jnp.sum(self.log_probs(params, z))

    def entropy(self, params: PyTree, z: Array) -> Array:
        """A scalar whose expectation over z is the entropy; here the closed form."""
        del z
        with jax.numpy_rank_promotion("allow"):
            return jnp.sum(self.distribution(params).entropy())


def check_support(support: Any, name: str) -> None:
    """Raise unless a support is one."""
    if not isinstance(support, Support):
        raise TypeError(
            f"{name} support must be one of bbvi.supports, such as bbvi.supports.positive or "
            f"bbvi.supports.interval(0.0, 1.0), got {support!r}."
        )


def _spread(key: Key, shape: tuple[int, ...]) -> Array:
    """Small random starting values: they break symmetries and tell restarts apart."""
    return 0.1 * jax.random.normal(key, shape)


@dataclasses.dataclass(frozen=True)
class LocationScale(Family):
    """Location and scale of a standard family, pushed onto ``support`` by its bijector."""

    support: Support = supports.real
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_support(self.support, type(self).__name__)
        self.support.check_shape(self.shape, type(self).__name__)

    @property
    def domain(self) -> Support:
        return self.support

    @property
    def event_ndims(self) -> int:
        return self.support.event_ndims

    @property
    def unconstrained_shape(self) -> tuple[int, ...]:
        """Shape of the location: that of the latent before the bijector."""
        return self.support.unconstrained_shape(self.shape)

    def init(self, key: Key) -> PyTree:
        loc = _spread(key, self.unconstrained_shape)
        return {"loc": loc, "log_scale": jnp.full_like(loc, jnp.log(0.1))}

    def params_at(self, z: Array, scale: float) -> PyTree:
        loc = self.support.unconstrain(jnp.asarray(z, _floating()))
        return {"loc": loc, "log_scale": jnp.full_like(loc, jnp.log(scale))}

    def standard(self) -> Any:
        """The scalar distribution of (u - loc) / scale."""
        return self.located(jnp.zeros(()), jnp.ones(()))

    @abc.abstractmethod
    def quantile(self, u: Array) -> Array:
        """Inverse of the distribution function of (u - loc) / scale."""

    def distribution(self, params: PyTree) -> Any:
        if self.support != supports.real:
            raise NotImplementedError(f"no distrax distribution on support '{self.support!r}'.")
        return self.located(params["loc"], jnp.exp(params["log_scale"]))

    def located(self, loc: Array, scale: Array) -> Any:
        """The distrax distribution on the reals, where there is one."""
        raise NotImplementedError(f"{type(self).__name__} is not a distribution of distrax.")

    def base_noise(self, key: Key) -> Array:
        with jax.numpy_rank_promotion("allow"):
            # Along one axis, as ``draw_flat`` does and for the same reason.
            flat = self.standard().sample(seed=key, sample_shape=(self.noise_size,))
        return flat.reshape(self.unconstrained_shape)

    @property
    def noise_size(self) -> int:
        return size(self.unconstrained_shape)

    def noise_from_uniform(self, u: Array) -> Array:
        return self.quantile(u).reshape(self.unconstrained_shape)

    def sample(self, noise: Array, params: PyTree) -> Array:
        return self.support.constrain(params["loc"] + jnp.exp(params["log_scale"]) * noise)

    def log_probs(self, params: PyTree, z: Array) -> Array:
        u = self.support.unconstrain(z)
        standardized = (u - params["loc"]) * jnp.exp(-params["log_scale"])
        with jax.numpy_rank_promotion("allow"):
            log_q = self.standard().log_prob(standardized) - params["log_scale"]
        log_det, num_batch_axes = self.support.log_det, len(self.shape) - self.event_ndims
        for _ in range(num_batch_axes):
            log_det = jax.vmap(log_det)
        return jnp.sum(log_q, axis=range(num_batch_axes, u.ndim)) - log_det(u)

    def entropy(self, params: PyTree, z: Array) -> Array:
        # The unconstrained entropy in closed form, plus the bijector's volume at the draw.
        log_scale = params["log_scale"]
        with jax.numpy_rank_promotion("allow"):
            base = jnp.sum(log_scale) + log_scale.size * self.standard().entropy()
        return base + self.support.log_det(self.support.unconstrain(z))


@dataclasses.dataclass(frozen=True)
class Normal(LocationScale):
    r"""Independent normals, pushed onto ``support`` by a bijector.

    :math:`z = T(\mathrm{loc} + e^{\mathrm{log\_scale}} \epsilon)`, :math:`\epsilon \sim N(0, I)`.

    Args:
      shape: shape of the latent (in its constrained form).
      support: where the latent lives; see ``bbvi.supports``.

    Raises:
      ValueError: the shape cannot live in the support.

    Example:
      >>> import bbvi
      >>> bbvi.MeanField({"mu": bbvi.Normal((2,), support=bbvi.supports.ordered)})
      MeanField({'mu': Normal(shape=(2,), support=ordered)})

    References:
      Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), Automatic Differentiation Variational
      Inference.
    """

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return {**params, "log_scale": params["log_scale"] + 0.5 * jnp.log(dispersion)}

    def located(self, loc: Array, scale: Array) -> Any:
        return distrax.Normal(loc, scale)

    def quantile(self, u: Array) -> Array:
        return ndtri(u)


def LogNormal(shape: tuple[int, ...] = ()) -> Normal:
    r"""Log-normals: :math:`\log z \sim N(\mathrm{loc}, \mathrm{scale}^2)`.

    Args:
      shape: shape of the latent.

    Returns:
      ``Normal(shape, support=supports.positive)``.

    Example:
      >>> import bbvi
      >>> bbvi.LogNormal(())
      Normal(shape=(), support=positive)

    References:
      Kucukelbir et al. (2017), Automatic Differentiation Variational Inference.
    """
    return Normal(shape, support=supports.positive)


@dataclasses.dataclass(frozen=True)
class Laplace(LocationScale):
    r"""Independent Laplace distributions, :math:`q(u) = e^{-|u - loc|/s} / 2s`.

    Args:
      shape: shape of the latent.
      support: where the latent lives.

    Example:
      >>> import bbvi
      >>> bbvi.Laplace((3,)).reparameterized
      True

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes, for location-scale families.
    """

    def located(self, loc: Array, scale: Array) -> Any:
        return distrax.Laplace(loc, scale)

    def quantile(self, u: Array) -> Array:
        return jnp.sign(0.5 - u) * jnp.log(2 * jnp.minimum(u, 1 - u))


class _StandardStudentT(NamedTuple):
    """Student-t at location 0 and scale 1; distrax has none, and TFP's warns under new JAX."""

    df: float

    def sample(self, seed: Key, sample_shape: tuple[int, ...]) -> Array:
        return jax.random.t(seed, self.df, sample_shape)

    def log_prob(self, value: Array) -> Array:
        return jax.scipy.stats.t.logpdf(value, self.df)

    def entropy(self) -> Array:
        half, one = 0.5 * self.df, jnp.ones(())
        spread = digamma((half + 0.5) * one) - digamma(half * one)
        return (half + 0.5) * spread + 0.5 * jnp.log(self.df) + betaln(half * one, 0.5 * one)


@dataclasses.dataclass(frozen=True)
class StudentT(LocationScale):
    r"""Independent Student-t distributions with fixed degrees of freedom: heavier tails.

    Args:
      shape: shape of the latent.
      support: where the latent lives.
      df: degrees of freedom, positive.

    Raises:
      ValueError: ``df`` is not positive.

    Example:
      >>> import bbvi
      >>> bbvi.StudentT((3,), df=4.0).df
      4.0

    References:
      Kingma and Welling (2014), Auto-Encoding Variational Bayes, for location-scale families.
    """

    df: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("StudentT df", self.df)

    def standard(self) -> Any:
        return _StandardStudentT(self.df)

    def quantile(self, u: Array) -> Array:
        # t^2 / (df + t^2) is Beta(1/2, df/2) and its complement Beta(df/2, 1/2): of the two, invert
        # the one that is small, which keeps its relative precision.
        centre, tails = jnp.abs(2 * u - 1), 2 * jnp.minimum(u, 1 - u)
        half, half_df, is_central = 0.5, 0.5 * self.df, centre < 0.5
        share = betaincinv(
            jnp.where(is_central, half, half_df),
            jnp.where(is_central, half_df, half),
            jnp.where(is_central, centre, tails),
        )
        odds = share / (1 - share)
        return jnp.sign(u - 0.5) * jnp.sqrt(self.df * jnp.where(is_central, odds, 1 / odds))


@dataclasses.dataclass(frozen=True)
class Gamma(Family):
    r"""Independent gammas, :math:`q(z) \propto z^{a-1} e^{-bz}`; implicit reparameterization.

    Args:
      shape: shape of the latent. Parameters are ``log_concentration`` (a) and ``log_rate`` (b).

    Example:
      >>> import bbvi
      >>> bbvi.Gamma((3,)).reparameterized
      True

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    reparameterized: ClassVar[bool] = True

    @property
    def domain(self) -> Support:
        return supports.positive

    def init(self, key: Key) -> PyTree:
        mean = jnp.exp(_spread(key, self.shape))
        return self.params_at(mean, 0.5)

    def params_at(self, z: Array, scale: float) -> PyTree:
        mean = jnp.asarray(z, _floating())
        variance = jnp.full_like(mean, scale) ** 2
        return {
            "log_concentration": jnp.log(mean**2 / variance),
            "log_rate": jnp.log(mean / variance),
        }

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf - jnp.log(dispersion), params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Gamma(jnp.exp(params["log_concentration"]), jnp.exp(params["log_rate"]))


@dataclasses.dataclass(frozen=True)
class Beta(Family):
    r"""Independent betas, :math:`q(z) \propto z^{a-1} (1-z)^{b-1}`; implicit reparameterization.

    Args:
      shape: shape of the latent. Parameters are ``log_alpha`` (a) and ``log_beta`` (b).

    Example:
      >>> import bbvi
      >>> bbvi.Beta(()).reparameterized
      True

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    reparameterized: ClassVar[bool] = True

    @property
    def domain(self) -> Support:
        return supports.unit_interval

    def init(self, key: Key) -> PyTree:
        spread = _spread(key, (2, *self.shape))
        return {"log_alpha": jnp.log(2.0) + spread[0], "log_beta": jnp.log(2.0) + spread[1]}

    def params_at(self, z: Array, scale: float) -> PyTree:
        mean = jnp.asarray(z, _floating())
        total = jnp.maximum(mean * (1 - mean) / scale**2 - 1, 0.1)  # a + b by moments
        return {"log_alpha": jnp.log(mean * total), "log_beta": jnp.log((1 - mean) * total)}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf - jnp.log(dispersion), params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Beta(jnp.exp(params["log_alpha"]), jnp.exp(params["log_beta"]))


@dataclasses.dataclass(frozen=True)
class Dirichlet(Family):
    r"""Independent Dirichlets over the last axis; implicit reparameterization.

    Args:
      shape: shape of the latent; the last axis is the simplex, at least 2 long.

    Raises:
      ValueError: there is no last axis of length at least 2.

    Example:
      >>> import bbvi
      >>> bbvi.Dirichlet((5, 3)).shape
      (5, 3)

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    shape: tuple[int, ...] = (2,)
    reparameterized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        supports.simplex.check_shape(self.shape, "Dirichlet")

    @property
    def event_ndims(self) -> int:
        return 1

    @property
    def domain(self) -> Support:
        return supports.simplex

    def init(self, key: Key) -> PyTree:
        return {"log_concentration": jnp.log(2.0) + _spread(key, self.shape)}

    def params_at(self, z: Array, scale: float) -> PyTree:
        mean = jnp.asarray(z, _floating())
        mean_variance = jnp.mean(mean * (1 - mean), axis=-1, keepdims=True)
        total = jnp.maximum(mean_variance / scale**2 - 1, 0.1)
        return {"log_concentration": jnp.log(mean * total)}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf - jnp.log(dispersion), params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Dirichlet(jnp.exp(params["log_concentration"]))


@dataclasses.dataclass(frozen=True)
class VonMises(Family):
    r"""Independent von Mises distributions on the circle, angles in :math:`(-\pi, \pi]`.

    Args:
      shape: shape of the latent. Parameters are ``loc`` and ``log_concentration``.

    Example:
      >>> import bbvi
      >>> bbvi.VonMises(()).reparameterized
      True

    References:
      Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients.
    """

    reparameterized: ClassVar[bool] = True

    def init(self, key: Key) -> PyTree:
        return self.params_at(_spread(key, self.shape), 1.0)

    def params_at(self, z: Array, scale: float) -> PyTree:
        loc = jnp.asarray(z, _floating())
        return {"loc": loc, "log_concentration": jnp.full_like(loc, -2 * jnp.log(scale))}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        shifted = params["log_concentration"] - jnp.log(dispersion)
        return {**params, "log_concentration": shifted}

    def distribution(self, params: PyTree) -> Any:
        return distrax.VonMises(params["loc"], jnp.exp(params["log_concentration"]))


@dataclasses.dataclass(frozen=True)
class Bernoulli(Family):
    r"""Independent Bernoullis, draws 0 or 1 (int32); not reparameterizable.

    Args:
      shape: shape of the latent. Parameters are the ``logits``.

    Example:
      >>> import bbvi
      >>> bbvi.Bernoulli((3, 4)).reparameterized
      False

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    num_values: ClassVar[int | None] = 2

    def init(self, key: Key) -> PyTree:
        return {"logits": _spread(key, self.shape)}

    def params_at(self, z: Array, scale: float) -> PyTree:
        probs = jnp.where(jnp.asarray(z) > 0, 1 - scale / 2, scale / 2)
        return {"logits": jnp.asarray(jnp.log(probs) - jnp.log1p(-probs), _floating())}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf / dispersion, params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Bernoulli(params["logits"], dtype=jnp.int32)

    def base_noise(self, key: Key) -> Array:
        return draw_flat(jax.random.uniform, key, self.shape)

    @property
    def noise_size(self) -> int:
        return size(self.shape)

    def noise_from_uniform(self, u: Array) -> Array:
        return u.reshape(self.shape)

    def sample(self, noise: Array, params: PyTree) -> Array:
        return (noise < jax.nn.sigmoid(params["logits"])).astype(jnp.int32)

    def log_probs(self, params: PyTree, z: Array) -> Array:
        # Not through distrax, which takes two softplus: 15 % of a step of 400 x 10 latents.
        return z * params["logits"] - jax.nn.softplus(params["logits"])


@dataclasses.dataclass(frozen=True)
class Categorical(Family):
    r"""Independent categoricals, draws 0..K-1 (int32); not reparameterizable.

    Args:
      num_categories: K, at least 2.
      shape: shape of the latent. Parameters are the ``logits`` of shape ``(*shape, K)``.

    Raises:
      ValueError: fewer than two categories.

    Example:
      >>> import bbvi
      >>> bbvi.Categorical(3, (1000,))
      Categorical(num_categories=3, shape=(1000,))

    References:
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    num_categories: int = dataclasses.field(kw_only=True)

    def __init__(self, num_categories: int, shape: tuple[int, ...] = ()):
        object.__setattr__(self, "num_categories", num_categories)
        object.__setattr__(self, "shape", shape)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.num_categories, int) or self.num_categories < 2:
            raise ValueError(
                f"Categorical needs num_categories >= 2 as an int, got {self.num_categories!r}."
            )

    @property
    def num_values(self) -> int:  # type: ignore[override]
        return self.num_categories

    def __repr__(self) -> str:
        return f"Categorical(num_categories={self.num_categories}, shape={self.shape})"

    def init(self, key: Key) -> PyTree:
        return {"logits": _spread(key, (*self.shape, self.num_categories))}

    def params_at(self, z: Array, scale: float) -> PyTree:
        rest = scale / self.num_categories
        probs = rest + (1 - scale) * jax.nn.one_hot(z, self.num_categories, dtype=_floating())
        return {"logits": jnp.log(probs)}

    def overdispersed(self, params: PyTree, dispersion: float) -> PyTree:
        return jax.tree.map(lambda leaf: leaf / dispersion, params)

    def distribution(self, params: PyTree) -> Any:
        return distrax.Categorical(params["logits"], dtype=jnp.int32)

    def base_noise(self, key: Key) -> Array:
        return draw_flat(jax.random.uniform, key, self.shape)

    @property
    def noise_size(self) -> int:
        return size(self.shape)

    def noise_from_uniform(self, u: Array) -> Array:
        return u.reshape(self.shape)

    def sample(self, noise: Array, params: PyTree) -> Array:
        # Inverse transform: count the thresholds below u; cheaper than one Gumbel per category.
        cumulative = jnp.cumsum(jax.nn.softmax(params["logits"]), axis=-1)[..., :-1]
        return jnp.sum(noise[..., None] >= cumulative, axis=-1, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True, init=False)
class OneHotCategorical(Categorical):
    r"""Independent categoricals whose draws are one-hot vectors over a last axis.

    The form for estimators that evaluate ``log_joint`` between the values, on the simplex
    (``Relax``, ``GumbelSoftmax``, ``StraightThrough``, ...): write it as a differentiable function
    of the vectors.

    Args:
      num_categories: K, at least 2.
      shape: shape of the latent without its last axis, which is K long: a draw is
        ``(*shape, K)`` of floats. Parameters are the ``logits`` of that shape.

    Raises:
      ValueError: fewer than two categories.

    Example:
      >>> import bbvi, jax
      >>> guide = bbvi.MeanField({"c": bbvi.OneHotCategorical(3, (4,))})
      >>> phi = guide.init(jax.random.key(0), None)
      >>> guide.sample(guide.base_noise(jax.random.key(1)), phi, None)["c"].sum(axis=1).tolist()
      [1.0, 1.0, 1.0, 1.0]

    References:
      Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", (*self.shape, self.num_categories))

    def __repr__(self) -> str:
        return f"OneHotCategorical(num_categories={self.num_categories}, shape={self.shape[:-1]})"

    @property
    def event_ndims(self) -> int:
        return 1

    def init(self, key: Key) -> PyTree:
        return {"logits": _spread(key, self.shape)}

    def params_at(self, z: Array, scale: float) -> PyTree:
        z = jnp.asarray(z, _floating())
        return {"logits": jnp.log(scale / self.num_categories + (1 - scale) * z)}

    def base_noise(self, key: Key) -> Array:
        return draw_flat(jax.random.uniform, key, self.shape[:-1])

    @property
    def noise_size(self) -> int:
        return size(self.shape[:-1])

    def noise_from_uniform(self, u: Array) -> Array:
        return u.reshape(self.shape[:-1])

    def sample(self, noise: Array, params: PyTree) -> Array:
        index = super().sample(noise, params)
        return jax.nn.one_hot(index, self.num_categories, dtype=_floating())

    def log_probs(self, params: PyTree, z: Array) -> Array:
        return jnp.sum(z * jax.nn.log_softmax(params["logits"]), axis=-1)
