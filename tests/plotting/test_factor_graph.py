"""Pictures of a model."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import bbvi

pytest.importorskip("matplotlib")


def mixture(x, z):
    return norm.logpdf(z["m"]).sum() + norm.logpdf(x, z["m"][z["c"]]).sum()


def factor_graph_figure(path=None):
    z = {"c": np.zeros(5, int), "m": np.zeros(3)}
    return bbvi.explain(mixture, np.zeros(5), z).plot(path)


def test_a_factor_graph_shows_latents_terms_and_who_reads_whom(tmp_path):
    path = tmp_path / "graph.png"
    figure = factor_graph_figure(str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    (axis,) = figure.axes
    texts = [text.get_text() for text in axis.texts]
    assert {"c [5]", "m [3]"} <= set(texts)
    assert any("test_factor_graph.py" in t and t.endswith("reads m[:], c[i]") for t in texts)
    # Squares and circles are lines of one point; of the three edges one is dense.
    edges = [line for line in axis.lines if len(line.get_xdata()) == 2]
    assert (len(edges), len(axis.lines) - len(edges)) == (3, 4)
    assert sum(line.get_linewidth() > 2 for line in edges) == 1


def test_labels_of_a_factor_graph_do_not_overlap():
    z = {f"a_latent_with_a_long_name_{k}": np.zeros(2) for k in range(8)}

    def log_joint(x, z):
        total = sum(jnp.sum(leaf) for leaf in z.values())
        return sum(norm.logpdf(leaf).sum() for leaf in z.values()) + norm.logpdf(total)

    figure = bbvi.explain(log_joint, None, z).plot()
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    width, height = figure.canvas.get_width_height()
    assert all(0 <= b.x0 and b.x1 <= width and 0 <= b.y0 and b.y1 <= height for b in boxes)


def test_many_terms_are_cut_short(monkeypatch):
    monkeypatch.setattr("bbvi.plotting.factor_graph.MAX_TERMS", 1)
    texts = [text.get_text() for text in factor_graph_figure().axes[0].texts]
    assert any("the first 1 of 2 terms" in text for text in texts)
    assert sum("test_factor_graph.py" in text for text in texts) == 1
