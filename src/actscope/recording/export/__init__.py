"""Export: rows and their labels in forms that other tools read. One module for each form; `registry` has them all.

Rows keep their order of computation and every one of them is there, recomputed and spurious ones too: `flags` says which
(see `actscope.frames.RowFlag`).
"""

from actscope.recording.export.options import ExportOptions, ExportReport
from actscope.recording.export.registry import FORMATS, export
from actscope.recording.export.selection import Selection, choose_sites

__all__ = ["FORMATS", "ExportOptions", "ExportReport", "Selection", "choose_sites", "export"]
