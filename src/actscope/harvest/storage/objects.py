"""Object storage through obstore: S3 and compatible stores, Google Cloud Storage, Azure.

Credentials and endpoints come from the environment variables that the clouds' own tools read: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_*.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from actscope.errors import HarvestError, MissingExtra
from actscope.harvest.storage.contract import Data

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
    from obstore.store import from_url
except ImportError as error:
    raise MissingExtra("harvest", "obstore") from error

#: Longest time that requests are retried while a server does not answer, in seconds.
PATIENCE_S = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_CHUNK = 8 << 20
#: Part size of a multipart upload; S3 accepts at most 5 GiB in one part.
_PART = 16 << 20


class ObjectStorage:
    """Storage under a prefix of a bucket. `put_new` is a single PUT with If-None-Match: *, so S3 limits it to 5 GiB."""

    def __init__(self, url: str, *, allow_http: bool = False, patience_s: float | None = None) -> None:
        self.url = url.rstrip("/")
        retry: Any = {
            "max_retries": 10,
            "retry_timeout": timedelta(seconds=PATIENCE_S if patience_s is None else patience_s),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
        }
        try:
            client: Any = {"allow_http": allow_http or _endpoint_is_here(), "timeout": timedelta(seconds=120)}
            self._store: Any = from_url(self.url, client_options=client, retry_config=retry)
        except (BaseError, ValueError) as error:
            raise HarvestError(f"{url}: cannot be opened: {_brief(error)}") from error

    def put_new(self, name: str, data: Data) -> bool:
        """Put an object with If-None-Match: *. Return whether the object now has these bytes."""
        with self._naming(name, "writing"):
            try:
                obstore.put(self._store, name, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                # also if an earlier attempt of this call succeeded and its response was lost
                return self.get(name) == data
        return True

    def put(self, name: str, data: Data) -> None:
        """Put an object, in several parts if it is large. The object appears only once it is complete."""
        with self._naming(name, "writing"):
            obstore.put(self._store, name, data, chunk_size=_PART, use_multipart=len(data) > 4 * _PART)

    def get(self, name: str) -> bytes | None:
        """Return the bytes of an object; None if it does not exist."""
        with self._naming(name, "reading"):
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes; None if it does not exist."""
        with self._naming(name, "reading"):
            try:
                return int(obstore.head(self._store, name)["size"])
            except FileNotFoundError:
                return None

    def chunks(self, name: str) -> Iterator[Data]:
        """Yield the bytes of an object in chunks as they arrive. Raises HarvestError if it does not exist."""
        with self._naming(name, "reading"):
            for chunk in obstore.get(self._store, name).stream(min_chunk_size=_CHUNK):
                yield memoryview(chunk)

    def names(self, folder: str) -> list[str]:
        """Return the names of all objects under `folder`, including the folder, sorted."""
        with self._naming(f"{folder}/", "listing"):
            found = obstore.list(self._store, f"{folder}/", chunk_size=1000)
            return sorted(entry["path"] for entries in found for entry in entries)

    def delete(self, names: list[str]) -> None:
        """Delete objects, 1000 in a request. An object that does not exist is not an error."""
        with self._naming(names[0] if names else "", "removing"):
            for start in range(0, len(names), 1000):
                obstore.delete(self._store, names[start : start + 1000])

    @contextmanager
    def _naming(self, name: str, doing: str) -> Iterator[None]:
        """Turn errors of obstore into a HarvestError that names the object and the operation."""
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, HarvestError):
                raise
            raise HarvestError(f"{self.url}/{name}: {doing} failed: {_brief(error)}") from error


def _endpoint_is_here() -> bool:
    """Return whether the environment names an S3 endpoint on this machine, where plain HTTP is allowed by default."""
    named = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    return urlsplit(named).hostname in _LOOPBACK


def _brief(error: BaseException) -> str:
    """Return the message of an obstore error without its debug output."""
    return " ".join(str(error).split("Debug source:")[0].split())
