"""A durable, append-only log of opaque messages, kept in MCAP segment files. See docs/store.md."""

from actscope.store.damage import Damage
from actscope.store.layout import ENTRY, KEY_BYTES
from actscope.store.options import StoreOptions, StoreStats
from actscope.store.reader import StoreReader
from actscope.store.recover import RecoverReport, recover
from actscope.store.watermark import Position, Watermark
from actscope.store.writer import Store

__all__ = [
    "ENTRY",
    "KEY_BYTES",
    "Damage",
    "Position",
    "RecoverReport",
    "Store",
    "StoreOptions",
    "StoreReader",
    "StoreStats",
    "Watermark",
    "recover",
]
