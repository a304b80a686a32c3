"""A process with a `VllmReader` in it, and the test's side of that: vLLM changes much in the process where it runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from support.vllm.bed import Offline

from actscope.extraction.contract import Piece


class Reading(Offline):
    """`configuration.arguments` are the reader's, all but the model."""

    def command(self) -> list[str]:
        arguments = {"model": str(self.configuration.model)} | dict(self.configuration.arguments)
        return [sys.executable, "-m", "support.vllm.reading", json.dumps(arguments)]

    def read(self, pieces: Sequence[Piece]) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
        """(rows of each site as float32, labels, how many rows vLLM computed for them)."""
        words = [[p.text, p.number, p.token_ids.tolist(), p.wanted.tolist()] for p in pieces]
        path = self.directory / "rows.npz"
        computed = self.ask("read", pieces=words, into=str(path))
        with np.load(path) as file:
            rows = dict(file)
        return rows, rows.pop("labels"), computed


class Worker:
    """The jobs that the process takes; see `worker.serve`."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from actscope.extraction.vllm.reader import VllmReader

        self.reader = VllmReader(**arguments)

    def facts(self) -> dict[str, Any]:
        return asdict(self.reader.facts)

    def read(self, pieces: list[list[Any]], into: str) -> int:
        before = self._computed()
        given = [Piece(t, n, np.array(ids, np.int32), np.array(wanted, bool)) for t, n, ids, wanted in pieces]
        rows = self.reader.read(given)
        names = {site: values.float().numpy() for site, values in rows.values.items()}
        np.savez(into, allow_pickle=False, labels=rows.labels, **names)
        return self._computed() - before

    def lose(self, passes: int) -> None:
        """So many of the coming passes leave no rows in the ring, as when a GPU's copies do not keep up."""
        import actscope.extraction.vllm.reader as module

        module._PATIENCE_S = 0.2
        publisher = self._session()._observer._publisher
        rows_of = type(publisher)._raw_rows.__get__(publisher)
        left = passes

        def raw_rows(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            return rows_of(*arguments) if left < 0 else None

        publisher._raw_rows = raw_rows

    def close(self) -> dict[str, Any]:
        """Close it twice; what is left of it, and what was there before."""
        ring = self.reader._rings[0].name
        self.reader.close()
        self.reader.close()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/actscope" in line]
        runtime = os.listdir(os.environ["ACTSCOPE_RUNTIME_DIR"])
        return {"children": children, "maps": maps, "named": os.path.exists(f"/dev/shm/{ring}"), "runtime": runtime}

    def _session(self) -> Any:
        executor = self.reader._engine._engine.model_executor
        return executor.driver_worker.worker._actscope_session

    def _computed(self) -> int:
        return sum(ring.stats().rows for ring in self.reader._rings)


if __name__ == "__main__":
    from support.vllm.worker import answer, serve

    worker = Worker(json.loads(sys.argv[1]))
    answer({"result": worker.facts()})
    serve(worker)  # type: ignore[arg-type]
