"""Log joints with declared terms, and the one place where terms of the data are scaled by N/B."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from bbvi._tree import is_floating, named_leaves
from bbvi._types import Data, Latents, LogJoint, PyTree
from bbvi.dependence.reads import latents_read
from bbvi.dependence.row_reads import batch_of
from bbvi.dependence.rows import data_and_rest
from bbvi.dependence.split import Factors, additive_factors

Scopes = Mapping[str, tuple[str, ...]] | tuple[tuple[str, tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True)
class FactorizedLogJoint:
    r"""A log joint given as its terms: itself a ``log_joint`` that ``fit`` and ``Problem`` take.

    .. math:: \log p(x, z) = \sum_{k \in \text{data}} \frac{N}{B} \sum_j F_{kj}(x, z)
              + \sum_{k \notin \text{data}} \sum_j F_{kj}(x, z)

    The terms are named, so that messages and ``explain`` speak of them, and need not be summed:
    an entry of an array is a factor of its own. Each term is split further where it is a sum
    within. On a batch of B out of N data, drawn uniformly, data terms are scaled by N/B, which
    makes the log joint and its gradients unbiased for those of all data.

    Hashable and compared by value, with the function of the terms compared by identity.

    Args:
      terms: ``(x, z) -> {name: array}`` or ``(x, z, theta) -> {name: array}``, arrays of any shape.
      scopes: for some or all terms the names of the latents they read. What a term is found to
        read must be among them; to name more does no harm.
      data_terms: names of the terms with entries for each datum, whose number grows with the data:
        likelihoods, and priors of latents with one row for each datum.
      num_data: N, the number of data x is drawn from.
      batch: names of the leaves of x that hold one row for each of B data; all that have axes by
        default.
      is_per_batch: divide the whole by N/B, so that the data terms of the batch count once.

    Raises:
      TypeError: ``terms`` is no function.
      ValueError: one of ``data_terms`` and ``num_data`` is missing. On use: there is no term or
        latent of a name, a term reads a latent outside its scope, or B is not clear.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> from jax.scipy.stats import norm
      >>> def terms(x, z):
      ...     return {"prior": norm.logpdf(z["mu"]), "likelihood": norm.logpdf(x, z["mu"])}
      >>> log_joint = bbvi.FactorizedLogJoint(
      ...     terms, scopes={"prior": ("mu",)}, data_terms=("likelihood",), num_data=1000
      ... )
      >>> round(float(log_joint(jnp.zeros(10), {"mu": 0.0})), 1)  # 1 + 1000 log densities
      -919.9

    References:
      Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational Inference.
      Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    terms: Callable[..., Mapping[str, Array]]
    _: dataclasses.KW_ONLY
    scopes: Scopes = ()
    data_terms: tuple[str, ...] = ()
    num_data: int | None = None
    batch: tuple[str, ...] | None = None
    is_per_batch: bool = False

    def __post_init__(self) -> None:
        if not callable(self.terms):
            raise TypeError(
                f"terms must be one function (x, z) -> {{name: array}}, got {self.terms!r}."
            )
        scopes = dict(self.scopes)
        for name, names in {"data_terms": self.data_terms, "batch": self.batch, **scopes}.items():
            if isinstance(names, str):
                raise TypeError(f"{name} must be a tuple of names, got {names!r}: write a comma.")
        is_count = isinstance(self.num_data, int) and self.num_data >= 1
        if bool(self.data_terms) != is_count:
            raise ValueError(
                "data terms are scaled by num_data / B: give data_terms, as a tuple of names, and "
                f"num_data, as an int >= 1, or neither; got {self.data_terms!r} and "
                f"{self.num_data!r}."
            )
        # As tuples, so that it is hashable.
        object.__setattr__(self, "scopes", tuple((k, tuple(v)) for k, v in scopes.items()))
        object.__setattr__(self, "data_terms", tuple(self.data_terms))
        object.__setattr__(self, "batch", None if self.batch is None else tuple(self.batch))

    def __call__(self, x: Data, z: Latents, *model_args: PyTree) -> Array:
        sums = self._sums(x, z, *model_args)
        return sum(sums.values(), jnp.zeros((), jnp.result_type(*sums.values())))

    def _arrays(self, x: Data, z: Latents, *model_args: PyTree) -> dict[str, Array]:
        arrays = self.terms(x, z, *model_args)
        if not isinstance(arrays, Mapping) or not arrays:
            raise TypeError(f"terms must return a dict of arrays by name, got {arrays!r}.")
        for name in (*self.data_terms, *dict(self.scopes)):
            if name not in arrays:
                raise ValueError(f"there is no term '{name}'; the terms are {list(arrays)}.")
        arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            if not is_floating(array):
                raise TypeError(f"term '{name}' must hold real numbers, got {array.dtype}.")
        return arrays

    def _sums(self, x: Data, z: Latents, *model_args: PyTree) -> dict[str, Array]:
        """The sum of each term, those of the data scaled."""
        sums = {name: jnp.sum(a) for name, a in self._arrays(x, z, *model_args).items()}
        if self.num_data is not None:
            scale = self.num_data / batch_of(x, self.batch).size
            scaled = set(sums) - set(self.data_terms) if self.is_per_batch else self.data_terms
            factor = 1 / scale if self.is_per_batch else scale
            sums |= {name: factor * sums[name] for name in scaled}
        return sums

    def declared_factors(self, x: Data, z: Latents, *model_args: PyTree) -> Factors:
        """Factor arrays term by term, labelled with the term; what ``additive_factors`` gives."""
        self.check_scopes(x, z, *model_args)
        factors = Factors([], [])
        for name in jax.eval_shape(self._sums, x, z, *model_args):
            arrays, labels = additive_factors(
                lambda *args, name=name: self._sums(*args)[name], x, z, *model_args
            )
            factors.arrays.extend(arrays)
            factors.labels.extend(f"{name}: {label}" for label in labels)
        return factors

    def check_scopes(self, x: Data, z: Latents, *model_args: PyTree) -> None:
        """Raise unless each term reads no other latents than its declared scope says.

        Only shapes are used; they may stand in place of arrays.

        Raises:
          ValueError: a term reads a latent that its scope lacks, or a scope names an unknown one.
        """
        if not self.scopes:
            return
        latents, scopes = named_leaves(z, "latents"), dict(self.scopes)
        for term, scope in scopes.items():
            unknown = [latent for latent in scope if latent not in latents]
            if unknown:
                raise ValueError(
                    f"the scope of term '{term}' names {unknown}, which there are not; the latents "
                    f"are {list(latents)}."
                )
        for term, read in latents_read(self._arrays, x, z, *model_args).items():
            for latent in read:
                if latent not in scopes.get(term, latents):
                    raise ValueError(
                        f"term '{term}' reads latent '{latent}', which its scope {scopes[term]} "
                        "lacks: gradients made without it would silently be biased. Add it to the "
                        "scope."
                    )


