"""Export of rows and labels to formats that other tools read. One module for each format; `registry` lists them.

Exports contain all selected rows in the order of computation, recomputed and spurious ones included. The `flags` column
distinguishes them (see `actscope.frames.RowFlag`).
"""

from actscope.recording.export.options import ExportOptions, ExportReport
from actscope.recording.export.registry import FORMATS, export
from actscope.recording.export.selection import Selection, choose_sites

__all__ = ["FORMATS", "ExportOptions", "ExportReport", "Selection", "choose_sites", "export"]
