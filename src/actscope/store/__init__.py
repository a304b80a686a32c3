"""A durable, append-only log of opaque messages, kept in MCAP segment files. See docs/store.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
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

__getattr__, __dir__ = attach(
    __name__,
    {
        "ENTRY": "actscope.store.format.layout:ENTRY",
        "KEY_BYTES": "actscope.store.format.layout:KEY_BYTES",
        "Damage": "actscope.store.reading.damage:Damage",
        "LogPosition": "actscope.store.format.watermark:LogPosition",
        "RecoverReport": "actscope.store.reading.recover:RecoverReport",
        "Store": "actscope.store.writing.writer:Store",
        "StoreOptions": "actscope.store.options:StoreOptions",
        "StoreReader": "actscope.store.reading.reader:StoreReader",
        "StoreStats": "actscope.store.options:StoreStats",
        "Watermark": "actscope.store.format.watermark:Watermark",
        "recover": "actscope.store.reading.recover:recover",
    },
)
