"""Models from elsewhere, and fits for elsewhere; each bridge needs the library it is named after.

PyMC comes with the ``pymc`` extra, the others with ``interop``.
"""

from bbvi.interop.blackjax_start import SamplerStart, to_blackjax
from bbvi.interop.numpyro_model import ImportedModel, from_numpyro
from bbvi.interop.pymc_model import from_pymc

__all__ = ["ImportedModel", "SamplerStart", "from_numpyro", "from_pymc", "to_blackjax"]
