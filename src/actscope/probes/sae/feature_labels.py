"""Labels of an SAE's features: `labels.json` in its folder, an object from a feature's number to what it stands for.

{"17": "' snow' ' ice' ' cold'", "40": "the second word of a question"}
"""

from __future__ import annotations

from pathlib import Path

from actscope.errors import ProbeError
from actscope.runtime.decoding import decode_json
from actscope.runtime.regular_files import read_regular

FILE = "labels.json"
#: Largest file that is read: 200 bytes for each of 300,000 features.
MAX_BYTES = 64 << 20


def feature_labels(folder: Path) -> dict[str, str]:
    """Return the labels of the features of an SAE, by their numbers. Empty if its folder has none, or if it is a file.

    Raises:
        ProbeError: The file is not such an object.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    what = f'{path}: expected an object from the numbers of features to their labels, like {{"17": "snow"}}'
    found = decode_json(read_regular(path, MAX_BYTES, ProbeError), dict[str, str], ProbeError, what)
    wrong = next((name for name in found if not (name.isascii() and name.isdecimal())), None)
    if wrong is not None:
        raise ProbeError(f"{what}; found {wrong[:80]!r}")
    return found
