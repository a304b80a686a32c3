"""Checks of commands that run a model: whether the packages that they will need are installed. They import none of them."""

from __future__ import annotations

from actscope.extras import EXTRAS, MODEL, SERVER, require


def require_model(model: str, *more: str, extra: str = "hf") -> None:
    """Check that what loads a model is installed, with further packages: all that is missing is named at once.

    Args:
        model: The model as the user named it.
        more: Further packages (import names).
        extra: Extra that installs `more` and what runs a model of transformers: `hf`, or one that includes it.

    Raises:
        MissingExtra: A package is not installed.
        EngineError: The package that carries the model's weights is not installed.
    """
    from actscope.engines import smollm2
    from actscope.engines.local.gguf_file import is_gguf

    if model == smollm2.NAME or is_gguf(model):
        require("gguf" if extra == "hf" else f"gguf,{extra}", *MODEL, *more, *EXTRAS["gguf"])
    else:
        require(extra, *MODEL, *more)
    if model == smollm2.NAME:
        smollm2.gguf_path()  # raises unless the package with its weights is installed


def require_engine(model: str) -> None:
    """Check that what serves a model behind the gateway is installed. Raises like `require_model`."""
    require_model(model, *SERVER)


def is_table(dataset: str) -> bool:
    """Return whether a dataset is read by the package `datasets`: all but the built-in text are."""
    from actscope.extraction.texts import BUILTIN

    return dataset.partition(":")[0] != BUILTIN
