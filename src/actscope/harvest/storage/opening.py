"""From what was given on the command line to a storage."""

from __future__ import annotations

from pathlib import Path

from actscope.errors import SettingsError
from actscope.harvest.storage.contract import Storage
from actscope.harvest.storage.local import LocalStorage

#: Schemes that obstore knows, with what stands behind the colon in an example.
SCHEMES = {
    "s3": "s3://bucket/prefix",
    "s3a": "s3a://bucket/prefix",
    "gs": "gs://bucket/prefix",
    "az": "az://container/prefix",
    "abfss": "abfss://container@account.dfs.core.windows.net/prefix",
}


def open_storage(out: str, *, allow_http: bool = False) -> Storage:
    """A directory, or a bucket's prefix such as s3://bucket/prefix. Raises SettingsError for another scheme, HarvestError for a
    place that cannot be opened, and MissingExtra without obstore, which object storage needs."""
    scheme, separator, rest = out.partition("://")
    if not separator or scheme == "file":
        return LocalStorage(Path(rest if separator else out).absolute())
    if scheme not in SCHEMES:
        known = ", ".join(SCHEMES.values())
        raise SettingsError(f"{out}: no storage {scheme}://; expected a directory, or one of {known}")
    from actscope.harvest.storage.objects import ObjectStorage

    return ObjectStorage(out, allow_http=allow_http)


def is_local(out: str) -> bool:
    """Whether it is a directory of this machine, or one that it sees."""
    return "://" not in out or out.startswith("file://")
