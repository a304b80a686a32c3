"""Sparse autoencoders under the names that the analysis uses; `actscope.probes.sae` loads them."""

from actscope.probes.sae import SaeEncoder as Sae
from actscope.probes.sae import load_encoder as load_sae
from actscope.probes.sae import site_of_hook

__all__ = ["Sae", "load_sae", "site_of_hook"]
