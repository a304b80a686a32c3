"""Finding texts: made up by the project, in files, or on the Hugging Face hub.

builtin, builtin:story, builtin:chat     the project's own generated text, on any machine, without a download
corpus.txt, data/, "shards/*.jsonl.gz"   one text a line; JSON, Parquet or Arrow; what `Dataset.save_to_disk` wrote
owner/name, owner/name:config            a dataset of the hub
"""

from __future__ import annotations

from actscope.errors import SettingsError
from actscope.extraction.contract import Texts
from actscope.extraction.generated import Generated

BUILTIN = "builtin"
#: How many texts `builtin` has, where nothing is said.
BUILTIN_TEXTS = 100_000


def open_texts(spec: str, *, split: str = "train", column: str = "text", n: int | None = None) -> Texts:
    """The texts that `spec` names; the first `n` of them where `n` is given.

    The same texts have the same fingerprint on every machine, in whatever files they come. Texts are numbered as they lie,
    empty ones too; a null is an empty text. Raises SettingsError that names what there is for what there is not, and
    MissingExtra without the package `datasets`, which everything but `builtin` needs.
    """
    if n is not None and n < 1:
        raise SettingsError(f"{spec}: n = {n}: expected at least one text")
    name, _, kind = spec.partition(":")
    if name == BUILTIN:
        return Generated(spec, kind or "mixed", split, BUILTIN_TEXTS if n is None else n)
    from actscope.extraction.tables import open_table

    return open_table(spec, split=split, column=column, n=n)
