"""Models from elsewhere, and fits for elsewhere; each bridge needs the library it is named after.

All of them come with the ``interop`` extra.
"""

from bbvi.interop.blackjax_start import SamplerStart, to_blackjax
from bbvi.interop.numpyro_model import ImportedModel, from_numpyro

__all__ = ["ImportedModel", "SamplerStart", "from_numpyro", "to_blackjax"]
