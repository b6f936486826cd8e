r"""Where a latent lives, and the bijector that reaches it from unconstrained reals.

A guide works on reals :math:`u`; the model wants, say, a covariance matrix. A :class:`Support` maps
one to the other, :math:`z = T(u)`, with the log-determinant that a density needs::

    log q(z) = log q(u) - log |det dz/du|.

The supports are ``real``, ``positive``, ``greater_than(lower)``, ``less_than(upper)``,
``interval(lower, upper)``, ``unit_interval``, ``simplex``, ``ordered``, ``positive_definite``,
``cholesky_factor`` and ``correlation_cholesky``. Where z has fewer degrees of freedom than entries,
its density is with respect to Lebesgue measure on independent entries: all but the last of a
simplex, the lower triangle of a positive-definite matrix, the strictly lower triangle of the
Cholesky factor of a correlation matrix. Dirichlet, Wishart and LKJ densities use the same measures.

Example:
  >>> import jax.numpy as jnp
  >>> from bbvi import supports
  >>> supports.simplex.unconstrained_shape((5, 3))
  (5, 2)
  >>> z, log_det = supports.positive.constrain_with_log_det(jnp.zeros(3))
  >>> z.tolist(), float(log_det)
  ([1.0, 1.0, 1.0], 0.0)

References:
  Stan Development Team, Stan Reference Manual, chapter "Constraint Transforms".
  Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), Automatic Differentiation Variational
  Inference.
"""

from bbvi.supports.base import Support
from bbvi.supports.matrices import cholesky_factor, correlation_cholesky, positive_definite
from bbvi.supports.scalars import greater_than, interval, less_than, positive, real, unit_interval
from bbvi.supports.vectors import ordered, simplex

__all__ = [
    "Support",
    "cholesky_factor",
    "correlation_cholesky",
    "greater_than",
    "interval",
    "less_than",
    "ordered",
    "positive",
    "positive_definite",
    "real",
    "simplex",
    "unit_interval",
]
