"""`python -m actscope.engines.vllm.sidecar.launch FD`: starts a detached sidecar and returns at once.

vLLM kills all descendants of its engine's process when it ends, so a descendant could never finish a recording. The sidecar
needs no parent: it ends when the socket closes.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-m", "actscope.engines.vllm.sidecar", sys.argv[1]])
