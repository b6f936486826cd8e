"""Amortized guides: one network gives the parameters of every datum's latents."""

from __future__ import annotations

import dataclasses
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bbvi._tree import is_floating, shapes
from bbvi._types import Data, Key, PyTree
from bbvi.baselines import check_network, check_variables
from bbvi.guides.base import size
from bbvi.guides.local import LocalGuide
from bbvi.guides.mean_field import MeanField, MeanFieldParams


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Amortized(LocalGuide):
    r"""Independent families whose parameters a network computes from the data.

    .. math::
      q(z \mid x; \phi) = \prod_i q_i\big(z_i; \lambda_i\big), \qquad
      \lambda = \mathrm{network}_\phi(x)

    What is trained is :math:`\phi`, the network's parameters, by any estimator: gradients at the
    network's output pass on to them by the chain rule. Shapes of sites begin with N, the number of
    rows of the data. For data of another size (a test set, say) take ``guide.resized(n)``: the same
    trained parameters fit it.

    Args:
      sites: pytree of families, as for ``MeanField``.
      network: ``bbvi.networks.MLP`` or ``Convolutional``, which are told the size of their output,
        or any hashable object with ``init(key, x) -> params`` and ``apply(params, x)``, such as a
        ``flax.linen`` module. It gets the data whole and returns the structure of ``sites`` with,
        in the place of each family, its parameters: ``{"logits": [*shape]}`` for
        ``Bernoulli(shape)``, ``{"loc": [*shape], "log_scale": [*shape]}`` for ``Normal(shape)``; or
        one array ``[N, K]`` with all parameters of a row side by side, in the order of the leaves
        of that structure (names sorted). If it holds a single array in all, as one Bernoulli site
        does, the network may return that array itself.

    Raises:
      TypeError: a leaf of ``sites`` is not a family, or ``network`` not a hashable network.
      ValueError: the network is to be told the size of its output, but sites have no common N.
        From ``init``: the network carries state besides its parameters (batch statistics), which no
        estimator here would update. When it is used: the network's output does not fit the sites.

    Example:
      >>> import bbvi, jax, jax.numpy as jnp
      >>> def log_joint(x, z):  # z_n ~ N(0, 1), x_n ~ N(z_n, 1): E[z_n | x_n] = x_n / 2
      ...     return -0.5 * jnp.sum(z["z"] ** 2) - 0.5 * jnp.sum((x - z["z"]) ** 2)
      >>> guide = bbvi.Amortized({"z": bbvi.Normal((4,))}, bbvi.networks.MLP(()))
      >>> x = jnp.array([-2.0, -1.0, 1.0, 3.0])
      >>> result = bbvi.fit(log_joint, guide, x, key=jax.random.key(0), progress=False)
      >>> location, log_scale = result.params.guide["params"]["head"]["kernel"][0]
      >>> bool(abs(location - 0.5) < 0.01)
      True

    References:
      Dayan, Hinton, Neal and Zemel (1995), The Helmholtz Machine; Kingma and Welling (2014),
      Auto-Encoding Variational Bayes; Mnih and Gregor (2014), Neural Variational Inference and
      Learning in Belief Networks.
    """

    network: Any

    def __init__(self, sites: PyTree, network: Any):
        super().__init__(sites)
        check_network(network)
        if hasattr(network, "with_output"):
            network = network.with_output(self._output_size())
        object.__setattr__(self, "network", network)

    def __repr__(self) -> str:
        sites = jax.tree.unflatten(self.treedef, self.families)
        return f"{type(self).__name__}({sites!r}, {self.network!r})"

    def init(self, key: Key, x: Data) -> PyTree:
        start_key = jax.random.fold_in(key, 1)
        params = self.network.init(key, x)
        check_variables(params, "Amortized")
        if hasattr(self.network, "with_output"):
            start, _ = ravel_pytree(self._start(self.resized(1).mean_field, start_key))
            params = self.network.starting_at(params, start)
        return params

    def free_params(self, params: PyTree, x: Data) -> MeanFieldParams:
        """The network's output at the data, as parameters of ``mean_field``."""
        try:
            output = self.network.apply(params, x)
        except Exception as error:
            error.add_note(
                "Amortized calls network.apply(params, x) and nothing else: a network that draws "
                "random numbers (dropout) or updates statistics must be told not to, as with "
                "deterministic=True."
            )
            raise
        expected = self._shapes()
        wanted: list[Any] = jax.tree.leaves(expected)
        treedef: Any = jax.tree.structure(expected)
        by_site, row_shape = output, self._row_shape()
        if jax.tree_util.all_leaves([output]):
            if output.shape == row_shape:
                by_site = jax.tree.unflatten(treedef, _columns(output, wanted))
            elif len(wanted) == 1:
                by_site = jax.tree.unflatten(treedef, [output])
        leaves: list[Any] = jax.tree.leaves(by_site)
        if (
            treedef != jax.tree.structure(by_site)
            or [leaf.shape for leaf in leaves] != [leaf.shape for leaf in wanted]
            or not all(map(is_floating, leaves))
        ):
            side_by_side = f", or one array {list(row_shape)} of them by row" if row_shape else ""
            raise ValueError(
                f"the network of Amortized returned {shapes(output, 'output')}, but its sites need "
                f"{shapes(expected, 'output')}: the structure of sites with the parameters of each "
                f"family in its place{side_by_side}. Shapes of sites include the batch axis; for n "
                "rows of data take guide.resized(n)."
            )
        return self.mean_field.from_site_params(
            dict(zip(self.named_families, self.treedef.flatten_up_to(by_site), strict=True))
        )

    def site_params(self, params: PyTree) -> dict[str, PyTree]:
        """The network's parameters for every site, since all of them serve it.

        So a coefficient that ``ScoreFunction`` learns for a site is the best for the gradient of
        the whole network, and the same for all sites of that estimator.
        """
        return dict.fromkeys(self.named_families, params)

    def _start(self, mean_field: MeanField, key: Key) -> PyTree:
        """Where a mean field of these sites starts, in the structure of the sites."""
        return self.pack(mean_field.site_params(mean_field.init(key, None)))

    def _shapes(self) -> PyTree:
        """Shapes of the parameters of the families, in the structure of the sites."""
        return jax.eval_shape(lambda: self._start(self.mean_field, jax.random.key(0)))

    def _row_shape(self) -> tuple[int, int] | None:
        """``[N, K]``: rows, and parameters of one; None where sites have no rows in common."""
        # An axis that is drawn jointly, as the only one of an ordered vector is, holds no rows.
        rows = {f.shape[0] if len(f.shape) > f.event_ndims else None for f in self.families}
        if len(rows) > 1 or None in rows:
            return None
        num_rows = self.families[0].shape[0]
        return num_rows, sum(leaf.size for leaf in jax.tree.leaves(self._shapes())) // num_rows

    def _output_size(self) -> int:
        """How many parameters a row has, for a network that is told."""
        row_shape = self._row_shape()
        if row_shape is None:
            raise ValueError(
                "a network that returns parameters row by row needs sites whose shapes begin with "
                "the same number of rows, that of the data, got "
                f"{ {name: family.shape for name, family in self.named_families.items()} }."
            )
        return row_shape[1]


def _columns(output: Array, leaves: list[Any]) -> list[Array]:
    """Arrays like ``leaves`` from the columns of one array."""
    ends = list(accumulate(size(leaf.shape[1:]) for leaf in leaves))
    parts = jnp.split(output, ends[:-1], axis=1)
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
