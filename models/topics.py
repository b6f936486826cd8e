"""Latent Dirichlet allocation with the topic of every word as a latent."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

import bbvi
from models.registry import Target, register

NUM_DOCUMENTS = 4
NUM_WORDS = 12
NUM_TOPICS = 3
VOCABULARY = 8


def _log_dirichlet(rows, concentration):
    log_constant = gammaln(concentration.sum()) - gammaln(concentration).sum()
    return ((concentration - 1.0)[None, :] * jnp.log(rows)).sum() + rows.shape[0] * log_constant


def log_joint(x, z):
    r"""Documents mix topics, and each word is drawn from its topic.

    .. math:: \log \mathrm{Dir}(\theta; \alpha) + \log \mathrm{Dir}(\phi; \eta)
              + \sum_{ml} \log \theta_{m t_{ml}} + \log \phi_{t_{ml} w_{ml}}

    Args:
        x: `words` w (M, L) of integers in 0..V-1, concentrations `alpha` (K,) and `eta` (V,).
        z: `theta` (M, K) and `phi` (K, V) with rows on the simplex, and topics `t` (M, L) of
            integers in 0..K-1.
    """
    log_prior = _log_dirichlet(z["theta"], x["alpha"]) + _log_dirichlet(z["phi"], x["eta"])
    log_topics = jnp.log(jnp.take_along_axis(z["theta"], z["t"], axis=1)).sum()
    return log_prior + log_topics + jnp.log(z["phi"][z["t"], x["words"]]).sum()


def data(
    num_documents=NUM_DOCUMENTS, num_words=NUM_WORDS, num_topics=NUM_TOPICS, vocabulary=VOCABULARY
):
    """Returns words drawn from the model, with concentrations rounded by hand."""
    rng = np.random.default_rng(0)
    alpha, eta = np.full(num_topics, 0.7), np.full(vocabulary, 0.5)
    theta, phi = rng.dirichlet(alpha, num_documents), rng.dirichlet(eta, num_topics)
    # A topic is the number of cumulated probabilities below a uniform draw.
    uniform = rng.random((num_documents, num_words, 1))
    topics = (uniform > theta.cumsum(axis=1)[:, None, :-1]).sum(axis=2)
    words = np.zeros(topics.shape, np.int32)
    for k, probs in enumerate(phi):
        words[topics == k] = rng.choice(vocabulary, size=np.sum(topics == k), p=probs)
    x = {"words": words, "alpha": alpha, "eta": eta}
    return jax.tree.map(jnp.asarray, x)


def mean_field(
    num_documents=NUM_DOCUMENTS, num_words=NUM_WORDS, num_topics=NUM_TOPICS, vocabulary=VOCABULARY
):
    """Returns an independent Dirichlet and categorical guide."""
    return bbvi.MeanField(
        {
            "theta": bbvi.Dirichlet((num_documents, num_topics)),
            "phi": bbvi.Dirichlet((num_topics, vocabulary)),
            "t": bbvi.Categorical(num_topics, (num_documents, num_words)),
        }
    )


def interactions(x):
    """A word's topic interacts with its document's row of theta and with its word's column of phi.

    As a topic selects one entry of each, no two entries of theta or phi share a term.
    """
    words, num_topics = np.asarray(x["words"]), x["alpha"].size
    document, _ = np.indices(words.shape).reshape(2, -1)
    mixed_document, _ = np.indices((words.shape[0], num_topics)).reshape(2, -1)
    _, word = np.indices((num_topics, x["eta"].size)).reshape(2, -1)
    return {
        ("phi", "phi"): np.eye(word.size, dtype=bool),
        ("phi", "t"): word[:, None] == words.reshape(-1),
        ("t", "t"): np.eye(words.size, dtype=bool),
        ("t", "theta"): document[:, None] == mixed_document,
        ("theta", "theta"): np.eye(mixed_document.size, dtype=bool),
    }


register(
    Target(
        name="topics",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        interactions=interactions,
        source="Model: Blei, Ng and Jordan (2003), Latent Dirichlet Allocation. Data: simulated.",
    )
)
