"""Settings of the engine process. They load without torch, for the process that starts it."""

from __future__ import annotations

from typing import Literal

import msgspec


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Model, probes, sizes and recording of an engine that runs transformers."""

    model: str
    """Hugging Face id, directory, GGUF file, actscope/smollm2 or actscope/builtin."""
    card_id: str
    """16 hex digits under which readers find the engine."""
    probes: tuple[str, ...] = ()
    """Directory of probe files to load at start. Repeatable. By default ./probes/MODEL, else those shipped with the model."""
    train_probes: bool = True
    """Train probes on the built-in text if there are none. They are trained once and cached."""
    device: str = "auto"
    """Device of the model: auto, cpu, cuda, cuda:1 ..."""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "float32", "bfloat16", "float16"] = "auto"
    """dtype in which the model computes: auto, float32, bfloat16 or float16 (also fp32, bf16, fp16). auto: the checkpoint's own
    on a GPU, float32 on a CPU."""
    trust_remote_code: bool = False
    """Run Python code from the checkpoint, with your rights. Needed for models that transformers has no class for."""
    threads: int = 0
    """CPU threads of the model. 0 uses torch's default."""
    max_batch: int = 32
    """Maximum number of sequences in one forward pass."""
    max_waiting: int = 1024
    """Maximum number of sequences that wait for a place in a pass, and of choices in one request. Further requests are answered
    with 429."""
    max_step_tokens: int = 2048
    """Maximum number of rows of one forward pass, padding included."""
    probe_width: int = 64
    """Maximum number of probes at a time."""
    ring_rows: int = 65536
    """Capacity of the score ring: the number of rows that a reader may lag behind."""
    owned: bool = True
    """End when standard input closes, that is, when the parent process ends."""
    record: str = ""
    """Recording to which marked requests are written. Created if it does not exist, else extended."""
    record_sites: str = "first,middle,last"
    """With a recording: sites to record, e.g. 0,7, first,middle,last or all."""
    record_codec: str = "lossless"
    """With a recording: codec of the rows, e.g. lossless, error_bounded:1e-3, svd:256, zstd or none."""
    flight_bytes: int = 10**9
    """With a recording: size of the flight recorder, which holds recent rows until they are marked or expire."""
    flight_seconds: float = 0.0
    """With a recording: maximum age of rows in the flight recorder. 0: no limit."""
    flight_dir: str = ""
    """With a recording: private directory for the rows of the flight recorder. By default they stay in memory."""
    triggers: tuple[str, ...] = ()
    """With a recording: rule that marks requests, e.g. 'probe danger > 3.2 before 20 tokens'. Repeatable."""
    sample: float = 0.0
    """With a recording: fraction of all requests to mark, 0 to 1, selected by a hash of their ids."""
