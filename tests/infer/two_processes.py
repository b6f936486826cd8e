"""One of two processes that fit together, or one alone; test_placement.py starts them.

``python two_processes.py PORT PROCESS FOLDER`` writes ``FOLDER/PROCESS.npz``; PORT 0: alone.
"""

import contextlib
import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi

N = 16
RNG = np.random.default_rng(0)
X = {"y": RNG.normal(size=N), "f": RNG.normal(size=(N, 3))}
PLACE = bbvi.MeanField({"w": bbvi.Normal((3,))})
GUIDE = bbvi.Product(PLACE, bbvi.Local({"u": bbvi.Normal((N,))}))


def regression(x, z):
    return norm.logpdf(z["w"]).sum() + norm.logpdf(x["y"], x["f"] @ z["w"], 0.5).sum()


def effects(x, z):
    prior = norm.logpdf(z["w"]).sum() + norm.logpdf(z["u"]).sum()
    return prior + norm.logpdf(x["y"], x["f"] @ z["w"] + jnp.sin(z["u"]), 0.5).sum()


def main(port: str, process: int, folder: str) -> None:
    mesh, seen = None, []
    if port != "0":
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
        mesh = jax.make_mesh((2, 2), ("data", "samples"))
        try:
            bbvi.fit(regression, PLACE, X, key=jax.random.key(process), mesh=mesh, num_steps=9)
        except ValueError as error:
            seen.append(str(error))
    # Ends by itself: the processes must agree when, and on the rate before.
    rule = bbvi.Plateau(min_steps=100, tolerance=1.0)
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        plain = bbvi.fit(regression, PLACE, X, mesh=mesh, stopping=rule)
    # A callback of the second process alone ends the run of both.
    stopped = bbvi.fit(
        *(regression, PLACE, X),
        mesh=mesh,
        progress=False,
        num_steps=60,
        callbacks=[lambda progress: process == 1],
    )
    for num_steps in (10, 20):  # the second call goes on where the first was saved
        local = bbvi.fit(
            *(effects, GUIDE, X),
            mesh=mesh,
            batch_size=8,
            num_steps=num_steps,
            checkpoint=f"{folder}/saved-{port}",
            progress=False,
        )
    draws = local.sample(jax.random.key(1), 5)
    np.savez(
        f"{folder}/{process}.npz",
        **{"plain loss": plain.history.loss, "local loss": local.history.loss},
        **{"w": plain.sample(jax.random.key(1), 5)["w"], "u": draws["u"]},
        **{"elbo": plain.elbo(jax.random.key(2), 100), "batch elbo": local.elbo(jax.random.key(2))},
        **{"verdict": str(plain).splitlines()[2:4], "summary": str(local.summary())[:20]},
        **{"seen": seen, "is_shown": bool(shown.getvalue()), "stopped": stopped.status},
        **{"num_stopped": len(stopped.history.loss)},
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
