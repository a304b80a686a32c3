"""Checks of commands that run a model: whether the packages that they will need are installed. They import none of them."""

from __future__ import annotations

from actscope.extras import MODEL, SERVER, require


def require_model(model: str, *more: str) -> None:
    """Check that what loads a model is installed.

    Args:
        model: The model as the user named it.
        more: Further packages (import names) that the extra `hf` installs.

    Raises:
        MissingExtra: A package is not installed.
        EngineError: The package that carries the model's weights is not installed.
    """
    from actscope.engines import smollm2
    from actscope.engines.local.gguf_file import is_gguf

    require("hf", *MODEL, *more)
    if model == smollm2.NAME:
        require("gguf")
        smollm2.gguf_path()
    elif is_gguf(model):
        require("gguf")


def require_engine(model: str) -> None:
    """Check that what serves a model behind the gateway is installed. Raises like `require_model`."""
    require_model(model, *SERVER)


def require_texts(dataset: str) -> None:
    """Check that what reads a dataset is installed. Raises MissingExtra."""
    from actscope.extraction.texts import BUILTIN

    if dataset.partition(":")[0] != BUILTIN:
        require("feed")
