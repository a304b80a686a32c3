"""How an engine process is to run: read by the process that starts it, without loading torch."""

from __future__ import annotations

import msgspec


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`model`: a Hugging Face id, a directory, or `actscope/builtin`. `card_id`: 16 hex digits under which readers find it.

    `probes`: directories whose probes are loaded at start. `train_probes`: train
    some on the built-in text first, unless that was done before. `threads`: CPU threads of the model, 0 for torch's own choice.
    `owned`: end when standard input closes, that is when the parent dies.

    `record`: directory of the recording that marked requests go to, "" for none; then `record_sites` (a selection) are
    recorded with `record_codec`. What is recent stays in memory, or in files in `flight_dir`, up to `flight_bytes` and
    `flight_seconds` (0: no limit of time). `triggers` are rules and `sample` a share of requests that mark by themselves.
    """

    model: str
    card_id: str
    probes: tuple[str, ...] = ()
    train_probes: bool = False
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    max_batch: int = 32
    max_step_tokens: int = 2048
    probe_width: int = 64
    ring_rows: int = 65536
    owned: bool = True
    record: str = ""
    record_sites: str = "first,middle,last"
    record_codec: str = "lossless"
    flight_bytes: int = 1 << 30
    flight_seconds: float = 0.0
    flight_dir: str = ""
    triggers: tuple[str, ...] = ()
    sample: float = 0.0
