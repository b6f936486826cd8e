"""The problems of the speed suite: one log joint per problem, shared by all implementations.

Implementations that know no named, constrained latents (the hand-written loops and BlackJAX) work
on one flat unconstrained vector ``u``; ``Problem.unpack`` maps it to the latents of ``log_joint``
and the log-determinant of that map.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import cauchy, norm

LEARNING_RATE = 1e-2


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing to fit.

    Attributes:
      name: how the command line and the tables call it.
      kind: model: ``logistic``, ``eight_schools`` or ``gaussian``.
      dim: number of unconstrained latents.
      steps: short and long run; their difference gives the time per step.
      data: makes the data, a dict of arrays.
      num_samples: draws per step.
      family: ``mean_field`` or ``full_rank``.
      estimator: ``pathwise`` or ``score_function`` (with the leave-one-out baseline).
      batch: rows per step, or None for all of them.
      restarts: independent fits run as one.
    """

    name: str
    kind: str
    dim: int
    steps: tuple[int, int]
    data: Callable[[], dict[str, jax.Array]]
    num_samples: int = 1
    family: str = "mean_field"
    estimator: str = "pathwise"
    batch: int | None = None
    restarts: int = 1

    @property
    def log_joint(self) -> Callable[[Any, Any], jax.Array]:
        return LOG_JOINTS[self.kind]

    def unpack(self, u: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        """Latents at the unconstrained point ``u`` and the log-determinant of the map."""
        if self.kind == "eight_schools":
            return {"theta": u[:8], "mu": u[8], "tau": jnp.exp(u[9])}, u[9]
        return {"w": u}, jnp.zeros(())

    def target(self, x: Any, u: jax.Array) -> jax.Array:
        """Log density over the unconstrained vector."""
        z, log_det = self.unpack(u)
        return self.log_joint(x, z) + log_det


def logistic(x, z):
    """Logistic regression with standard normal weights; ``weight`` scales the rows read."""
    log_likelihood = jax.nn.log_sigmoid(x["signs"] * (x["features"] @ z["w"])).sum()
    return norm.logpdf(z["w"]).sum() + x.get("weight", 1.0) * log_likelihood


def eight_schools(x, z):
    """Eight schools, non-centered, with a half-Cauchy scale."""
    theta = z["mu"] + z["tau"] * z["theta"]
    log_prior = norm.logpdf(z["theta"]).sum() + norm.logpdf(z["mu"], 0.0, 5.0)
    log_prior = log_prior + cauchy.logpdf(z["tau"], 0.0, 5.0) + np.log(2.0)
    return log_prior + norm.logpdf(x["y"], theta, x["sigma"]).sum()


def gaussian(x, z):
    """A correlated Gaussian whose precision has the Cholesky factor ``factor``."""
    return -0.5 * jnp.sum(jnp.square(x["factor"] @ z["w"]))


LOG_JOINTS = {"logistic": logistic, "eight_schools": eight_schools, "gaussian": gaussian}


def breast_cancer() -> dict[str, jax.Array]:
    """569 rows of 30 standardised measurements with an intercept."""
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    features = np.concatenate([np.ones((len(features), 1)), features], axis=1)
    return _rows(features, labels)


@functools.lru_cache(maxsize=1)
def simulated_rows() -> dict[str, jax.Array]:
    """50,000 simulated rows of 100 features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50_000, 100))
    logits = features @ (rng.normal(size=100) / 10.0)
    return _rows(features, rng.uniform(size=50_000) < 1.0 / (1.0 + np.exp(-logits)))


def _rows(features: np.ndarray, labels: np.ndarray) -> dict[str, jax.Array]:
    signs = jnp.asarray(2.0 * labels - 1.0, jnp.float32)
    return {"features": jnp.asarray(features, jnp.float32), "signs": signs}


def schools() -> dict[str, jax.Array]:
    """Effects of coaching in eight schools and their standard errors."""
    effects = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
    errors = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
    return {"y": jnp.array(effects), "sigma": jnp.array(errors)}


def correlated(dim: int) -> dict[str, jax.Array]:
    """A well-conditioned random precision factor."""
    lower = np.tril(np.random.default_rng(0).normal(size=(dim, dim)), -1)
    return {"factor": jnp.asarray(np.eye(dim) + 0.5 * lower / np.sqrt(dim), jnp.float32)}


def _problems() -> list[Problem]:
    small = functools.partial(Problem, kind="logistic", dim=31, data=breast_cancer)
    large = functools.partial(Problem, kind="logistic", dim=100, data=simulated_rows)
    schools_8 = functools.partial(Problem, kind="eight_schools", dim=10, data=schools)
    return [
        schools_8("eight_schools", steps=(5_000, 50_000)),
        small("logistic_s1", steps=(1_000, 10_000)),
        small("logistic_s10", num_samples=10, steps=(300, 2_000)),
        small("logistic_s100", num_samples=100, steps=(50, 300)),
        small("score_s10", num_samples=10, estimator="score_function", steps=(500, 4_000)),
        large("rows_full", steps=(10, 50)),
        large("rows_minibatch", batch=256, steps=(500, 4_000)),
        *(
            Problem(
                f"full_rank_{dim}",
                kind="gaussian",
                dim=dim,
                data=functools.partial(correlated, dim),
                num_samples=10,
                family="full_rank",
                steps=steps,
            )
            for dim, steps in ((100, (300, 2_000)), (1000, (15, 75)))
        ),
        schools_8("fits_256", restarts=256, steps=(200, 1_000)),
    ]


PROBLEMS = {problem.name: problem for problem in _problems()}
