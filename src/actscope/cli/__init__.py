"""The command line: one file per command. The docstring of a command is its help text.

Exit codes: 0 success; 1 a check failed; 2 bad input or settings; 3 no engine answers; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys

from actscope.errors import ActscopeError, MissingExtra, UpstreamError
from actscope.extras import extra_of
from actscope.runtime.printable import one_line, paragraph


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
        told = _told_of(error)
        if told is None:  # not about a path of the user's, so a bug: keep the traceback
            raise
        _fail(told, 2)


#: Errors of the machine that may come without a path, and what to do.
_OF_THE_DISK = {
    errno.ENOSPC: "make room on the disk, and repeat the command",
    errno.EDQUOT: "make room in the quota of this user, and repeat the command",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), and repeat the command",
    errno.EROFS: "choose a place that can be written to",
}


def _told_of(error: OSError) -> str | None:
    """Return the message for an error of the file system, or None if it says nothing of one."""
    remedy = _OF_THE_DISK.get(error.errno or 0, "")
    if error.filename is not None:
        return f"{one_line(os.fsdecode(error.filename))}: {error.strerror}" + _remedy_for(
            os.fsdecode(error.filename), error, remedy
        )
    if remedy:
        return f"{error.strerror}: {remedy}"
    if "No usable temporary directory" in str(error):  # of the tempfile module
        return "no directory for temporary files can be written to: set TMPDIR to one that this user can write to"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current directory has been removed: change to one that exists"
    return None


def _remedy_for(path: str, error: OSError, remedy: str) -> str:
    """Return what to do about a path: the variable that moves it, for one in the home directory that cannot be written to."""
    home = os.path.expanduser("~")
    hub = os.environ.get("HF_HOME") or os.path.join(home, ".cache", "huggingface")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
        if path.startswith((hub, os.path.join(home, ".cache", "huggingface"))):
            return ": set HF_HOME to a directory that this user can write to"
        if path.startswith((home + os.sep, "~")):
            return ": set HOME to a directory of this user" if error.errno != errno.ENOENT else ""
    return f": {remedy}" if remedy else ""


def _fail(error: ActscopeError | str, code: int) -> None:
    text = f"actscope: {error}"
    for given in sys.argv[1:]:  # a path or a name with a line break
        if "\n" in given:
            text = text.replace(given, one_line(given))
    print(paragraph(text), file=sys.stderr)
    sys.exit(code)
