"""Import of packet streams into recordings.

Streams written by actscope (see `actscope.recording.format.packets`) describe their content and are restored as they were.
Foreign streams need a dtype and a width. Their packet names are parsed as `<site>/<request>/<position>`, or by a pattern with
the groups `site`, `request` and `position`. Any other name is a site, whose positions count from 0 in the order of its packets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.recording.importing.importer import ImportReport, import_packets
    from actscope.recording.importing.options import ImportOptions

__all__ = ["ImportOptions", "ImportReport", "import_packets"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ImportOptions": "actscope.recording.importing.options:ImportOptions",
        "ImportReport": "actscope.recording.importing.importer:ImportReport",
        "import_packets": "actscope.recording.importing.importer:import_packets",
    },
)
