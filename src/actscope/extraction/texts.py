"""Open datasets of texts: synthetic, in files, or on the Hugging Face hub.

builtin, builtin:story, builtin:chat     synthetic text, on any machine, without a download
corpus.txt, data/, "shards/*.jsonl.gz"   one text per line; JSON, Parquet or Arrow; a directory of `Dataset.save_to_disk`
owner/name, owner/name:config            a dataset of the hub
"""

from __future__ import annotations

from actscope.errors import SettingsError
from actscope.extraction.contract import Texts
from actscope.extraction.generated import Generated

BUILTIN = "builtin"
#: Default number of texts of `builtin`.
BUILTIN_TEXTS = 100_000


def open_texts(spec: str, *, split: str = "train", column: str = "text", n: int | None = None) -> Texts:
    """Open a dataset of texts.

    The same texts have the same fingerprint on every machine, whatever files they come from. Texts are numbered in the
    dataset's order, empty ones included. A null is an empty text.

    Args:
        spec: The dataset, in one of the forms above.
        split: The split of the dataset.
        column: The column that holds the texts; `builtin` has none.
        n: Use only the first `n` texts; None for all.

    Returns:
        The texts.

    Raises:
        SettingsError: The dataset, its split or its column does not exist. The message names those that do.
        MissingExtra: The package `datasets` is not installed, which all but `builtin` need.
    """
    if n is not None and n < 1:
        raise SettingsError(f"{spec}: n = {n}: expected at least one text")
    name, _, kind = spec.partition(":")
    if name == BUILTIN:
        return Generated(spec, kind or "mixed", split, BUILTIN_TEXTS if n is None else n)
    from actscope.extraction.tables import open_table

    return open_table(spec, split=split, column=column, n=n)
