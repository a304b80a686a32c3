"""The command line: one file per command. The docstring of a command is its help text.

Exit codes: 0 success; 1 a check failed; 2 bad input or settings; 3 no engine answers; 130 interrupted.
"""

from __future__ import annotations

import sys

from actscope.errors import ActscopeError, MissingExtra, UpstreamError
from actscope.extras import extra_of
from actscope.runtime.printable import printable


def main() -> None:
    """Run the command line. An `ActscopeError` becomes one message on standard error and an exit code."""
    try:
        from actscope.cli.app import app

        app()
    except UpstreamError as error:
        _fail(error, 3)
    except ActscopeError as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        _fail(MissingExtra(extra, str(error.name).partition(".")[0]), 2)
    except OSError as error:
        if error.filename is None:  # not about a path of the user's, so a bug: keep the traceback
            raise
        _fail(f"{error.filename}: {error.strerror}", 2)


def _fail(error: ActscopeError | str, code: int) -> None:
    print(printable(f"actscope: {error}"), file=sys.stderr)
    sys.exit(code)
