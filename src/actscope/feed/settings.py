"""All settings of the feed, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from actscope.errors import SettingsError
from actscope.near_miss import hinted_class
from actscope.serving.settings import ServingSettings

#: Bytes of one value, by the dtype's name.
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@hinted_class
@dataclass(frozen=True, slots=True)
class FeedSettings(ServingSettings):
    """Source, order, buffer and consumers of a feed.

    Raises:
        SettingsError: A value is out of range or unknown.
    """

    port: int = 6970
    """Port to listen on. 0 chooses a free port."""
    model: str = "actscope/builtin"
    """Hugging Face id, directory, GGUF file, actscope/smollm2 or actscope/builtin."""
    engine: Literal["hf", "vllm"] = "hf"
    """Library that runs the model: hf (transformers) or vllm."""
    dataset: str = "builtin"
    """Source of the texts: builtin, a file, directory or glob, or a Hugging Face dataset id (ID or ID:CONFIG)."""
    split: str = "train"
    """Split of the dataset."""
    column: str = "text"
    """Column of the dataset that contains the text."""
    texts: int = 0
    """Number of texts to read from the start of the dataset. 0 reads all."""
    sites: str = "middle"
    """Sites to read, e.g. middle, 12, first,middle,last or 8.mlp_out. All must have the same width."""
    width: int = 0
    """Expected width of the rows. The feed refuses to start with another width. 0 accepts the model's."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype in which rows are held and served."""
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype in which the model computes. auto with hf: the checkpoint's on a GPU, float32 on a CPU. auto with vllm: vLLM's own
    choice, a half precision for float32 checkpoints."""
    trust_remote_code: bool = False
    """Run Python code from the checkpoint, with your rights. Needed for models that transformers has no class for."""
    context: int = 256
    """Maximum number of tokens that the model reads at once. Longer texts are cut into pieces."""
    mask: Literal["special", "bos", "none"] = "special"
    """Tokens without rows: special (BOS, EOS and the like), bos, or none. Padding never has rows."""
    batch_tokens: int = 8192
    """Number of tokens in one forward pass, padding included."""
    chunk_texts: int = 256
    """Number of texts that are cut, sorted by length and read together. Part of the order's definition."""
    device: str = "auto"
    """Device of the model: auto, cpu, cuda, cuda:1 ..."""
    threads: int = 0
    """CPU threads of the model. 0 uses torch's default."""
    buffer_rows: int = 1 << 20
    """Size of the buffer over all windows: rows (65536, 64k, 1M, 2e6), bytes (300GB) or a share of the memory (75%)."""
    windows: int = 2
    """Number of parts of the buffer. One is filled while others are served. Rows are shuffled within a window."""
    serves: int = 1
    """Number of times that a row is served to a group before it is replaced."""
    seed: int = 0
    """Seed of the order of texts and rows."""
    shuffle: bool = True
    """Shuffle texts and rows."""
    epochs: int = 0
    """Number of passes over the dataset, each in another order. 0: no end."""
    resume: str = ""
    """Position to start at, as every answer states it: seed:epoch:cursor, optionally followed by @chunk+skip."""
    state: str = ""
    """File in which the feed keeps its position. A feed that starts with the file continues there."""
    max_samples: int = 65536
    """Maximum number of rows in one request."""
    max_json_samples: int = 4096
    """Maximum number of rows in one JSON request."""
    max_json_values: int = 1 << 20
    """Maximum number of values in one JSON request. Encoding more would delay all other requests."""
    wait_seconds: float = 60.0
    """Maximum time that a request may wait for rows."""
    lease_seconds: float = 60.0
    """Time without a sign of life after which a consumer on the same machine loses the rows that it holds."""
    max_groups: int = 16
    """Maximum number of consumer groups. Each row goes to one consumer of a group, and every group gets all rows."""
    group_seconds: float = 600.0
    """Time without a request after which a group is removed if it blocks the windows that another group waits for."""
    max_consumers: int = 128
    """Maximum number of consumers on the same machine."""
    max_requests: int = 64
    """Maximum number of concurrent requests for rows. Further ones are answered with 429."""
    heartbeat_seconds: float = 30.0
    """Time without a heartbeat after which the generator process is killed and restarted, at least 3."""
    stall_seconds: float = 1800.0
    """Time without progress on a window after which a live generator process is killed and restarted."""
    max_restarts: int = 5
    """Maximum number of generator failures in a row, without a full window between them, before the feed gives up."""
    huge_pages: bool = True
    """Request huge pages, where the kernel supports them for shared memory."""
    numa: Literal["auto", "local"] = "auto"
    """NUMA placement of the buffer: auto (interleaved over the nodes, if there are several) or local."""

    def __post_init__(self) -> None:
        self.check_serving()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(f"feed {name} {getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise SettingsError(f"feed {name}: expected at least {least}, found {getattr(self, name)}")
        if self.buffer_rows < self.windows:
            raise SettingsError(f"feed buffer_rows: expected at least one for each of {self.windows} windows")
        for name in ("model", "dataset", "sites", "split", "column"):
            if not getattr(self, name).strip():
                raise SettingsError(f"feed {name}: expected a name, found nothing")

    @property
    def window_rows(self) -> int:
        """Return the number of rows of one window."""
        return self.buffer_rows // self.windows

    @property
    def most_rows(self) -> int:
        """Return the maximum number of rows in one request. More rows than a window serves might never be ready at once."""
        return min(self.max_samples, self.window_rows * self.serves)

    @property
    def item_bytes(self) -> int:
        """Return the bytes of one value."""
        return ITEM_BYTES[self.dtype]


_CHOICES = {name: get_args(kind) for name, kind in get_type_hints(FeedSettings).items() if get_origin(kind) is Literal}
_LEAST = {
    "width": 0, "texts": 0, "context": 2, "batch_tokens": 1, "chunk_texts": 1, "threads": 0, "windows": 2, "serves": 1, "seed": 0,
    "epochs": 0, "max_samples": 1, "max_json_samples": 1, "max_json_values": 1, "wait_seconds": 0, "lease_seconds": 0.05,
    "group_seconds": 0.05, "max_groups": 1, "max_consumers": 1, "max_requests": 1, "heartbeat_seconds": 3, "stall_seconds": 1,
    "max_restarts": 0, "buffer_rows": 1,
}  # fmt: skip
