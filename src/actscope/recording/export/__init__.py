"""Export of rows and labels to formats that other tools read. One module for each format; `registry` lists them.

Exports contain all selected rows in the order of computation, recomputed and spurious ones included. The `flags` column
distinguishes them (see `actscope.frames.RowFlag`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.recording.export.options import ExportOptions, ExportReport
    from actscope.recording.export.registry import FORMATS, export
    from actscope.recording.export.selection import Selection, choose_sites

__all__ = ["FORMATS", "ExportOptions", "ExportReport", "Selection", "choose_sites", "export"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "FORMATS": "actscope.recording.export.registry:FORMATS",
        "ExportOptions": "actscope.recording.export.options:ExportOptions",
        "ExportReport": "actscope.recording.export.options:ExportReport",
        "Selection": "actscope.recording.export.selection:Selection",
        "choose_sites": "actscope.recording.export.selection:choose_sites",
        "export": "actscope.recording.export.registry:export",
    },
)
