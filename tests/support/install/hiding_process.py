"""A process in which some packages cannot be found, and which runs commands: each in a fork, so that Python starts once.

    python hiding_process.py '{"hidden": ["torch"], "runs": [{"words": ["doctor"], "until": ""}, {"code": "import actscope"}]}'

Prints a JSON list with the output and the exit code of each. A run with `until` is interrupted when it has printed that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_LOOK_S, _LONGEST_S = 0.02, 100.0


def hide(names: set[str]) -> None:
    """Make packages as good as not installed: neither `import` nor `find_spec` finds them."""

    class Blind(PathFinder):
        @classmethod
        def find_spec(
            cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            return None if fullname.partition(".")[0] in names else super().find_spec(fullname, path, target)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Blind


def run(what: dict[str, Any]) -> dict[str, Any]:
    """Run a command or code in a fork, and return its exit code and its output."""
    with tempfile.TemporaryFile("w+b") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            _child(what)
        code = _wait(child, output.fileno(), what.get("until", "").encode())
        output.seek(0)
        return {"code": code, "output": output.read().decode(errors="replace")}


def _child(what: dict[str, Any]) -> None:
    code: Any = 0
    try:
        if "code" in what:
            exec(what["code"], {})
        else:
            from actscope.cli import main

            sys.argv = ["actscope", *what["words"]]
            main()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _wait(child: int, output: int, until: bytes) -> int:
    end, told = time.monotonic() + _LONGEST_S, False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if until and not told and until in os.pread(output, 1 << 20, 0):
            os.kill(child, signal.SIGINT)
            told = True
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    order = json.loads(sys.argv[1])
    hide(set(order["hidden"]))
    import_module("actscope.cli.app")  # once, for all forks
    print(json.dumps([run(what) for what in order["runs"]]))
