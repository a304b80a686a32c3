"""Checks of a model's directory before transformers opens it: the sizes of its config against the headers of its weights.

transformers builds one Python object or more for each layer that `config.json` asks for, before it looks at the weights. Only
headers of safetensors files are read here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from actscope.errors import EngineError
from actscope.runtime.decoding import decode_json
from actscope.runtime.regular_files import open_regular, read_regular

#: Layers and experts of any model. The largest published ones have about 130 layers and 512 experts.
MAX_LAYERS, MAX_EXPERTS = 10_000, 4096
_MOST_CONFIG_BYTES = 16 << 20
#: The limit of the package safetensors for a header.
_MOST_HEADER_BYTES = 100_000_000
_LAYERS = frozenset(("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
_EXPERTS = frozenset(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_shared_experts"))
_SIZES = frozenset(("hidden_size", "n_embd", "d_model", "intermediate_size", "vocab_size", "n_positions"))
#: Parts of a multimodal model's config that are of its language model. Weights of other parts may be left out.
_TEXT = frozenset(("text_config", "llm_config"))
#: Weights that quantized checkpoints pack into one number: 8 of 4 bits in an int32.
_PACKED = 8
_NUMBERED = re.compile(r"^(.*?)\.(\d{1,6})\.")


def check_checkpoint(directory: Path) -> None:
    """Compare the sizes in a model directory's config.json with limits, and with its weights if they are safetensors files.

    Raises:
        EngineError: config.json is absent or no JSON object, has more layers or wider ones than the weights, or a header of the
            weights is malformed. It names the file, the field, what was expected and what was found.
    """
    path = directory / "config.json"
    try:
        config = decode_json(
            read_regular(path, _MOST_CONFIG_BYTES, EngineError),
            dict[str, object],
            EngineError,
            f"{path}: no valid config",
        )
    except FileNotFoundError as error:
        raise EngineError(
            f"{path}: no such file: expected a directory with config.json, weights and a tokenizer"
        ) from error
    shapes = dict(_shapes(directory))
    layers, widest = _layers_of(shapes), max((max(shape, default=1) for shape in shapes.values()), default=None)
    for name, value, in_text in _numbers(config):
        most, why = None, ""
        if name in _LAYERS:
            most, why = (layers, " as in the weights") if layers and in_text else (MAX_LAYERS, "")
        elif name in _EXPERTS:
            most = MAX_EXPERTS
        elif name in _SIZES and widest is not None:
            most, why = widest * _PACKED, f" with weights whose longest side is {widest:,}"
        if most is not None and value > most:
            raise EngineError(
                f"{path}: {name}: expected at most {most:,}{why}, found {_short(value)}: correct it, or download the model again"
            )


def _short(value: int) -> str:
    return f"{value:,}" if value < 1 << 64 else "a number above 2^64"


def _numbers(config: Mapping[str, object], *, in_text: bool = True, depth: int = 0) -> Iterator[tuple[str, int, bool]]:
    """Yield name, value and whether it is the language model's, of the integers of a config and of the configs in it."""
    for name, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield name, value, in_text
        elif isinstance(value, dict) and depth < 3:
            yield from _numbers(value, in_text=in_text and name in _TEXT, depth=depth + 1)


def _layers_of(shapes: Mapping[str, object]) -> int:
    """Return the number of layers of the longest stack in the weights: the count of numbers behind one prefix; 0 if none."""
    stacks: dict[str, set[str]] = defaultdict(set)
    for name in shapes:
        if found := _NUMBERED.match(name):
            stacks[found[1]].add(found[2])
    return max(map(len, stacks.values()), default=0)


def _shapes(directory: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the shape of each tensor in a directory's safetensors files, out of their headers."""
    for path in sorted(directory.glob("*.safetensors")):
        for name, entry in _header(path).items():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if name != "__metadata__" and isinstance(shape, list):
                yield name, [int(size) for size in shape if isinstance(size, int)]


def _header(path: Path) -> dict[str, object]:
    with open(open_regular(path, EngineError), "rb") as file:
        raw = file.read(8)
        length = int.from_bytes(raw, "little")
        size = path.stat().st_size
        if len(raw) < 8 or length > min(_MOST_HEADER_BYTES, size - 8):
            raise EngineError(
                f"{path}: expected a safetensors file, found a header of {length:,} bytes in {size:,}; download it again"
            )
        what = f"{path}: expected the header of a safetensors file; download it again"
        return decode_json(file.read(length), dict[str, object], EngineError, what)
