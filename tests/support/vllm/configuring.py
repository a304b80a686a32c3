"""A process that only makes vLLM's configuration, once for each case that it is given, as `vllm serve` does before anything else.

argv: a model's directory, and JSON [{"config": additional_config, "env": {...}, "arguments": {...}}].
stdout: JSON, one answer for each.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def configure(model: str, config: dict[str, Any], env: dict[str, str], arguments: dict[str, Any]) -> dict[str, Any]:
    from vllm.engine.arg_utils import EngineArgs

    lines = Lines()
    for name in [name for name in os.environ if name.startswith("ACTSCOPE_") and name != "ACTSCOPE_RUNTIME_DIR"]:
        del os.environ[name]
    os.environ.update(env)
    logging.getLogger("actscope").addHandler(lines)
    try:
        made = EngineArgs(
            model=model, dtype="float32", max_model_len=64, additional_config=config, **arguments
        ).create_engine_config()
    except Exception as error:  # what a user sees
        return {"error": f"{type(error).__name__}: {error}", "log": lines.lines}
    finally:
        logging.getLogger("actscope").removeHandler(lines)
        for name in env:
            del os.environ[name]
    return {"hash": made.compute_hash(), "additional": made.additional_config, "log": lines.lines,
            "worker_cls": made.parallel_config.worker_cls,
            "settings": json.loads(os.environ["ACTSCOPE_VLLM_SETTINGS"])}  # fmt: skip


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    cases = json.loads(sys.argv[2])
    json.dump([configure(sys.argv[1], case["config"], case["env"], case["arguments"]) for case in cases], answers)
    answers.close()
