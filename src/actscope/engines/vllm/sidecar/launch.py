"""`python -m actscope.engines.vllm.sidecar.launch FD`: starts a sidecar that is nobody's child, and returns at once.

vLLM ends by killing all descendants of its engine's process; a recording could never be finished by one of them. The sidecar
needs no parent: it ends when the socket does.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-m", "actscope.engines.vllm.sidecar", sys.argv[1]])
