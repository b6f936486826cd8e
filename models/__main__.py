"""Fits targets by name and shows what came out: ``python -m models breast_cancer radon``."""

import argparse
import pathlib

import jax
import numpy as np

import bbvi
import models

DEFAULT = ("breast_cancer", "radon")


def run(
    name: str, guide: str | None, output: pathlib.Path, num_steps: int | None
) -> bbvi.FitResult:
    """Fits one target, prints verdict and posterior table, and writes a picture.

    Args:
        name: Registered name of the target.
        guide: Which of its guides to use; by default full_rank where it has one.
        output: Folder for the picture.
        num_steps: Steps to take; the run stops by itself when None.

    Returns:
        The result of the fit.
    """
    target = models.get(name)
    guide = guide or ("full_rank" if "full_rank" in target.guides else next(iter(target.guides)))
    if guide not in target.guides:
        raise SystemExit(f"{name} has guides {sorted(target.guides)}, not {guide!r}.")
    print(f"\n== {name}, {guide} ==\n{target.source}")
    theta = None if target.model_params is None else target.model_params()
    result = bbvi.fit(
        target.log_joint,
        target.guides[guide](),
        target.data(),
        key=jax.random.key(0),
        model_params=theta,
        num_steps=num_steps,
    )
    print(result, "\n")
    print(bbvi.format_summary(result.summary(), max_rows=12))
    if target.reference is not None:
        _compare(result, target.reference())
    path = output / f"{name}_{guide}.png"
    result.plot(str(path))
    print(f"picture  {path}")
    return result


def _compare(result: bbvi.FitResult, reference: models.Reference) -> None:
    """Prints the largest errors of means and deviations against the reference, where known."""
    if reference.log_evidence is not None:
        print(f"\nexact log evidence {reference.log_evidence:.3f}: the ELBO lies below it")
    if reference.mean is None or reference.sd is None:
        return
    draws = result.sample(jax.random.key(1), 4000)
    mean_errors, sd_errors = [], []
    for name, mean in reference.mean.items():
        values, sd = np.asarray(draws[name], np.float64), np.asarray(reference.sd[name])
        mean_errors.append(np.max(np.abs(values.mean(axis=0) - mean) / sd))
        sd_errors.append(np.max(np.abs(np.log(values.std(axis=0) / sd))))
    print(
        f"against the reference ({reference.how}): means within {max(mean_errors):.2f} posterior "
        f"sd, log sds within {max(sd_errors):.2f}"
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    parser.add_argument("names", nargs="*", default=DEFAULT, help=f"any of {models.names()}")
    parser.add_argument("--guide", help="by default full_rank where the target has it")
    parser.add_argument("--num-steps", type=int, default=None)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        run(name, arguments.guide, arguments.output, arguments.num_steps)


if __name__ == "__main__":
    main()
