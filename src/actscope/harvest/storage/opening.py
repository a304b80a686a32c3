"""Opening the storage that a path or URL names."""

from __future__ import annotations

from pathlib import Path

from actscope.errors import SettingsError
from actscope.harvest.storage.contract import Storage
from actscope.harvest.storage.local import LocalStorage

#: URL schemes of object storage, each with an example.
SCHEMES = {
    "s3": "s3://bucket/prefix",
    "s3a": "s3a://bucket/prefix",
    "gs": "gs://bucket/prefix",
    "az": "az://container/prefix",
    "abfss": "abfss://container@account.dfs.core.windows.net/prefix",
}


def open_storage(out: str, *, allow_http: bool = False) -> Storage:
    """Open a storage.

    Args:
        out: Directory, or prefix of a bucket such as s3://bucket/prefix.
        allow_http: Whether to allow unencrypted HTTP to an object store.

    Raises:
        SettingsError: The URL has another scheme.
        HarvestError: The storage cannot be opened.
        MissingExtra: Object storage needs obstore, which is not installed.
    """
    scheme, separator, rest = out.partition("://")
    if not separator or scheme == "file":
        return LocalStorage(Path(rest if separator else out).absolute())
    if scheme not in SCHEMES:
        known = ", ".join(SCHEMES.values())
        raise SettingsError(f"{out}: unknown scheme {scheme}://; expected a directory, or one of {known}")
    from actscope.harvest.storage.objects import ObjectStorage

    return ObjectStorage(out, allow_http=allow_http)


def is_local(out: str) -> bool:
    """Return whether `out` names a directory, which may be on a shared file system."""
    return "://" not in out or out.startswith("file://")
