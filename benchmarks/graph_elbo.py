"""NumPyro's ``TraceGraph_ELBO`` on models of the variance suite, at bbvi's guide parameters.

Models are written the way that serves NumPyro best: conditional independence, which it takes from
plates, is declared for every group of latents that has it. The normal sites are drawn without a
pathwise gradient, so that all libraries are compared as score functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro import distributions as dist
from numpyro.infer import TraceGraph_ELBO

from benchmarks.targets import Model

Gradient = Callable[[jax.Array, Any], dict[str, jax.Array]]


class ScoreNormal(dist.Normal):
    """A normal that NumPyro takes the score-function gradient of."""

    reparametrized_params = ()


def _normal(site: dict[str, jax.Array]) -> dist.Distribution:
    return ScoreNormal(site["loc"], jnp.exp(site["log_scale"]))


def _log_normal(site: dict[str, jax.Array]) -> dist.Distribution:
    return dist.TransformedDistribution(_normal(site), dist.transforms.ExpTransform())


def _gradient(
    model: Callable[[], None], guide: Callable[[Any], None], num_samples: int
) -> Gradient:
    """Gradient by site from parameters by site."""
    elbo = TraceGraph_ELBO(num_particles=num_samples)

    def gradient(key: jax.Array, params: Any) -> dict[str, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return elbo.loss(key, {}, model, lambda: guide(params))

        grads = jax.grad(loss)(params)
        return {name: ravel_pytree(leaves)[0] for name, leaves in grads.items()}

    return gradient


def mixture(target: Model, num_samples: int) -> tuple[Gradient, list[str]]:
    x = target.x
    num_data, num_features = x["measurements"].shape
    num_components = x["weights"].size

    def model() -> None:
        prior = dist.Normal(0.0, 2.0).expand([num_components, num_features]).to_event(2)
        mu = numpyro.sample("mu", prior)
        with numpyro.plate("data", num_data):
            c = numpyro.sample("c", dist.Categorical(probs=x["weights"]))
            wines = dist.Normal(mu[c], 1.0).to_event(1)
            numpyro.sample("y", wines, obs=x["measurements"])

    def guide(params: Any) -> None:
        numpyro.sample("mu", _normal(params["mu"]).to_event(2))
        with numpyro.plate("data", num_data):
            numpyro.sample("c", dist.Categorical(logits=params["c"]["logits"]))

    return _gradient(model, guide, num_samples), ["mu", "c"]


def hidden_markov(target: Model, num_samples: int) -> tuple[Gradient, list[str]]:
    """A site for every state: a plate may not hold a chain."""
    x = target.x
    num_years = x["flow"].size

    def model() -> None:
        state = numpyro.sample("z0", dist.Categorical(probs=x["initial"]))
        for t in range(num_years):
            if t:
                state = numpyro.sample(f"z{t}", dist.Categorical(probs=x["transition"][state]))
            numpyro.sample(f"y{t}", dist.Normal(x["means"][state], x["scale"]), obs=x["flow"][t])

    def guide(params: Any) -> None:
        for t in range(num_years):
            numpyro.sample(f"z{t}", dist.Categorical(logits=params["z"]["logits"][t]))

    return _gradient(model, guide, num_samples), ["z"]


def radon(target: Model, num_samples: int) -> tuple[Gradient, list[str]]:
    """Houses in a table with a row for each county, padded: a gather would hide the structure."""
    x = {name: np.asarray(leaf) for name, leaf in target.x.items()}
    num_counties, sizes = x["county"].max() + 1, np.bincount(x["county"])
    order = np.argsort(x["county"], kind="stable")
    column = np.concatenate([np.arange(n) for n in sizes])
    cells = x["county"][order], column
    table = {}
    for name in ("log_uppm", "floor", "log_radon"):
        table[name] = np.zeros((num_counties, sizes.max()), np.float32)
        table[name][cells] = x[name][order]
    observed = np.zeros((num_counties, sizes.max()), bool)
    observed[cells] = True

    def model() -> None:
        mu = numpyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
        beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        sigma_alpha = numpyro.sample("sigma_alpha", dist.HalfNormal(1.0))
        sigma_y = numpyro.sample("sigma_y", dist.HalfNormal(1.0))
        with numpyro.plate("counties", num_counties, dim=-2):
            raw = numpyro.sample("alpha_raw", dist.Normal(0.0, 1.0))
            mean = mu + sigma_alpha * raw + beta[0] * table["log_uppm"] + beta[1] * table["floor"]
            with numpyro.plate("houses", sizes.max(), dim=-1), numpyro.handlers.mask(mask=observed):
                numpyro.sample("y", dist.Normal(mean, sigma_y), obs=table["log_radon"])

    def guide(params: Any) -> None:
        numpyro.sample("mu_alpha", _normal(params["mu_alpha"]))
        numpyro.sample("beta", _normal(params["beta"]).to_event(1))
        numpyro.sample("sigma_alpha", _log_normal(params["sigma_alpha"]))
        numpyro.sample("sigma_y", _log_normal(params["sigma_y"]))
        column = jax.tree.map(lambda leaf: leaf[:, None], params["alpha_raw"])
        with numpyro.plate("counties", num_counties, dim=-2):
            numpyro.sample("alpha_raw", _normal(column))

    return _gradient(model, guide, num_samples), [site.name for site in target.guide.sites()]


PEERS = {"mixture_120": mixture, "hidden_markov_30": hidden_markov, "radon": radon}
