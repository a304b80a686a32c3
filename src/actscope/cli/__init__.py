"""The command line: one file per command. The docstring of a command is its help text.

Exit codes: 0 success; 1 a check failed; 2 bad input or settings; 3 no engine answers; 130 interrupted (Ctrl-C); 143 ended by
SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from actscope.errors import ActscopeError, MissingExtra, UpstreamError
from actscope.extras import extra_of
from actscope.runtime.printable import one_line, paragraph


def main() -> None:
    """Run the command line. An `ActscopeError` becomes one message on standard error and an exit code."""
    with _ending_like_ctrl_c(signal.SIGTERM, signal.SIGHUP):
        _main()


def _main() -> None:
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


@contextmanager
def _ending_like_ctrl_c(*numbers: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt at these signals, so that a command cleans up and says what is kept; the exit code is 128 + number.

    Without it, `kill`, systemd, a container's stop or a job's time limit would leave temporary files. A signal that is ignored
    (nohup), or that somebody handles, stays so.
    """
    came: list[int] = []

    def handle(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    ours = [number for number in numbers if here and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    except SystemExit as ended:
        if came and ended.code == 130:
            sys.exit(128 + came[0])
        raise
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


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
