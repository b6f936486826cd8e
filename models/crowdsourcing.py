"""Labels by many hands: what is true of each task, and how far to trust each worker."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import bbvi
from models.registry import Target, register

NUM_TASKS = 20
NUM_WORKERS = 8


def log_joint(x, z):
    r"""A worker answers a task correctly with probability :math:`\sigma(s_w)`.

    .. math:: \log p(t) + \log p(s) + \sum_n \log \sigma((2 a_n - 1)(2 t_{i(n)} - 1) s_{w(n)})

    Labels are one with probability 0.4, skills N(1, 1).

    Args:
        x: `task` i (N,) and `worker` w (N,) of integers, `answer` a (N,), zero or one.
        z: true labels `label` t (tasks,) of integers, zero or one, and `skill` s (workers,).
    """
    label = z["label"].astype(x["answer"].dtype)
    log_prior = (label * jnp.log(0.4) + (1.0 - label) * jnp.log(0.6)).sum()
    log_prior += norm.logpdf(z["skill"], 1.0, 1.0).sum()
    agreement = (2.0 * x["answer"] - 1.0) * (2.0 * label - 1.0)[x["task"]]
    return log_prior + jax.nn.log_sigmoid(agreement * z["skill"][x["worker"]]).sum()


def data(num_tasks=NUM_TASKS, num_workers=NUM_WORKERS, answers_per_task=3):
    """Returns answers drawn from the model; each task is given to some successive workers."""
    rng = np.random.default_rng(0)
    label, skill = rng.random(num_tasks) < 0.4, rng.normal(1.0, 1.0, size=num_workers)
    task = np.repeat(np.arange(num_tasks), answers_per_task)
    first = rng.integers(num_workers, size=(num_tasks, 1))
    worker = ((first + np.arange(answers_per_task)) % num_workers).reshape(-1)
    correct = rng.random(task.size) < 1.0 / (1.0 + np.exp(-skill[worker]))
    x = {
        "task": task.astype(np.int32),
        "worker": worker.astype(np.int32),
        "answer": (label[task] == correct).astype(float),
    }
    return jax.tree.map(jnp.asarray, x)


def mean_field(num_tasks=NUM_TASKS, num_workers=NUM_WORKERS):
    """Returns an independent Bernoulli and Gaussian guide."""
    return bbvi.MeanField(
        {"label": bbvi.Bernoulli((num_tasks,)), "skill": bbvi.Normal((num_workers,))}
    )


def interactions(x, num_tasks=NUM_TASKS, num_workers=NUM_WORKERS):
    """A label interacts with the skills of the workers who answered."""
    answered = np.zeros((num_tasks, num_workers), bool)
    answered[np.asarray(x["task"]), np.asarray(x["worker"])] = True
    return {
        ("label", "label"): np.eye(num_tasks, dtype=bool),
        ("label", "skill"): answered,
        ("skill", "skill"): np.eye(num_workers, dtype=bool),
    }


register(
    Target(
        name="crowdsourcing",
        log_joint=log_joint,
        data=data,
        guides={"mean_field": mean_field},
        interactions=interactions,
        source="Model: Dawid and Skene (1979), Maximum Likelihood Estimation of Observer "
        "Error-Rates Using the EM Algorithm, with one rate for each observer. Data: simulated.",
    )
)
