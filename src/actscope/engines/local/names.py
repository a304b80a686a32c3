"""Names of models that need no hub, and the directories that they stand for."""

from __future__ import annotations

from pathlib import Path

from actscope.engines import builtin, smollm2
from actscope.engines.local.conversion import converted, place_of_content
from actscope.engines.local.gguf_file import is_gguf
from actscope.errors import EngineError

#: What else than a hub id can be given, in messages.
NAMES = f"{builtin.NAME}, {smollm2.NAME} or a GGUF file"


def directory_of(model: str) -> Path | None:
    """Return the directory of a model that needs no hub; None for a hub id or a directory.

    Args:
        model: `actscope/builtin`, `actscope/smollm2`, the path of a GGUF file, or any other name.

    Returns:
        A directory with config, weights and tokenizer. A GGUF file is converted at its first use, see `conversion.converted`.

    Raises:
        EngineError: The model's package is not installed, or the GGUF file cannot be converted.
        MissingExtra: A package for the conversion is not installed.
    """
    if model == builtin.NAME:
        return builtin.model_path()
    if model != smollm2.NAME and not is_gguf(model):
        return None
    if model != smollm2.NAME:
        return converted(Path(model))
    path = smollm2.gguf_path()
    directory = converted(path)
    if directory != place_of_content(smollm2.SHA256):
        raise EngineError(f"{smollm2.NAME}: {path} is not the file that its package had: install it again")
    return directory


def cached_directory(model: str) -> Path | None:
    """Return the directory of a model that needs no hub if it is there already; None otherwise. Nothing is converted or read."""
    if model == builtin.NAME:
        return builtin.model_path()
    directory = place_of_content(smollm2.SHA256)
    return directory if model == smollm2.NAME and directory.is_dir() else None


def shipped_probes(model: str) -> Path | None:
    """Return the directory of the probes that come with actscope for a model; None if there are none."""
    return {builtin.NAME: builtin.probes_path(), smollm2.NAME: smollm2.probes_path()}.get(model)


def name_of(directory: Path) -> str | None:
    """Return the name of the model with shipped probes that a directory holds, by its path; None for others."""
    resolved = directory.resolve()
    if resolved == builtin.model_path().resolve():
        return builtin.NAME
    return smollm2.NAME if resolved == place_of_content(smollm2.SHA256).resolve() else None
