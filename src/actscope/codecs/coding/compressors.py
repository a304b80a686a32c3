"""zstd and lz4 decompression to a known size: a payload cannot cause larger allocations than the caller expects."""

from __future__ import annotations

import threading
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from actscope.errors import CodecError, MissingExtra

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor

Buffer = bytes | memoryview
_per_thread = threading.local()
#: A byte of an lz4 block stands for at most this many bytes of content.
_LZ4_RATIO = 255


def zstandard() -> ModuleType:
    """Return the module `zstandard`. Raises MissingExtra with the install line if it is not installed."""
    return _module("zstandard", "zstandard")


def lz4_block() -> ModuleType:
    """Return the module `lz4.block`. Raises MissingExtra with the install line if it is not installed."""
    return _module("lz4.block", "lz4")


def _module(name: str, package: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtra("record", package) from error


def unzstd(payload: Buffer, size: int) -> bytes:
    """Decompress one zstd frame. Raises CodecError unless it declares and holds exactly `size` bytes."""
    module = zstandard()
    try:
        said = module.get_frame_parameters(payload).content_size
        if said != size:
            raise CodecError(f"zstd frame: expected {size} bytes of content, its header says {said}")
        content: bytes = _decompressor(module).decompress(payload, max_output_size=size, allow_extra_data=False)
    except module.ZstdError as error:
        raise CodecError(f"zstd frame of {len(payload)} bytes: {error}") from error
    if len(content) != size:
        raise CodecError(f"zstd frame: expected {size} bytes of content, found {len(content)}")
    return content


def _decompressor(module: ModuleType) -> ZstdDecompressor:
    """Return this thread's decompressor. A context takes 150 KB and is not thread-safe."""
    if not hasattr(_per_thread, "decompressor"):
        _per_thread.decompressor = module.ZstdDecompressor()
    found: ZstdDecompressor = _per_thread.decompressor
    return found


def unlz4(payload: Buffer, size: int) -> bytes:
    """Decompress one lz4 block. Raises CodecError unless it holds exactly `size` bytes."""
    module = lz4_block()
    if size == 0:
        raise CodecError("lz4 block: expected none for no rows")
    if size > _LZ4_RATIO * (len(payload) + 1):  # the library allocates the whole size first
        raise CodecError(f"lz4 block of {len(payload)} bytes: cannot hold {size}")
    try:
        content: bytes = module.decompress(payload, uncompressed_size=size)
    except (module.LZ4BlockError, OverflowError, MemoryError) as error:
        raise CodecError(f"lz4 block of {len(payload)} bytes: {error}") from error
    if len(content) != size:
        raise CodecError(f"lz4 block: expected {size} bytes of content, found {len(content)}")
    return content
