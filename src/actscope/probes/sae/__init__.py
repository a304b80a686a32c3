"""Loads the encoder of a sparse autoencoder from any of the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from actscope.errors import ProbeError
from actscope.near_miss import hinted
from actscope.probes.checkpoint import PICKLES, refuse_pickle
from actscope.probes.encoder import ENCODERS, NORMALISATIONS, SaeEncoder
from actscope.probes.hooks import site_of_hook
from actscope.probes.sae import layouts, openmoss
from actscope.probes.sae.saelens import saelens
from actscope.runtime.decoding import as_own_error

__all__ = ["ENCODERS", "NORMALISATIONS", "SaeEncoder", "is_encoder", "load_encoder", "site_of_hook"]

_Layout = Callable[[Path, str | None], SaeEncoder]
#: A folder has the first layout of which all files exist in it.
_FOLDERS: tuple[tuple[tuple[str, ...], _Layout], ...] = (
    (("cfg.json", "sae_weights.safetensors"), saelens),
    (("config.json", "sae_weights.safetensors"), openmoss.llama_scope_2),
    (("params.npz",), layouts.gemma_scope),
    (("params.safetensors",), layouts.gemma_scope_2),
    (("hyperparams.json",), openmoss.llama_scope),
    (("sae.safetensors",), layouts.sparsify),
    (("ae.safetensors",), layouts.dictionary_learning),
    (("ae.pt",), layouts.dictionary_learning),
    (("config.json", "checkpoints"), openmoss.llama_scope_2),
    (("config.json", "sae_weights.pt"), openmoss.llama_scope_2),
)


@hinted
def load_encoder(path: Path, site: str | None = None) -> SaeEncoder:
    """Load the encoder of an SAE. Nothing is unpickled.

    Args:
        path: A file or folder in any of the layouts of `docs/guide.md`.
        site: Site whose rows it reads. Needed where the files do not state it; where they do, it must be of the same kind.

    Returns:
        The encoder, with float32 tensors. Half-precision weights are converted exactly.

    Raises:
        ProbeError: The layout is unknown, the files cannot be read or are not supported, or they state a point that no site
            reads. The message names `path`, the reason and the remedy.
    """
    try:
        with as_own_error(ProbeError, "not an autoencoder"), np.errstate(all="ignore"):
            return _layout(path)(path, site)
    except ProbeError as error:
        raise ProbeError(f"{path}: {error}") from error


def is_encoder(path: Path) -> bool:
    """Return whether a file or folder looks like an SAE in one of the layouts. Its content is not read."""
    if not path.is_dir():
        return path.is_file()
    return (path / "cfg.json").is_file() or any(all((path / n).exists() for n in names) for names, _ in _FOLDERS)


def _layout(path: Path) -> _Layout:
    if not path.is_dir():
        return _file_layout(path)
    for names, layout in _FOLDERS:
        if all((path / name).exists() for name in names):
            return layout
    pickled = next((p.name for p in sorted(path.iterdir()) if p.suffix in PICKLES), None)
    if pickled is not None:
        raise refuse_pickle(pickled)
    known = "; ".join(" and ".join(names) for names, _ in _FOLDERS)
    raise ProbeError(f"no autoencoder in this folder: expected one of {known}")


def _file_layout(path: Path) -> _Layout:
    if path.suffix in PICKLES:
        raise refuse_pickle(path.name)
    if path.suffix == ".gguf":
        raise ProbeError(
            f"a GGUF file holds a model or a control vector, and no autoencoder; actscope probe import {path.name} makes probes "
            "of a control vector"
        )
    return layouts.gemma_scope if path.suffix == ".npz" else layouts.plain