def scale_data_terms(
    log_joint: LogJoint, *, num_data: int, batch: tuple[str, ...] | None = None
) -> FactorizedLogJoint:
    r"""A plain log joint for batches of the data: its data terms are found, and scaled by N/B.

    .. math:: \frac{N}{B} \sum_{n=1}^B d(x_n, z_n, z) + r(z)

    where :math:`\log p(x, z) = \sum_n d(x_n, z_n, z) + r(z)` is what ``log_joint`` computes on x of
    any number of rows. Over batches drawn uniformly its mean is the log joint of all N data.

    - Data terms are those that read a row of x: a likelihood, its normaliser too, and what is
      looked up by a row, such as ``z["effect"][x["county"]]`` or, for latents of which there is one
      for each of the N data, ``z["assignment"][x["index"]]``.
    - A latent with one row for each row of x, drawn by an amortized guide, is told by being read
      beside the rows; its prior belongs to the data.
    - All else is prior and stays as it is, such as a sum over all rows of ``z["effect"]``.

    Args:
      log_joint: ``(x, z) -> []`` or ``(x, z, theta) -> []``, of x with any number of rows.
      num_data: N.
      batch: names of the leaves of x that hold one row for each datum; all that have axes by
        default.

    Returns:
      A log joint of the terms ``"data"`` and ``"rest"``.

    Raises:
      ValueError: on use, if ``log_joint`` is not found to be such a sum. Declare its terms then:
        ``FactorizedLogJoint``.

    Example:
      >>> import bbvi, jax.numpy as jnp
      >>> from jax.scipy.stats import norm
      >>> def log_joint(x, z):
      ...     return norm.logpdf(z["mu"]) + norm.logpdf(x, z["mu"]).sum()
      >>> scaled = bbvi.scale_data_terms(log_joint, num_data=1000)
      >>> round(float(scaled(jnp.zeros(10), {"mu": 0.0})), 1)  # 1 + 1000 log densities
      -919.9

    References:
      Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational Inference.
    """
    if not callable(log_joint):
        raise TypeError(f"log_joint must be a function, got {log_joint!r}.")
    if isinstance(batch, str):
        raise TypeError(f"batch must be a tuple of names, got {batch!r}: write a comma.")
    names = None if batch is None else tuple(batch)
    return FactorizedLogJoint(
        _DataAndRest(log_joint, names), data_terms=("data",), num_data=num_data, batch=names
    )


@dataclasses.dataclass(frozen=True)
class _DataAndRest:
    """The two terms of a plain log joint."""

    log_joint: LogJoint
    batch: tuple[str, ...] | None

    def __call__(self, x: Data, z: Latents, *model_args: PyTree) -> dict[str, Array]:
        return data_and_rest(self.log_joint, self.batch, x, z, *model_args)
