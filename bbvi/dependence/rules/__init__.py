"""The rules of the analysis, one file per class of primitives; importing a file registers it."""

from bbvi.dependence.rules import control, elementwise, indexing, mixing, movement

__all__ = ["control", "elementwise", "indexing", "mixing", "movement"]
