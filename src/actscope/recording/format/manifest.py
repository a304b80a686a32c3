"""Manifest of a recording: immutable, with a copy in every segment."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, TypedDict, cast

import msgspec

from actscope._version import __version__
from actscope.clock import clock_pair
from actscope.errors import RecordingDamaged, RecordingError
from actscope.recording.format.index_keys import CHANNELS, channel_of_site
from actscope.recording.spec import FORMAT_VERSION, RecordingSpec
from actscope.runtime.decoding import as_own_error
from actscope.store import StoreReader


class RecordingInfo(TypedDict):
    """Manifest of a recording."""

    format: str
    version: int
    id: str
    created_wall_ns: int
    actscope: str
    sites: list[str]
    codecs: dict[str, str]
    model: dict[str, Any]
    """JSON values; see `RecordingSpec.model`."""
    settings: dict[str, object]


def manifest_of(spec: RecordingSpec) -> RecordingInfo:
    """Return the manifest of a new recording."""
    now = clock_pair()
    return {
        "format": "actscope-recording",
        "version": FORMAT_VERSION,
        "id": secrets.token_hex(8),
        "created_wall_ns": now.wall_ns,
        "actscope": __version__,
        "sites": list(spec.sites),
        "codecs": {site: spec.codec_of(site) for site in spec.sites},
        "model": spec.model,
        "settings": spec.settings,
    }


def check(manifest: Mapping[str, object], path: object) -> None:
    """Raise RecordingError if this version cannot read a recording with this manifest."""
    if manifest.get("format") != "actscope-recording":
        raise RecordingError(f"{path}: expected the manifest of a recording, found format {manifest.get('format')!r}")
    if manifest.get("version") != FORMAT_VERSION:
        raise RecordingError(
            f"{path}: its format is version {manifest.get('version')}, this actscope reads {FORMAT_VERSION}: install "
            f"the actscope that wrote it ({manifest.get('actscope')})"
        )


def info_of(store: StoreReader) -> RecordingInfo:
    """Return the manifest of an open recording. Raises RecordingError if this version cannot read it."""
    check(store.manifest, store.path)
    with as_own_error(RecordingDamaged, f"{store.path}: not the manifest of a recording"):
        sites = msgspec.convert(store.manifest, RecordingInfo)["sites"]
    if store.channels != [*CHANNELS, *map(channel_of_site, sites)]:
        raise RecordingDamaged(f"{store.path}: its channels are not those of its {len(sites)} sites")
    return cast(RecordingInfo, store.manifest)


def check_same(manifest: RecordingInfo, spec: RecordingSpec, path: object) -> None:
    """Raise RecordingError if the sites, model or revision of `spec` differ from the recording's."""
    for what, old, new in (
        ("sites", manifest["sites"], list(spec.sites)),
        ("model", manifest["model"].get("name"), spec.model.get("name")),
        ("revision", manifest["model"].get("revision"), spec.model.get("revision")),
    ):
        if old != new:
            raise RecordingError(f"{path}: cannot go on: its {what} are {old}, now asked for {new}; use another folder")
