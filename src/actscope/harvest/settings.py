"""All settings that decide the rows of a harvest."""

from __future__ import annotations

from typing import Literal, get_args, get_origin, get_type_hints

import msgspec

from actscope.errors import SettingsError

#: Format of the shards.
Format = Literal["safetensors", "arrow"]


class HarvestSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Source, computation and form of the rows. All settings enter the plan, since they decide the bytes of the shards.

    Raises:
        SettingsError: A value is out of range or unknown, or values contradict each other.
    """

    model: str
    """Hugging Face id, directory, GGUF file, actscope/smollm2 or actscope/builtin."""
    dataset: str
    """Source of the texts: builtin, a file, directory or glob, the output of `save_to_disk`, or a Hugging Face dataset id (ID or
    ID:CONFIG)."""
    sites: str = "middle"
    """Sites to read, e.g. 0,7,15, first,middle,last, all or 19.mlp_out."""
    split: str = "train"
    """Split of the dataset."""
    column: str = "text"
    """Column of the dataset that contains the text."""
    texts: int | None = None
    """Number of texts to read, in the order that `seed` gives. By default all."""
    tokens: int | None = None
    """Approximate number of rows. A sample of the texts determines how many texts that takes. Excludes `texts`."""
    trust_remote_code: bool = False
    """Run Python code from the checkpoint, with your rights. Needed for models that transformers has no class for."""
    context: int = 256
    """Number of tokens that the model reads at once, at least 2. Longer texts are cut. Packed contexts have this length."""
    pack: bool = False
    """Join texts into full contexts instead of reading each on its own. Format arrow always does."""
    separator: Literal["bos", "eos", "none"] = "bos"
    """Token between two packed texts: bos (or CLS), eos (or SEP), or none. A tokenizer that lacks the one gives the other."""
    mask: Literal["auto", "special", "bos", "none"] = "auto"
    """Tokens without rows: special (BOS, EOS and the like), bos, or none. auto: special, and none for packed texts."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the rows. auto: the dtype in which the model computes."""
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype in which the model computes. auto: the checkpoint's own on a GPU, float32 on a CPU."""
    format: Format = "safetensors"
    """Format of the shards: safetensors, or arrow for `datasets` and SAELens. arrow stores bfloat16 as float32 (exact)."""
    columns: Literal["sites", "transformer_lens"] = "transformer_lens"
    """Column names of arrow: sites (layers.3.resid_post), or transformer_lens (blocks.3.hook_resid_post) where it has a name."""
    seed: int = 0
    """Seed of the order of the texts."""
    shuffle: bool = True
    """Shuffle the texts, so that each unit is a random sample of the dataset."""
    unit_texts: int = 1024
    """Number of texts of a unit of work, whose rows are one shard. A worker holds the rows of a unit in memory, and computes them
    again after a crash."""
    reader: Literal["hf", "vllm"] = "hf"
    """Library that runs the model: hf (transformers) or vllm."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda. A worker that sees several GPUs uses the first."""
    threads: int = 1
    """CPU threads of a worker's model. Part of the plan: the last bits of a sum depend on them."""
    batch_tokens: int = 8192
    """Number of tokens in one forward pass, padding included."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"{name} {value}: expected at least {least}")
        if self.texts is not None and self.tokens is not None:
            raise SettingsError(f"texts {self.texts} and tokens {self.tokens}: set only one of them")
        if self.is_packed and self.mask in ("special", "bos") and self.format == "arrow":
            raise SettingsError(
                f"mask {self.mask}: arrow stores whole contexts and cannot omit tokens; use safetensors"
            )

    @property
    def is_packed(self) -> bool:
        """Return whether texts are joined into full contexts."""
        return self.pack or self.format == "arrow"

    @property
    def masked(self) -> str:
        """Return the mask that applies: `mask`, or its default."""
        return self.mask if self.mask != "auto" else "none" if self.is_packed else "special"


_CHOICES = {
    name: get_args(kind) for name, kind in get_type_hints(HarvestSettings).items() if get_origin(kind) is Literal
}
_LEAST = {"texts": 1, "tokens": 1, "context": 2, "unit_texts": 1, "threads": 1, "batch_tokens": 1}
