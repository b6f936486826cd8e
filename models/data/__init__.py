"""Stored data sets and reference draws; README.md says where each comes from."""

import pathlib

import numpy as np


def load(name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a stored file by name."""
    with np.load(pathlib.Path(__file__).parent / f"{name}.npz") as arrays:
        return dict(arrays)
