"""Service discovery between engines and readers of one user: a private directory of cards, probe tables and sockets.

    engine-<id>.json              the card of a running engine
    engine-<id>.sock              its socket
    probes-<id>-<generation>.json the probe table of each generation
    counters-<id>-<source>.json   counters of one of the engine's processes

Only files with these names (and their temporary files) in this directory, and `actscope-<uid>-<16 hex>` in /dev/shm, are
ever removed.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from actscope.errors import RingError
from actscope.ring.segment import (
    FOREIGN_SILENCE_NS,
    SEGMENT_NAME,
    SHM_DIR,
    is_locked,
    read_heartbeat,
    read_owner,
    segment_path,
    unlink,
)
from actscope.runtime.boot import boot_id
from actscope.runtime.decoding import decode_json
from actscope.runtime.directory import runtime_dir
from actscope.runtime.private_files import publish_private, read_private
from actscope.runtime.process import Process, process_start

_log = logging.getLogger(__name__)

MAX_CARD_BYTES = 64 << 10
MAX_TABLE_BYTES = 64 << 20
KEPT_TABLES = 1024
#: Age in seconds after which a file without a card counts as orphaned. A younger one may be of an engine that is starting.
ORPHAN_AGE_S = 600.0

_ID = r"[0-9a-f]{16}"
_CARD_NAME = re.compile(rf"engine-({_ID})\.json")
_OWNED_NAME = re.compile(
    rf"(?:engine-({_ID})\.(?:json|sock)|(?:probes-({_ID})-\d{{1,20}}|counters-({_ID})-[a-z]{{1,16}})\.json)"
)
_TEMPORARY_NAME = re.compile(
    rf"\.(?:engine-{_ID}|probes-{_ID}-\d{{1,20}}|counters-{_ID}-[a-z]{{1,16}})\.json\.{_ID}\.tmp"
)

Text = Annotated[str, Meta(max_length=4096)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]


class EngineCard(msgspec.Struct, frozen=True):
    """Service registration of a running engine.

    An engine whose blocks are spread over several processes (pipeline parallelism) has one card and one ring per process.
    A server with several engines (data parallelism) has the cards of each.

    Attributes:
        ring: Name of the ring's segment.
        endpoint: URL that accepts requests; "" if unknown, because vLLM's own server does not report its port.
        control: Address of the controls for probes, marks and the recording if `endpoint` is unknown.
        group: Common to all cards of one server; "" if it has a single one.
        part: Index of this process's part, from 0.
        parts: Number of parts of the engine.
        replica: Index of this engine among the data-parallel engines of one server, from 0.
        replicas: Number of those engines, on all hosts.
        plain_ids: Whether the request ids in the ring are those that clients see. Otherwise vLLM's have a random suffix.
    """

    id: Annotated[str, Meta(pattern=rf"\A{_ID}\Z")]
    pid: Annotated[int, Meta(ge=1, le=1 << 31)]
    pid_start: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    kind: Annotated[str, Meta(max_length=64)]
    model: Text
    revision: Text
    device: Text
    dtype: Text
    n_layers: Count
    d_model: Count
    max_context: Count
    special_ids: Annotated[list[int], Meta(max_length=4096)]
    tokenizer: Text
    ring: Annotated[str, Meta(pattern=rf"\Aactscope-\d{{1,10}}-{_ID}\Z")]
    endpoint: Text
    started_ns: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    boot_id: Annotated[str, Meta(max_length=64)]
    has_chat_template: bool = True
    control: Text = ""
    group: Annotated[str, Meta(max_length=64)] = ""
    part: Annotated[int, Meta(ge=0, le=4096)] = 0
    parts: Annotated[int, Meta(ge=1, le=4096)] = 1
    replica: Annotated[int, Meta(ge=0, le=65536)] = 0
    replicas: Annotated[int, Meta(ge=1, le=65536)] = 1
    plain_ids: bool = False


def publish_card(card: EngineCard) -> Path:
    """Publish an engine's card and return its path. Raises RingError if a reader would reject the card."""
    content = msgspec.json.encode(card)
    path = runtime_dir() / f"engine-{_decode_card(content, card.id).id}.json"
    publish_private(path, content)
    return path


def read_cards() -> list[EngineCard]:
    """Return the cards of all running engines, newest first. An invalid card is logged and skipped."""
    cards = [card for card in _cards(runtime_dir()) if _engine_lives(card)]
    return sorted(cards, key=lambda card: card.started_ns, reverse=True)


def read_card(path: Path) -> EngineCard:
    """Read and validate one card. Raises RingError if it is not private, too large, malformed, or not named after its id."""
    name = _CARD_NAME.fullmatch(path.name)
    if name is None:
        raise RingError(f"{path}: expected a name like engine-<16 hex digits>.json")
    return _decode_card(read_private(path, MAX_CARD_BYTES), name[1])


def _decode_card(content: bytes, expected_id: str) -> EngineCard:
    if len(content) > MAX_CARD_BYTES:
        raise RingError(f"card {expected_id}: {len(content)} bytes, at most {MAX_CARD_BYTES} are accepted")
    card = decode_json(content, EngineCard, RingError, f"card {expected_id}: restart the engine that wrote it")
    if card.id != expected_id:
        raise RingError(f"card {expected_id}: its id is {card.id}: remove it")
    segment_path(card.ring)  # refuses a ring of another user, which we may neither read nor remove
    return card


