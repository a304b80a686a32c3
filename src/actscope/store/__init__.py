"""A durable, append-only log of opaque messages, kept in MCAP segment files. See docs/store.md."""

from actscope.store.format.layout import ENTRY, KEY_BYTES
from actscope.store.format.watermark import LogPosition, Watermark
from actscope.store.options import StoreOptions, StoreStats
from actscope.store.reading.damage import Damage
from actscope.store.reading.reader import StoreReader
from actscope.store.reading.recover import RecoverReport, recover
from actscope.store.writing.writer import Store

__all__ = [
    "ENTRY",
    "KEY_BYTES",
    "Damage",
    "LogPosition",
    "RecoverReport",
    "Store",
    "StoreOptions",
    "StoreReader",
    "StoreStats",
    "Watermark",
    "recover",
]
