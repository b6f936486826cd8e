"""What a target is, and where targets are looked up by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The answer to a target, as far as it is known; `None` stands for what is not.

    Attributes:
        how: How the numbers were obtained, in words.
        log_evidence: log p(x), the log of the integral (or sum) of exp(log_joint) over the latents.
        mean: Posterior mean of each latent, in the shape of the latent. A binary latent's mean is
            its posterior probability of being one; categorical latents are left out.
        sd: Posterior standard deviation of each latent in `mean`.
        probs: Posterior probabilities of each categorical latent, with a last axis of categories.
        model_params: The maximiser of log p(x; theta), for targets with learned parameters.
    """

    how: str
    log_evidence: float | None = None
    mean: Mapping[str, Any] | None = None
    sd: Mapping[str, Any] | None = None
    probs: Mapping[str, Any] | None = None
    model_params: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A model with its data, guides and reference answer.

    Attributes:
        name: The name it is registered under.
        log_joint: log p(x, z) for one draw z, `log_joint(x, z)`, or `log_joint(x, z, theta)` for a
            target with `model_params`. Normalised, and without Jacobian terms, unless it says
            otherwise.
        data: Returns x, a pytree of JAX arrays in the default float type.
        guides: Short names such as "mean_field", each with a function that builds the guide.
        source: Where model and data come from.
        reference: Returns the answer. It may take a second or two to compute. `None` if no exact
            answer is known.
        interactions: Given x, returns which entries of the latents interact, derived by hand: for
            names (a, b), in the order of `jax.tree` (a <= b), a boolean array (a.size, b.size).
            It is False where log_joint is, whatever the other entries, the sum of a function free
            of entry i of a and one free of entry j of b (row-major), and True elsewhere and on the
            diagonal of (a, a). Each entry counts as free, those of a simplex too. Names that are
            absent do not interact.
        model_params: Returns a starting value of theta; `None` if nothing is learned.
        differentiable: Whether `jax.grad` of the log joint in a real-valued latent exists.
    """

    name: str
    log_joint: Callable[..., Any]
    data: Callable[[], Any]
    guides: Mapping[str, Callable[[], Any]]
    source: str
    reference: Callable[[], Reference] | None = None
    interactions: Callable[[Any], Mapping[tuple[str, str], np.ndarray]] | None = None
    model_params: Callable[[], Any] | None = None
    differentiable: bool = True


_TARGETS: dict[str, Target] = {}


def register(target: Target) -> Target:
    """Adds a target under its name and returns it.

    Raises:
        ValueError: If the name is taken.
    """
    if target.name in _TARGETS:
        raise ValueError(f"a target named {target.name!r} is already registered")
    _TARGETS[target.name] = target
    return target


def get(name: str) -> Target:
    """Returns the target of this name.

    Raises:
        KeyError: If there is none; the message lists the names there are.
    """
    try:
        return _TARGETS[name]
    except KeyError:
        raise KeyError(f"no target named {name!r}; there are {', '.join(names())}") from None


def names() -> tuple[str, ...]:
    """Returns the names of all targets, sorted."""
    return tuple(sorted(_TARGETS))
