"""Import: a packet stream becomes a recording.

Streams of ours (see `actscope.recording.format.packets`) say what they hold, and come back as they were. Of foreign ones one must
say dtype and width. There, a name `<site>/<request>/<position>` is read as such; any other is the site, and positions are counted
from 0 as its packets come, or are found by a pattern with the groups `site`, `request` and `position`.
"""

from actscope.recording.importing.importer import ImportReport, import_packets
from actscope.recording.importing.options import ImportOptions

__all__ = ["ImportOptions", "ImportReport", "import_packets"]
