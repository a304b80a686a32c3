"""The command line: one file per command. The docstring of a command is its help text.

Exit codes: 0 success; 1 a check failed; 2 bad input or settings; 3 no engine answers; 130 interrupted.
"""

from __future__ import annotations

import sys

from actscope.errors import ActscopeError, MissingExtra, UpstreamError
from actscope.runtime.printable import printable

#: Packages that commands import when they need them, and the extras that install them.
_EXTRAS = {
    **dict.fromkeys(("typer", "rich", "httpx"), "cli"),
    **dict.fromkeys(("torch", "transformers", "safetensors", "tokenizers"), "hf"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "aiohttp"), "gateway"),
    **dict.fromkeys(("crc32c", "lz4", "mcap", "zstandard"), "record"),
    **dict.fromkeys(("pyarrow", "zarr"), "export"),
    **dict.fromkeys(("matplotlib", "networkx", "scipy"), "analyze"),
    **dict.fromkeys(("gguf", "accelerate"), "gguf"),
    "sklearn": "probes",
    "datasets": "feed",
    "obstore": "harvest",
    "ray": "ray",
}


def main() -> None:
    """Run the command line. An `ActscopeError` becomes one message on standard error and an exit code."""
    try:
        from actscope.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"actscope: {MissingExtra('cli', error.name)}")
    try:
        app()
    except UpstreamError as error:
        _fail(error, 3)
    except ActscopeError as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        _fail(MissingExtra(extra, str(error.name)), 2)
    except OSError as error:
        if error.filename is None:  # not about a path of the user's, so a bug: keep the traceback
            raise
        _fail(f"{error.filename}: {error.strerror}", 2)


def _fail(error: ActscopeError | str, code: int) -> None:
    print(printable(f"actscope: {error}"), file=sys.stderr)
    sys.exit(code)
