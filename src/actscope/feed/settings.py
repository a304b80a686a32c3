"""Every setting of the feed, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from actscope.errors import SettingsError
from actscope.serving.settings import ServingSettings

#: Bytes of one value, by the dtype's name.
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ENGINES = ("hf", "vllm")
MASKS = ("special", "bos", "none")


@dataclass(frozen=True, slots=True)
class FeedSettings(ServingSettings):
    """What is read, how much of it is held, in which order it is served, and to whom."""

    port: int = 6970
    """Port to listen on; 0 takes a free one."""
    model: str = "actscope/builtin"
    """Hugging Face id, local directory, or actscope/builtin."""
    engine: str = "hf"
    """What runs the model: hf (transformers) or vllm."""
    dataset: str = "builtin"
    """What is read: builtin, a file or directory, or a Hugging Face dataset id (`id:config`)."""
    split: str = "train"
    """Split of the dataset."""
    column: str = "text"
    """Column of the dataset that has the text."""
    texts: int = 0
    """Read only the first so many texts; 0 reads all."""
    sites: str = "middle"
    """Where rows are read: the grammar of `actscope.sites`. All must have the same width."""
    width: int = 0
    """Width that rows are expected to have; 0 takes the model's. Another width is refused."""
    dtype: str = "float32"
    """What rows are held and served in: float32, bfloat16 or float16."""
    model_dtype: str = "auto"
    """What the model computes in: auto, float32, bfloat16 or float16. auto is the engine's choice: of hf the checkpoint's own
    on a GPU and float32 on a CPU, of vllm its own, which is half precision for float32 checkpoints."""
    context: int = 256
    """Longest piece of a text that the model reads at once, in tokens; longer texts are cut."""
    mask: str = "special"
    """Tokens whose rows are left out: special (BOS, EOS and the like), bos, or none. Padding never has rows."""
    batch_tokens: int = 8192
    """Tokens that the model reads at once, padding included."""
    chunk_texts: int = 256
    """Texts that are cut, sorted by length and read together. Part of the order's definition."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    threads: int = 0
    """CPU threads of the model; 0 leaves it to torch."""
    buffer_rows: int = 1 << 20
    """Rows of the whole buffer, over all windows."""
    windows: int = 2
    """Parts of the buffer: one is filled while others are served. Rows are shuffled inside a window."""
    serves: int = 1
    """How often a row may be served to a group before it is replaced."""
    seed: int = 0
    """What the order of texts and of rows derives from."""
    shuffle: bool = True
    """Whether texts and rows are shuffled at all."""
    epochs: int = 0
    """Passes over the dataset; 0 goes on for ever, each time in another order."""
    resume: str = ""
    """Where to begin: a position as it comes with every answer, `seed:epoch:cursor`, perhaps `@chunk+skip`."""
    state: str = ""
    """File that always says how far the feed has come; a feed that starts with it goes on there."""
    max_samples: int = 65536
    """Most rows that one request may ask for."""
    max_json_samples: int = 4096
    """Most rows that one request may ask for as JSON."""
    max_json_values: int = 1 << 20
    """Most values of all these rows together: making JSON of more would hold everybody up."""
    wait_seconds: float = 60.0
    """Longest that a request may ask to wait for rows."""
    lease_seconds: float = 60.0
    """A consumer on the same machine that is silent for so long loses the rows that it holds."""
    max_groups: int = 16
    """Groups of consumers at once. Within a group each row goes to one; every group gets all."""
    group_seconds: float = 600.0
    """A group that takes nothing for so long is forgotten if another waits for the windows that it holds up."""
    max_consumers: int = 128
    """Consumers on the same machine at once."""
    max_requests: int = 64
    """Requests for rows that are answered at once; more are answered with 429."""
    heartbeat_seconds: float = 30.0
    """A generator that is silent for so long is killed and started again. At least 3."""
    stall_seconds: float = 1800.0
    """A generator that makes no headway with a window for so long is killed and started again, although it lives."""
    max_restarts: int = 5
    """Generators that may die in a row, without having filled a window between, before the feed gives up."""
    huge_pages: bool = True
    """Ask for huge pages, where the kernel has them for shared memory."""
    numa: str = "auto"
    """Where the buffer's pages lie: auto (spread over the nodes where there are several) or local."""

    def __post_init__(self) -> None:
        self.check_serving()
        self._check_choice("engine", ENGINES)
        self._check_choice("mask", MASKS)
        self._check_choice("dtype", tuple(ITEM_BYTES))
        self._check_choice("model_dtype", ("auto", *ITEM_BYTES))
        self._check_choice("numa", ("auto", "local"))
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise SettingsError(f"feed {name}: expected at least {least}, found {getattr(self, name)}")
        if self.buffer_rows < self.windows:
            raise SettingsError(f"feed buffer_rows: expected at least one for each of {self.windows} windows")
        for name in ("model", "dataset", "sites", "split", "column"):
            if not getattr(self, name).strip():
                raise SettingsError(f"feed {name}: expected a name, found nothing")

    def _check_choice(self, name: str, known: tuple[str, ...]) -> None:
        if getattr(self, name) not in known:
            raise SettingsError(f"feed {name} {getattr(self, name)!r}: expected one of {', '.join(known)}")

    @property
    def window_rows(self) -> int:
        """Rows of one window."""
        return self.buffer_rows // self.windows

    @property
    def most_rows(self) -> int:
        """How many rows one request may ask for: more than a window's could wait for ever."""
        return min(self.max_samples, self.window_rows * self.serves)

    @property
    def item_bytes(self) -> int:
        """Bytes of one value."""
        return ITEM_BYTES[self.dtype]


_LEAST = {
    "width": 0, "texts": 0, "context": 2, "batch_tokens": 1, "chunk_texts": 1, "threads": 0, "windows": 2, "serves": 1, "seed": 0,
    "epochs": 0, "max_samples": 1, "max_json_samples": 1, "max_json_values": 1, "wait_seconds": 0, "lease_seconds": 0.05,
    "group_seconds": 0.05, "max_groups": 1, "max_consumers": 1, "max_requests": 1, "heartbeat_seconds": 3, "stall_seconds": 1,
    "max_restarts": 0, "buffer_rows": 1,
}  # fmt: skip
