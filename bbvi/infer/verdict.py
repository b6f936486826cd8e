"""What is made of the diagnostics: a level with reasons and advice, and the printed verdict."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bbvi.diagnostics import MonteCarlo
from bbvi.guides.gaussian import GaussianGuide
from bbvi.guides.mean_field import MeanField
from bbvi.infer.assess import Diagnostics, Worst

if TYPE_CHECKING:
    from bbvi.infer.restarts import Restarts
    from bbvi.infer.result import FitResult

CONTINUE = "fit(..., init_state=result.state) continues"
ADVICE = {
    "converged": "the ELBO has levelled off.",
    "max_steps": "the ELBO had not provably levelled off when the steps ran out; continue with "
    "fit(..., init_state=result.state) or raise num_steps.",
    "diverged": "the ELBO ended lower than it had been; lower the learning rate, or start from "
    "init_params=guide.params_at(z).",
    "nonfinite": "the loss or its gradient stopped being finite; the state before that step is "
    "kept in result.state.",
    "stopped": "a callback stopped the run.",
    "failed": "an exception ended the run; the state before it is kept in result.state.",
    "interrupted": "interrupted by the keyboard; continue with fit(..., init_state=result.state).",
}
UNBOUNDED = (
    "the ELBO rises without slowing down: more steps are needed or, if that does not end, the "
    "posterior is improper: log_joint flat, rising for ever, or unbounded at a point"
)
LEVELS = ("good", "resample", "do not trust")
MAX_KHAT = 0.7
MANY = 0.9  # share of the draws they are worth, above which k-hat is that of noise
FEW = 100  # draws of the posterior, below which weighted moments are of no use
SMALL = 0.1  # deviations, and share of a deviation: errors that do not matter for most uses
LARGE = 1.0  # deviations
SAME_PLACE = 0.5  # deviations between runs that found the same
SHARE = math.log(100.0)  # nats below the best, from where on a mode has less than 1 % of the mass


class Finding(NamedTuple):
    """Something that is not as it should be: how bad, in words, and what to do."""

    level: int
    reason: str
    advice: str = ""


def judge(result: FitResult, found: Diagnostics) -> Diagnostics:
    """The diagnostics with their level, reasons and advice."""
    findings = [*_of_run(result, found), *_of_weights(result, found), *_of_moments(found)]
    worst = max((finding.level for finding in findings), default=0)
    findings.sort(key=lambda finding: -finding.level)
    level = LEVELS[worst]
    is_checked = found.effective_sample_size is not None
    if worst < 2 and not is_checked:
        level = "unchecked"
        findings.append(Finding(0, "minibatches give no weights of all data", _of_batches(result)))
    advice = [finding.advice for finding in findings if finding.advice]
    if level == "resample":
        advice.insert(0, "result.resample(key, 1000) corrects the draws by importance weights")
    if level in LEVELS[:2] and result.restarts is None:
        guide = "result.problem.guide, " if result.ladder else ""  # Auto itself takes no restarts
        advice.append(f"fit(..., {guide}num_restarts=4) looks for modes that one run does not see")
    return dataclasses.replace(
        found,
        level=level,
        reasons=tuple(finding.reason for finding in findings),
        advice=tuple(dict.fromkeys(advice)),
    )


def _of_run(result: FitResult, found: Diagnostics) -> list[Finding]:
    findings = []
    if result.status in ("nonfinite", "failed", "diverged"):
        findings.append(Finding(2, f"the run ended as {result.status}"))
    elif result.status != "converged":
        if is_rising(result.history.loss):
            findings.append(Finding(2, UNBOUNDED, CONTINUE))
        else:
            findings.append(Finding(1, f"the run ended as {result.status}", CONTINUE))
    moved = found.largest_movement
    if moved is not None and not moved.value <= SMALL:
        reason = (
            f"posterior means still move: that of {moved.latent} by {moved.value:.2g} sd in "
            f"{found.num_moves} steps"
        )
        is_noise = result.status == "converged"
        advice = "a lower learning rate leaves less noise in the means" if is_noise else CONTINUE
        findings.append(Finding(1 if moved.value <= LARGE else 2, reason, advice))
    is_moving = moved is not None and moved.value > SMALL / 10  # else the signal is rounding
    if is_moving and found.gradient_snr is not None and found.gradient_snr > 1:
        reason = f"the gradient is still mostly signal ({found.gradient_snr:.2g} times its noise)"
        findings.append(Finding(1, reason, CONTINUE))
    if result.restarts is not None:
        findings.extend(_of_restarts(result.restarts))
    return findings


def _of_restarts(restarts: Restarts) -> list[Finding]:
    values = np.array([elbo.value for elbo in restarts.elbos])
    apart = restarts.disagreement > SAME_PLACE
    # A run is of no account where its mode is so much lower, or where it failed.
    rivals = apart & (values > values[restarts.best] - SHARE)
    if rivals.any():
        return [
            Finding(
                2,
                f"{rivals.sum() + 1} of {len(values)} restarts ended in different places with "
                "about the same ELBO: q is one of several modes, or has not settled",
                "bbvi.Mixture(guide, num_components) for several modes; harmless if they only "
                "swap labels",
            )
        ]
    if apart.any():
        return [
            Finding(
                0,
                f"{apart.sum()} of {len(values)} restarts ended elsewhere, with ELBOs lower by "
                f"{values[restarts.best] - np.max(values[apart]):.3g} nats or more",
                "num_restarts stays needed: where a run ends depends on its start",
            )
        ]
    return []


def _of_weights(result: FitResult, found: Diagnostics) -> list[Finding]:
    if found.num_bad:
        return [
            Finding(
                2,
                f"log p - log q is not finite at {found.num_bad} of {found.num_draws} draws",
                "give the guide's sites the supports of the latents",
            )
        ]
    size, khat = found.effective_sample_size, found.khat
    if size is None or khat is None:
        return []
    findings = []
    if khat > MAX_KHAT and size < MANY * found.num_draws:
        reason = f"k-hat {khat:.2f}: q misses what importance weights cannot make up for"
        findings.append(Finding(2, reason, _richer(result)))
    elif size < FEW:
        reason = f"{found.num_draws} draws of q are worth {size:.0f} of the posterior"
        findings.append(Finding(2, reason, _richer(result)))
    rounded = found.resolution
    if rounded is not None and rounded.value > SMALL:
        findings.append(
            Finding(
                2,
                f"{rounded.latent} is so far from 0 that rounding moves it by {rounded.value:.2g} "
                "sd: the posterior is improper in its direction, or its units hide it",
                f"add a prior that holds {rounded.latent}, or centre and scale it",
            )
        )
    return findings


def _of_moments(found: Diagnostics) -> list[Finding]:
    mean, sd = found.mean_correction, found.sd_correction
    findings = []
    if mean is not None and abs(mean.value) - 2 * mean.error > SMALL:
        findings.append(Finding(1, f"the mean of {mean.latent} is off by {_in_sds(mean)}"))
    if sd is not None and abs(sd.value) - 2 * sd.error > SMALL:
        findings.append(Finding(1, f"the sd of {sd.latent} is {_in_percent(sd)}"))
    return findings


def _richer(result: FitResult) -> str:
    """A family that has what this one lacks."""
    guide, hint = result.problem.guide, "bbvi.check_calibration(...) tests the marginals by itself"
    if isinstance(guide, GaussianGuide):
        return (
            "bbvi.NormalizingFlow(sites) for skewed and curved posteriors, or non-centred effects; "
            + hint
        )
    if isinstance(guide, MeanField):
        return (
            "bbvi.FullRank(sites) for correlations, bbvi.NormalizingFlow(sites) for skewed and "
            f"curved posteriors, bbvi.StudentT sites for tails; {hint}"
        )
    return f"a richer guide; {hint}"


def _of_batches(result: FitResult) -> str:
    if all(site.is_local for site in result.problem.guide.sites()):
        return "result.at(x, rows).log_evidence(key) for some of the data"
    return "bbvi.check_calibration(...) on data as small as can be fitted without batches"


def is_rising(losses: np.ndarray) -> bool:
    """Whether the ELBO rises to the end at a pace that has not fallen to half."""
    losses = np.asarray(losses, np.float64)
    losses = losses[np.isfinite(losses)]
    if len(losses) < 100:
        return False
    quarters = np.array_split(losses, 4)
    gains = -np.diff([quarter.mean() for quarter in quarters])
    errors = [quarter.std() / math.sqrt(len(quarter)) for quarter in quarters]
    return bool(gains[-1] > 5 * math.hypot(*errors[-2:]) and gains[-1] > 0.5 * gains[-2])


def verdict(result: FitResult) -> str:
    """Level, status, ELBO, k-hat and how the run went, a line each."""
    found = result.diagnostics
    lines = [f"verdict  {_headline(result, found)}"]
    lines.append(f"status   {result.status}: {result.detail or ADVICE[result.status]}")
    lines.extend(_describe_weights(found))
    if result.estimator.is_biased:
        name = type(result.estimator).__name__
        lines.append(f"bias     {name}'s gradient is not the objective's: nor is its optimum")
    lines.extend(_describe_settling(found))
    if result.trend is not None:
        gain = MonteCarlo(result.trend.gain, result.trend.standard_error)
        lines.append(f"trend    {gain} nats gained over the last {result.trend.num_steps} steps")
    if int(result.state.skipped):
        lines.append(f"skipped  {int(result.state.skipped)} steps that were not finite")
    if result.restarts is not None:
        lines.append(_describe_restarts(result.restarts))
    if result.ladder:
        tried = (f"{type(r.guide).__name__} {r.elbo}" for r in result.ladder)
        lines.append(f"ladder   {', '.join(tried)} nats; the best is kept")
    steps, batching = int(result.state.step), result.batching
    epochs = f" ({steps / batching.steps_per_epoch:.3g} epochs)" if batching else ""
    lines.append(f"run      {steps} steps{epochs} in {result.seconds:.1f} s, {result.estimator!r}")
    labels = ["next    ", *["        "] * len(found.advice)]
    lines.extend(f"{a} {b}" for a, b in zip(labels, found.advice, strict=False))
    return "\n".join(lines)


def _headline(result: FitResult, found: Diagnostics) -> str:
    if found.level == "good":
        qualification = "as far as draws of q can tell; " + (
            "one run sees one mode" if result.restarts is None else "restarts agree"
        )
        return "; ".join((f"good, {qualification}", *found.reasons))
    return f"{found.level}: " + "; ".join(found.reasons)


def _describe_weights(found: Diagnostics) -> list[str]:
    if found.num_bad:
        return [f"ELBO     not finite at {found.num_bad} of {found.num_draws} draws"]
    if found.elbo is None:
        return [f"ELBO     not known: {found.note}"]
    if found.effective_sample_size is None:
        khat = "" if found.khat is None else f"{found.khat:.2f} "
        return [
            f"ELBO     {found.elbo} nats (of all data, by {found.num_draws} random batches)",
            f"k-hat    {khat}{found.note}",
        ]
    assert found.khat is not None
    assert found.divergence is not None
    low, high = found.elbo.interval
    digits = max(0, 1 - math.floor(math.log10(max(found.elbo.standard_error, 1e-9))))
    digits = min(digits, 6)
    least = "at least " if found.khat > MAX_KHAT else ""
    size, total = found.effective_sample_size, found.num_draws
    if size >= MANY * total:
        tail = "noise, as the weights hardly vary"
    elif found.khat > MAX_KHAT:
        tail = f"above {MAX_KHAT}: do not trust the moments"
    else:
        tail = f"below {MAX_KHAT}: importance weights can correct q"
    lines = [
        f"ELBO     {found.elbo} nats, 95 % interval {low:.{digits}f} to {high:.{digits}f}; "
        f"{least}{found.divergence:.2g} below log p(x)",
        f"k-hat    {found.khat:.2f} ({tail}); {total} draws of q are worth {size:.0f}",
    ]
    mean, sd = found.mean_correction, found.sd_correction
    if mean is not None and sd is not None:
        lines.append(
            f"moments  off most by the weights: mean of {mean.latent} by {_in_sds(mean)}, sd of "
            f"{sd.latent} {_in_percent(sd)}"
        )
    return lines


def _describe_settling(found: Diagnostics) -> list[str]:
    parts, moved = [], found.largest_movement
    if moved is not None:
        parts.append(
            f"means move by up to {moved.value:.2g} sd ({moved.latent}) in {found.num_moves} "
            "steps more"
        )
    if found.gradient_snr is not None:
        parts.append(f"gradient signal-to-noise {found.gradient_snr:.1f}")
    return [f"settled  {'; '.join(parts)}"] if parts else []


def _in_sds(worst: Worst) -> str:
    return f"{abs(worst.value):.2f} ± {worst.error:.2f} sd"


def _in_percent(worst: Worst) -> str:
    """The weighted deviation is exp(value) times q's."""
    factor = math.exp(min(abs(worst.value), 700.0))
    error = factor * worst.error
    size = f"by a factor {factor:.2f} ± {error:.2f}"
    return f"too {'small' if worst.value > 0 else 'large'} {size}"


def _describe_restarts(restarts: Restarts) -> str:
    values = [elbo.value for elbo in restarts.elbos]
    return (
        f"restarts {len(values)}, ELBOs {min(values):.2f} to {max(values):.2f}; posterior means "
        f"differ from the best run's by up to {restarts.disagreement.max():.2g} sd"
    )
