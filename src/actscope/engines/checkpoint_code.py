"""Code that a checkpoint brings along (`auto_map` in its config.json): refused unless the user allows it."""

from __future__ import annotations

from actscope.errors import EngineError


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
