"""Estimators whose samples are drawn together: what ``Arm``, ``DisArm`` and the like share."""

from __future__ import annotations

import abc
import math

from bbvi._types import PyTree
from bbvi.estimators.coefficient import Coefficient
from bbvi.estimators.discrete import (
    BySite,
    DiscreteEstimator,
    DiscreteModel,
    LogitGradient,
    log_probs,
)


class CoupledEstimator(DiscreteEstimator):
    r"""An estimator that is linear in the learning signals of jointly drawn samples.

    The samples of an entry depend on each other, yet each by itself has the guide's distribution,
    and different entries are independent. The gradient of entry i is a linear map of the signals
    :math:`a_{si}`, with weights that depend on the samples of entry i only. So anything that does
    not depend on :math:`z_i` drops out of its expectation, and may be left out of its signal
    (Rao-Blackwellization) or scaled by a coefficient: see ``ScoreFunction``.
    """

    signal: str

    @abc.abstractmethod
    def couple(self, noise: PyTree, logits: BySite) -> BySite:
        """Draws as indices ``{site: [S, *blocks]}``."""

    @abc.abstractmethod
    def contract(self, signals: BySite, noise: PyTree, indices: BySite, logits: BySite) -> BySite:
        """Gradient in the logits from signals ``{site: [S, *blocks]}``: linear in them."""

    def init_logits(self, model: DiscreteModel, logits: BySite) -> dict[str, Coefficient]:
        return {site.name: Coefficient.init() for site in model.sites}

    def logit_gradient(
        self, noise: PyTree, model: DiscreteModel, logits: BySite, state: dict[str, Coefficient]
    ) -> tuple[LogitGradient, dict[str, Coefficient]]:
        indices = self.couple(noise, logits)
        log_q = log_probs(logits, indices)
        is_adaptive = self.signal == "adaptive" and has_several_blocks(model)
        evaluation = model.evaluate(model.values(indices), with_blankets=is_adaptive)
        log_weights = evaluation.log_p - model.total(log_q)
        whole = model.spread(log_weights)
        if not is_adaptive:
            ascent = self.contract(whole, noise, indices, logits)
            return LogitGradient(ascent, log_weights, evaluation.model_grads), state
        local = {name: evaluation.blankets[name] - leaf for name, leaf in log_q.items()}
        rest = {name: whole[name] - leaf for name, leaf in local.items()}
        near = self.contract(local, noise, indices, logits)
        far = self.contract(rest, noise, indices, logits)
        ascent = {name: near[name] + state[name].value() * far[name] for name in near}
        state = {name: state[name].update(near[name], far[name]) for name in near}
        return LogitGradient(ascent, log_weights, evaluation.model_grads), state


def check_signal(estimator: CoupledEstimator) -> None:
    """Raise on an unknown learning signal."""
    if estimator.signal not in ("adaptive", "component"):
        raise ValueError(
            f"{type(estimator).__name__} signal must be 'adaptive' or 'component', got "
            f"{estimator.signal!r}."
        )


def has_several_blocks(model: DiscreteModel) -> bool:
    """Whether any component has more than one block, so that signals have a part to drop."""
    num_blocks = sum(math.prod(site.block_shape) for site in model.sites)
    return num_blocks > (1 if model.components is None else model.components.num_components)
