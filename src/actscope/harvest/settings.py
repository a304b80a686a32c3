"""What a harvest is asked to be."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from actscope.errors import SettingsError

Format = Literal["safetensors", "arrow"]
Separator = Literal["bos", "eos", "none"]
Columns = Literal["sites", "transformer_lens"]

#: Texts of a unit, where nothing is said.
UNIT_TEXTS = 1024


class HarvestSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is harvested, and how rows are computed. All of it is in the plan: it decides the bytes of the shards."""

    model: str
    """Hugging Face id, a local directory, or actscope/builtin."""
    dataset: str
    """builtin, a file or folder of texts, or a dataset of the hub; see docs/harvest.md."""
    sites: str
    """Which sites: e.g. 0,7,15, first,middle,last, all, 19.mlp_out."""
    split: str = "train"
    """The dataset's split."""
    column: str = "text"
    """The dataset's column of texts."""
    texts: int | None = None
    """Only so many texts, of the order that `seed` gives; None takes all."""
    tokens: int | None = None
    """About so many rows: as many texts as a sample of them says. Not together with `texts`."""
    context: int = 256
    """Tokens that the model reads at once: of a text that is longer, several pieces; of packed texts, exactly so many."""
    pack: bool = False
    """Texts one after the other in contexts that are full, instead of each on its own. `arrow` always packs."""
    separator: Separator = "bos"
    """With pack: the token between two texts, as far as the tokenizer has it."""
    mask: str = ""
    """Which tokens give no row: special, bos or none. "" is special, and none where texts are packed."""
    dtype: str = "auto"
    """Of the rows: float32, bfloat16 or float16; auto is what the model computes in."""
    model_dtype: str = "auto"
    """What the model computes in; auto is the checkpoint's own on a GPU, float32 on a CPU."""
    format: Format = "safetensors"
    """safetensors, or arrow for `datasets` and SAELens. arrow has no bfloat16: such rows are stored as float32, exactly."""
    columns: Columns = "transformer_lens"
    """How arrow names its columns: as sites, or as TransformerLens names the hook, where it has one for the site."""
    seed: int = 0
    """Of the order of the texts."""
    shuffle: bool = True
    """Whether units take texts in a shuffled order, so that each is a sample of the dataset."""
    unit_texts: int = UNIT_TEXTS
    """Texts of a unit: what is claimed, computed, published and, after a crash, repeated at once. A unit is held in memory."""
    reader: str = "hf"
    """What runs the model: hf (transformers) or vllm."""
    device: str = "auto"
    """auto, cpu or cuda. Workers that see several GPUs take the first."""
    threads: int = 1
    """CPU threads of a worker's model. The last bits of a sum depend on them, so the plan fixes them."""
    batch_tokens: int = 8192
    """Tokens of one forward pass, padding included."""

    def __post_init__(self) -> None:
        _check_choice("format", self.format, get_args(Format))
        _check_choice("separator", self.separator, get_args(Separator))
        _check_choice("columns", self.columns, get_args(Columns))
        _check_choice("mask", self.mask, ("", "special", "bos", "none"))
        for name in ("texts", "tokens", "unit_texts", "threads", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} {value}: expected at least 1")
        if self.texts is not None and self.tokens is not None:
            raise SettingsError(f"texts {self.texts} and tokens {self.tokens}: a harvest is bounded by one of them")
        if self.is_packed and self.mask in ("special", "bos") and self.format == "arrow":
            raise SettingsError(
                f"mask {self.mask}: arrow holds whole contexts, and leaves no token out; use safetensors"
            )

    @property
    def is_packed(self) -> bool:
        return self.pack or self.format == "arrow"

    @property
    def masked(self) -> str:
        """The mask that is in force."""
        return self.mask or ("none" if self.is_packed else "special")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name} {value!r}: expected one of {', '.join(choices)}")
