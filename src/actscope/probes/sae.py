"""Loads the encoder of a sparse autoencoder from any of the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actscope.errors import ProbeError
from actscope.probes import sae_layouts
from actscope.probes.encoder import ENCODERS, NORMALISATIONS, SaeEncoder
from actscope.probes.sae_layouts import site_of_hook

__all__ = ["ENCODERS", "NORMALISATIONS", "SaeEncoder", "load_encoder", "site_of_hook"]

#: A folder has the first layout whose file exists in it.
_FOLDERS: dict[str, Callable[[Path, str | None], SaeEncoder]] = {
    "sae_weights.safetensors": sae_layouts.saelens,
    "params.npz": lambda path, site: sae_layouts.gemma_scope(path / "params.npz", site),
    "params.safetensors": sae_layouts.gemma_scope_2,
    "hyperparams.json": sae_layouts.llama_scope,
    "sae.safetensors": sae_layouts.sparsify,
    "ae.safetensors": sae_layouts.dictionary_learning,
    "ae.pt": sae_layouts.dictionary_learning,
}


def load_encoder(path: Path, site: str | None = None) -> SaeEncoder:
    """Load the encoder of an SAE. Nothing is unpickled.

    Args:
        path: A file or folder in any layout of `sae_layouts`.
        site: Overrides the site that the files state.

    Returns:
        The encoder, with float32 tensors.

    Raises:
        ProbeError: The layout is unknown, or the files cannot be read or are not supported. The message names `path`.
    """
    try:
        return _layout(path)(path, site)
    except ProbeError as error:
        raise ProbeError(f"{path}: {error}") from error
    except OSError as error:
        raise ProbeError(f"{path}: cannot be read: {error.strerror or error}") from error


def _layout(path: Path) -> Callable[[Path, str | None], SaeEncoder]:
    if not path.is_dir():
        return sae_layouts.gemma_scope if path.suffix == ".npz" else sae_layouts.plain
    for name, layout in _FOLDERS.items():
        if (path / name).exists():
            return layout
    raise ProbeError(f"no autoencoder in this folder: it has none of {', '.join(_FOLDERS)}")
