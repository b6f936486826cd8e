"""A normalizing flow over one unconstrained vector: a full-rank Gaussian bent by couplings."""

from __future__ import annotations

import dataclasses
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bbvi._types import Data, Latents, PyTree
from bbvi.guides.gaussian import FullRank, VectorGuide, standard_normal_log_prob

RANGE = 4.0  # splines bend standard normals within it, and are straight beyond
MAX_LOG_SCALE = 2.0  # of one coupling: keeps a stray step from overflowing


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class NormalizingFlow(VectorGuide):
    r"""A normalizing flow over all the latents, flattened and unconstrained.

    .. math::
      z = T(\mathrm{loc} + L \, c_n \circ \dots \circ c_1 \circ s(\epsilon)), \qquad
      \epsilon \sim N(0, I)

    The splines s bend every entry by itself. A coupling c keeps half of the entries, chosen at
    random, and shifts and scales the other half by amounts that a small network computes from
    those it keeps; two in a row move them all. Splines and couplings start as the identity, so
    that a flow made from a Gaussian starts as that Gaussian, and they work on standardized
    entries, so that units do not matter. In one dimension there is the spline alone.

    Draws and log densities cost one network of ``num_units`` units per coupling. The entropy has no
    closed form: minus log q at the draws stands for it.

    Args:
      sites: pytree of ``bbvi.Normal`` / ``bbvi.LogNormal`` sites (any support).
      num_layers: number of couplings.
      num_units: hidden units of a coupling's network.
      num_bins: pieces of a spline.

    Raises:
      TypeError: a site is not normal (it has no unconstrained location and scale).
      ValueError: a number that is not an int of at least 1.

    Example:
      >>> import bbvi, jax
      >>> sites = {"w": bbvi.Normal((3,)), "tau": bbvi.LogNormal(())}
      >>> gaussian, flow = bbvi.FullRank(sites), bbvi.NormalizingFlow(sites)
      >>> fitted = gaussian.init(jax.random.key(0), None)
      >>> phi, noise = flow.from_full_rank(fitted), flow.base_noise(jax.random.key(1))
      >>> apart = flow.sample(noise, phi, None)["w"] - gaussian.sample(noise, fitted, None)["w"]
      >>> bool(abs(apart).max() < 1e-6)
      True

    References:
      Rezende and Mohamed (2015), Variational Inference with Normalizing Flows; Dinh, Sohl-Dickstein
      and Bengio (2017), Density Estimation Using Real NVP, for the couplings; Durkan, Bekasov,
      Murray and Papamakarios (2019), Neural Spline Flows; Agrawal, Sheldon and Domke (2020),
      Advances in Black-Box VI: Normalizing Flows, Importance Weighting, and Optimization.
    """

    num_layers: int
    num_units: int
    num_bins: int

    def __init__(self, sites: PyTree, num_layers: int = 6, num_units: int = 32, num_bins: int = 8):
        super().__init__(sites)
        numbers = {"num_layers": num_layers, "num_units": num_units, "num_bins": num_bins}
        for name, value in numbers.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"NormalizingFlow {name} must be an int of at least 1, got {value!r}."
                )
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return (
            f"{super().__repr__()[:-1]}, num_layers={self.num_layers}, "
            f"num_units={self.num_units}, num_bins={self.num_bins})"
        )

    @property
    def gaussian(self) -> FullRank:
        """The Gaussian that the flow starts from, and whose factor its last map is."""
        return FullRank(jax.tree.unflatten(self.treedef, self.families))

    def from_full_rank(self, params: PyTree) -> PyTree:
        """Parameters with which the flow is the Gaussian of these parameters of ``FullRank``."""
        size = params["loc"].size
        return {
            "gaussian": params,
            "spline": jnp.zeros((size, 3 * self.num_bins + 1), params["loc"].dtype),
            "couplings": self._identity(params["loc"].dtype) if size > 1 else {},
        }

    def from_mean_field(self, loc: Array, log_scale: Array) -> PyTree:
        return self.from_full_rank(self.gaussian.from_mean_field(loc, log_scale))

    def _identity(self, dtype: Any) -> dict[str, Array]:
        """Couplings that change nothing: heads of zero above hidden layers that differ."""
        kept = self.layout.size // 2
        outputs = 2 * (self.layout.size - kept)
        # Always the same: what hidden layers start from does not matter while heads are zero.
        hidden = np.random.default_rng(0).normal(size=(self.num_layers, self.num_units, kept))
        return {
            "hidden": jnp.asarray(hidden / np.sqrt(kept), dtype),
            "hidden_bias": jnp.zeros((self.num_layers, self.num_units), dtype),
            "head": jnp.zeros((self.num_layers, outputs, self.num_units), dtype),
            "head_bias": jnp.zeros((self.num_layers, outputs), dtype),
        }

    def _orders(self) -> tuple[np.ndarray, np.ndarray]:
        """For each coupling the entries it keeps, then those it moves; and the way back."""
        generator, size = np.random.default_rng(0), self.layout.size
        orders = [generator.permutation(size)]
        while len(orders) < self.num_layers:
            is_second = len(orders) % 2
            # The second of two keeps what the first moved.
            orders.append(orders[-1][::-1] if is_second else generator.permutation(size))
        found = np.stack(orders)
        return found, np.argsort(found, axis=1)

    def _amounts(self, layer: dict[str, Array], kept: Array) -> tuple[Array, Array]:
        """By how much a coupling shifts the entries it moves, and the logs of how it scales."""
        hidden = jnp.tanh(layer["hidden"] @ kept + layer["hidden_bias"])
        shift, raw = jnp.split(layer["head"] @ hidden + layer["head_bias"], 2)
        return shift, MAX_LOG_SCALE * jnp.tanh(raw / MAX_LOG_SCALE)

    def _couple(self, couplings: PyTree, v: Array, *, inverse: bool) -> tuple[Array, Array]:
        """All couplings in turn, or back, and the log volume of the map."""
        if not couplings:
            return v, jnp.zeros((), v.dtype)
        num_kept = self.layout.size // 2

        def one(carry: tuple[Array, Array], layer: Any) -> tuple[tuple[Array, Array], None]:
            v, log_det = carry
            weights, order, back = layer
            kept, moved = jnp.split(v[order], [num_kept])
            shift, log_scale = self._amounts(weights, kept)
            if inverse:
                moved, log_scale = (moved - shift) * jnp.exp(-log_scale), -log_scale
            else:
                moved = moved * jnp.exp(log_scale) + shift
            return (jnp.concatenate([kept, moved])[back], log_det + jnp.sum(log_scale)), None

        layers = (couplings, *self._orders())
        start = (v, jnp.zeros((), v.dtype))
        return jax.lax.scan(one, start, layers, reverse=inverse)[0]

    def _spline(self, params: Array) -> distrax.Bijector:
        return distrax.RationalQuadraticSpline(params, -RANGE, RANGE)

    def _forward(self, noise: Array, params: PyTree) -> tuple[Array, Array]:
        """The unconstrained vector and the log volume of the map to it."""
        v, by_spline = self._spline(params["spline"]).forward_and_log_det(noise)
        v, by_couplings = self._couple(params["couplings"], v, inverse=False)
        log_det = jnp.sum(by_spline) + by_couplings + jnp.sum(params["gaussian"]["log_diagonal"])
        return self.gaussian.location(v, params["gaussian"]), log_det

    def location(self, noise: Array, params: PyTree) -> Array:
        return self._forward(noise, params)[0]

    def vector_log_prob(self, params: PyTree, u: Array) -> Array:
        v = self.gaussian.noise_at(params["gaussian"], u)
        v, by_couplings = self._couple(params["couplings"], v, inverse=True)
        noise, by_spline = self._spline(params["spline"]).inverse_and_log_det(v)
        log_det = jnp.sum(by_spline) + by_couplings - jnp.sum(params["gaussian"]["log_diagonal"])
        return standard_normal_log_prob(noise) + log_det

    def sample_and_log_prob(self, noise: Array, params: PyTree, x: Data) -> tuple[Latents, Array]:
        u, log_det = self._forward(noise, params)
        values, volume = self.layout.constrain(u)
        return self.pack(values), standard_normal_log_prob(noise) - log_det - volume

    def local_gradient(self, params: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        # The Gaussian's own: what it is relative to, the bent normals, has about unit scale.
        gradient, _ = self.gaussian.local_gradient(params["gaussian"], grads["gaussian"])
        return gradient, {name: grads[name] for name in ("spline", "couplings")}

    def local_step(self, params: PyTree, step: PyTree, rest: PyTree) -> PyTree:
        return {"gaussian": self.gaussian.local_step(params["gaussian"], step, ()), **rest}
