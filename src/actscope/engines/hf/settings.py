"""Settings of an engine process. Importing them does not import torch."""

from __future__ import annotations

import msgspec


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of an engine process, passed to it as JSON.

    Attributes:
        model: A Hugging Face id, a directory, or `actscope/builtin`.
        card_id: Id of the engine's card, 16 hex digits.
        probes: Directories whose probes are loaded at start.
        train_probes: If no probes are given, use the model's default probes; train them on the built-in text if there are none.
        device: Device of the model; "auto" is a GPU if there is one.
        dtype: Element type of the model; "auto" is the checkpoint's own on a GPU and float32 on a CPU.
        threads: CPU threads of the model; 0 for torch's default.
        max_batch: Maximum number of sequences in a batch.
        max_step_tokens: Maximum number of rows of one pass, padding included.
        probe_width: Number of probe slots.
        ring_rows: Rows kept in the ring of scores.
        owned: Exit when standard input closes, that is when the parent exits.
        record: Directory of the recording for marked requests; "" for none.
        record_sites: Selection of the sites to record.
        record_codec: Codec of the recording.
        flight_bytes: Maximum size of the flight recorder's recent rows, in bytes.
        flight_seconds: Maximum age of recent rows, in seconds; 0 for no limit.
        flight_dir: Directory for recent rows; "" keeps them in memory.
        triggers: Rules that mark requests.
        sample: Share of requests to mark, 0 to 1.
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