def _cards(directory: Path) -> Iterator[EngineCard]:
    for path in sorted(directory.iterdir()):
        if _CARD_NAME.fullmatch(path.name):
            try:
                yield read_card(path)
            except RingError as error:
                _log.warning("left out %s: %s", path, error)


def _engine_lives(card: EngineCard) -> bool:
    """Return whether the engine's process runs; in another pid namespace, whether its ring has a living writer."""
    if card.boot_id and card.boot_id != boot_id():
        return False
    if process_start(card.pid) == card.pid_start:
        return True
    owner = _owner(card.ring)
    return owner is not None and not owner.visible and _has_writer(card.ring)


def _has_writer(ring: str) -> bool:
    """Return whether the writer of a ring lives, as far as its file tells: it is locked, or its heartbeat is young.

    A writer of an older version holds no lock, but beats.
    """
    try:
        return is_locked(ring) or time.monotonic_ns() - read_heartbeat(ring) < FOREIGN_SILENCE_NS
    except (RingError, OSError):
        return False


def _owner(ring: str) -> Process | None:
    """Return the process that created a segment, according to its header; None if the segment cannot be read."""
    try:
        return read_owner(ring)
    except RingError:
        return None


def withdraw_card(card: EngineCard) -> None:
    """Remove an engine's card first, then all other files with its id, and its segment."""
    directory = runtime_dir()
    _remove(directory / f"engine-{_decode_card(msgspec.json.encode(card), card.id).id}.json")
    for path in _owned(directory, card.id):
        _remove(path)
    unlink(card.ring)


def sweep(orphan_age_s: float = ORPHAN_AGE_S) -> int:
    """Remove the files and segments of dead engines. Engines call this at start.

    Files of a living process or of another user stay. The pid of a process in another pid namespace (of another container that
    shares /dev/shm) means nothing here: its ring is removed when nobody holds the lock on the file and its heartbeat has stopped.

    Args:
        orphan_age_s: Age in seconds from which a file without a card is removed.

    Returns:
        Number of files removed.
    """
    directory = runtime_dir()
    living = {card.id for card in _cards(directory) if _engine_lives(card)}
    known = {card.id for card in _cards(directory)}
    leftovers = [path for path in directory.iterdir() if _is_leftover(path, living, known, orphan_age_s)]
    segments = [path for path in _in_shared_memory() if _is_dead_segment(path, orphan_age_s)]
    return sum(_remove(path) for path in leftovers + segments)


def _in_shared_memory() -> list[Path]:
    try:
        return list(SHM_DIR.iterdir())
    except OSError:  # a machine without it: who creates a ring is told so
        return []


def _is_leftover(path: Path, living: set[str], known: set[str], orphan_age_s: float) -> bool:
    if _TEMPORARY_NAME.fullmatch(path.name):
        return _age_s(path) > orphan_age_s
    match = _OWNED_NAME.fullmatch(path.name)
    if match is None:
        return False
    owner = match[1] or match[2] or match[3]
    return owner not in living and (owner in known or _age_s(path) > orphan_age_s)


def _is_dead_segment(path: Path, orphan_age_s: float) -> bool:
    match = SEGMENT_NAME.fullmatch(path.name)
    if match is None or int(match[1]) != os.geteuid():
        return False
    owner = _owner(path.name)
    if owner is None:  # not a ring, or its writer was killed before it wrote the header
        return _is_ours(path) and _age_s(path) > orphan_age_s
    return not owner.alive() if owner.visible else not _has_writer(path.name)


def _is_ours(path: Path) -> bool:
    try:
        return os.lstat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _age_s(path: Path) -> float:
    try:
        return time.time() - os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _owned(directory: Path, engine: str) -> list[Path]:
    matches = ((path, _OWNED_NAME.fullmatch(path.name)) for path in directory.iterdir())
    return [path for path, match in matches if match and engine in match.groups()]


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:  # removed already, or a directory, which no engine creates
        return False
    return True


def _table_path(card_id: str, generation: int) -> Path:
    if not re.fullmatch(_ID, card_id) or not 0 <= generation < 1 << 64:
        raise RingError(f"probe table of {card_id[:32]!r}, generation {generation}: expected 16 hex digits, a number")
    return runtime_dir() / f"probes-{card_id}-{generation}.json"


def publish_table(card_id: str, table: bytes, generation: int) -> Path:
    """Publish a probe table atomically, before the first step of its generation, and return its path.

    The table `KEPT_TABLES` generations older is removed, as no ring holds steps of it. Raises RingError if the table is too
    large or cannot be written.
    """
    if len(table) > MAX_TABLE_BYTES:
        raise RingError(f"probe table: {len(table)} bytes, at most {MAX_TABLE_BYTES} are accepted: load fewer probes")
    path = _table_path(card_id, generation)
    publish_private(path, table)
    if generation >= KEPT_TABLES:
        _remove(_table_path(card_id, generation - KEPT_TABLES))
    return path


def read_table(card_id: str, generation: int) -> bytes:
    """Read the probe table of one generation. Raises RingError if there is none."""
    return read_private(_table_path(card_id, generation), MAX_TABLE_BYTES)
