"""Running an engine in the test's own process, and putting its frames back together by request."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch

from actscope.engines.hf.engine import Engine, EngineOptions
from actscope.engines.hf.loading import LoadedModel
from actscope.engines.hf.request import Output, Request, Sampling
from actscope.frames import SCORES, Frame, ListSink, Step
from actscope.probes import ACTIVATIONS, Probe, ProbeInfo


class Harness:
    """An engine with a list for a sink; outputs are gathered by request and can be waited for."""

    def __init__(self, loaded: LoadedModel, **options: Any) -> None:
        self.sink = ListSink()
        self.outputs: dict[str, list[Output]] = defaultdict(list)
        self._changed = threading.Condition()
        self.engine = Engine(
            loaded,
            sink=self.sink,
            deliver=self._deliver,
            probes=options.pop("probes", ()),
            on_table=options.pop("on_table", None),
            options=EngineOptions(**options),
        )

    def after_step(self, number: int, do: Callable[[], None]) -> None:
        """Have the model's own thread do something right after it has published a step."""
        write = self.sink.write

        def write_and_do(step: Step, frames: list[Frame]) -> None:
            write(step, frames)
            if step.number == number and step.n_rows:
                do()

        self.engine._sink.write = write_and_do  # type: ignore[method-assign]

    def __enter__(self) -> Harness:
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def _deliver(self, outputs: list[Output]) -> None:
        with self._changed:
            for output in outputs:
                self.outputs[output.request].append(output)
            self._changed.notify_all()

    def submit(self, name: str, prompt: Sequence[int], **sampling: Any) -> None:
        params = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 12} | sampling
        self.engine.submit(Request(name, list(prompt), Sampling(**params)))

    def wait_tokens(self, name: str, n: int, timeout_s: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ids(name)) >= n or self._ended(name), timeout_s)

    def wait_end(self, *names: str, timeout_s: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: all(map(self._ended, names)), timeout_s), dict(self.outputs)

    def run(self, prompts: Mapping[str, Sequence[int]], **sampling: Any) -> None:
        for name, prompt in prompts.items():
            self.submit(name, prompt, **sampling)
        self.wait_end(*prompts)

    def _ended(self, name: str) -> bool:
        return bool(self.outputs[name]) and self.outputs[name][-1].finish_reason is not None

    def ids(self, name: str) -> list[int]:
        return [token for output in self.outputs[name] for token in output.token_ids]

    def text(self, name: str) -> str:
        return "".join(output.text for output in self.outputs[name])

    def rows(self, name: str) -> dict[int, tuple[int, dict[str, np.ndarray]]]:
        """position -> (token id, {site: row}); a position that comes twice is an error."""
        found: dict[int, tuple[int, dict[str, np.ndarray]]] = {}
        for step, frames in self.sink.steps:
            for i, span in enumerate(step.spans):
                if span.request != name:
                    continue
                for r in range(span.offset, span.offset + span.n_rows):
                    meta = step.meta[r]
                    position = int(meta["position"])
                    assert meta["span"] == i
                    assert position == span.first_position + r - span.offset
                    assert position not in found
                    found[position] = (
                        int(meta["token_id"]),
                        {f.site: torch.as_tensor(f.rows[r]).float().numpy() for f in frames},
                    )
        return found

    def scores(self, name: str) -> np.ndarray:
        """[positions, width], in order of position."""
        return np.stack([rows[SCORES] for _, (_, rows) in sorted(self.rows(name).items())])


def random_prompts(lengths: Sequence[int], seed: int = 0) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {f"r{i}": rng.integers(0, 256, size=n).tolist() for i, n in enumerate(lengths)}


def random_probes(n_layers: int = 4, d: int = 64) -> list[Probe]:
    """One probe of each activation on each layer."""
    rng = np.random.default_rng(1)
    return [
        Probe(
            ProbeInfo(id=f"{name}{layer}", site=f"layers.{layer}.resid_post", activation=name, bias=0.1, jump=0.2),
            (rng.normal(size=d) / 8).astype(np.float32),
        )
        for layer in range(n_layers)
        for name in ACTIVATIONS
    ]


def hidden_states(loaded: LoadedModel, ids: Sequence[int]) -> list[np.ndarray]:
    """A plain run's `output_hidden_states`: [n_layers + 1] of float32 [n, d]."""
    with torch.no_grad():
        out = loaded.model(torch.tensor([list(ids)]), output_hidden_states=True)
    return [h[0].float().numpy() for h in out.hidden_states]
