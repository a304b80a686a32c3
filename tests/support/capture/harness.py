"""A recorder in memory, plain hooks to compare with, and tiny models that are not decoders."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from support.hf.tiny import ARCHITECTURES, tiny
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from actscope.frames import RowFlag, RowSink, SpanFlag, Step

VOCABULARY = 258
MODELS = (*ARCHITECTURES, "bert")


def model_of(architecture: str) -> Any:
    """A tiny random model of 4 layers and width 64; `bert` is an encoder."""
    if architecture != "bert":
        return tiny(architecture).model
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    model = BertForMaskedLM(config)
    model.eval()  # type: ignore[no-untyped-call]
    return model.requires_grad_(False)


class MemoryRecorder(RowSink):
    """Keeps the rows of complete steps by request and position, as a reader of a recording would give them."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.incomplete: list[Step] = []
        self.computed: dict[tuple[str, str], list[tuple[int, int, int, Tensor]]] = defaultdict(list)
        self.tokens: list[tuple[str, int, int, str]] = []
        self.texts: Any = None
        self.closed = False
        self.on_put: Callable[[str], None] = lambda site: None
        self._open: dict[int, list[tuple[str, Tensor]]] = {}
        self._lock = threading.Lock()

    def begin(self, step: Step) -> None:
        with self._lock:
            assert step.number not in self._open
            self._open[step.number] = []

    def put(self, step: Step, site: str, rows: Tensor) -> bool:
        self.on_put(site)
        assert rows.device.type == "cpu"
        assert rows.is_contiguous()
        assert not rows.requires_grad
        assert rows.ndim == 2
        assert len(rows) == step.n_rows
        with self._lock:
            self._open[step.number].append((site, rows))
        return True

    def end(self, step: Step, complete: bool = True) -> None:
        with self._lock:
            put = self._open.pop(step.number)
            if not complete:
                self.incomplete.append(step)
                return
            self.steps.append(step)
            for site, rows in put:
                self._label(step, site, rows)

    def _label(self, step: Step, site: str, rows: Tensor) -> None:
        assert sum(span.n_rows for span in step.spans) == len(rows) == len(step.meta)
        for i, span in enumerate(step.spans):
            for r in range(span.offset, span.offset + span.n_rows):
                meta = step.meta[r]
                assert meta["span"] == i
                assert meta["step"] == step.number
                label = (int(meta["position"]), int(meta["token_id"]), int(meta["flags"]))
                self.computed[span.request, site].append((*label, rows[r]))

    def record_token(self, request: str, position: int, token_id: int, text: str = "") -> None:
        self.tokens.append((request, position, token_id, text))

    def close(self) -> None:
        assert not self._open
        self.closed = True

    @property
    def requests(self) -> list[str]:
        """In the order in which they began."""
        return list(dict.fromkeys(span.request for step in self.steps for span in step.spans if span.n_rows))

    @property
    def ended(self) -> list[str]:
        return [span.request for step in self.steps for span in step.spans if span.flags & SpanFlag.END]

    def newest(self, request: str, site: str) -> dict[int, tuple[int, int, Tensor]]:
        """position -> (token id, flags, row), each as it was computed last."""
        return {position: (token, flags, row) for position, token, flags, row in self.computed[request, site]}

    def rows(self, request: str, site: str) -> Tensor:
        """[n, d] in the order of positions, which must be 0, 1, 2 ..."""
        newest = self.newest(request, site)
        assert sorted(newest) == list(range(len(newest)))
        return torch.stack([newest[position][2] for position in range(len(newest))])

    def ids(self, request: str, site: str) -> list[int]:
        return [token for _, (token, _, _) in sorted(self.newest(request, site).items())]

    def flags(self, request: str, site: str) -> list[RowFlag]:
        return [RowFlag(flags) for _, (_, flags, _) in sorted(self.newest(request, site).items())]


@contextmanager
def plain_hooks(places: dict[str, tuple[nn.Module, str]]) -> Iterator[dict[str, list[Tensor]]]:
    """What passes these modules, by their plainest hooks: name -> [tensor of each run]."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for name, (module, side) in places.items():

        def after(m: nn.Module, args: Any, output: Any, name: str = name) -> None:
            found[name].append((output[0] if isinstance(output, tuple) else output).clone())

        def before(m: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            found[name].append((args[0] if args else kwargs["hidden_states"]).clone())

        if side == "out":
            handles.append(module.register_forward_hook(after))
        else:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]


def padded(texts: list[list[int]], *, left: bool, pad: int = 0) -> dict[str, Tensor]:
    """input_ids and attention_mask of a batch."""
    width = max(map(len, texts))
    ids, mask = torch.full((len(texts), width), pad), torch.zeros(len(texts), width, dtype=torch.long)
    for i, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        ids[i, place], mask[i, place] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}
