"""The progress bar of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

# The norm of the gradient is a program of its own, which takes about one step to run. It is shown
# once a run has lasted so many seconds, and times as long as its first chunk, most of which is
# compiling; then at this interval, and not where a chunk has fewer steps than NORM_STEPS.
NORM_SECONDS, NORM_PATIENCE, NORM_INTERVAL, NORM_STEPS = 5.0, 5, 0.5, 20


class Bar:
    """ELBO, in longer runs the norm of the gradient, and the time left, in terminal or notebook.

    Args:
      num_steps: steps at most.
      done: steps taken before.
      is_shown: False: nothing is shown or computed.
    """

    def __init__(self, num_steps: int, done: int, *, is_shown: bool):
        self._bar = tqdm(
            total=num_steps, initial=done, disable=not is_shown, unit="step", leave=False
        )
        self._began, self._due = time.perf_counter(), np.inf
        self._norm: np.ndarray | None = None

    def update(self, count: int, losses: np.ndarray, norm: Callable[[], np.ndarray] | None) -> None:
        """Moves by a chunk of ``count`` steps; with restarts it shows the best run.

        ``norm`` computes that of the gradient; None where one process alone cannot.
        """
        if self._bar.disable:
            return
        now = time.perf_counter()
        if np.isinf(self._due):  # the first chunk
            self._due = now + max(NORM_SECONDS, NORM_PATIENCE * (now - self._began))
        elif norm is not None and now >= self._due and count >= NORM_STEPS:
            self._norm, self._due = norm(), now + NORM_INTERVAL
        recent = losses[..., -100:].mean(axis=-1)
        shown = {"elbo": f"{-float(np.min(recent)):.5g}"}
        if self._norm is not None:
            shown["gradient"] = f"{float(self._norm.flat[np.argmin(recent)]):.2g}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(count)

    def close(self) -> None:
        """Takes the bar off the screen."""
        self._bar.close()
