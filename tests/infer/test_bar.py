"""The progress bar, as it is seen."""

import re
import time

import optax
from jax.scipy.stats import norm

import bbvi
from bbvi.infer import bar


def fit(**options):
    return bbvi.fit(
        lambda x, z: norm.logpdf(z["mu"], 3.0, 0.5),
        bbvi.MeanField({"mu": bbvi.Normal()}),
        optimizer=optax.adam(1e-2),
        **({"progress": False} | options),
    )


def test_progress_is_shown_when_asked(capfd):
    fit(num_steps=100)
    # XLA logs that it loads programs of the tests' cache, on some processors.
    assert re.sub(r"(?m)^[EWI]\d{4} .*\n", "", capfd.readouterr().err) == ""
    fit(num_steps=100, progress=True)
    shown = capfd.readouterr()
    assert "/100" in shown.err
    assert "step/s" in shown.err
    assert shown.out == ""


def test_longer_runs_show_the_norm_of_the_gradient(capfd, monkeypatch):
    for name in ("NORM_SECONDS", "NORM_PATIENCE", "NORM_INTERVAL"):
        monkeypatch.setattr(bar, name, 0.0)
    wanted = []

    def note(info):
        elbo = -info.loss[-100:].mean()
        wanted.append((f"{elbo:.5g}", f"{info.gradient_norm():.2g}"))
        time.sleep(0.15)  # the bar is drawn ten times a second at most

    fit(num_steps=400, progress=True, callbacks=[note])
    shown = re.findall(r"elbo=([^\s,]+), gradient=([\d.e+-]+)", capfd.readouterr().err)
    assert shown
    assert set(shown) <= set(wanted)
