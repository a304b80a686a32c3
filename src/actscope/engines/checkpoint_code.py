"""Failures of loading a checkpoint, and code that it brings along (`auto_map`), which is refused unless the user allows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from actscope.errors import ActscopeError, EngineError
from actscope.runtime.decoding import reason_of


@contextmanager
def loading(model: str, what: str, advice: str) -> Iterator[None]:
    """Turn what transformers raises while it loads a part of a checkpoint into EngineError. Errors of actscope pass unchanged.

    Args:
        model: The model as the user named it.
        what: The part, with its files.
        advice: What to do, the last line of the message.
    """
    try:
        yield
    except ActscopeError:
        raise
    except (
        Exception
    ) as error:  # transformers, tokenizers and safetensors raise whatever their code meets in a damaged file
        reason = str(error) if isinstance(error, (OSError, ImportError)) else reason_of(error)
        raise refusal(model, error) or EngineError(f"cannot load {model!r}, {what}: {reason}\n{advice}") from error


def refusal(model: str, error: Exception) -> EngineError | None:
    """Return the error for a checkpoint that transformers cannot load without its code; None for any other failure.

    Call transformers with `trust_remote_code` set to False rather than None: with None it asks on the terminal.
    """
    if "trust_remote_code" not in str(error):
        return None
    return EngineError(
        f"{model}: transformers has no class for this checkpoint, which brings its own code (auto_map in config.json). That code "
        "would run with your rights: read it, then allow it with --trust-remote-code (in Python: trust_remote_code=True)"
    )
